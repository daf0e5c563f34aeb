"""Where the blocks of a new volume go: spread over the members by their free space, in not too many ranges. Pure.

A member's share is in proportion to its free space. Shares are cut into stripes that take turns, so that a load on one
part of the volume meets several members; the larger the volume, the larger its stripes, for the map is to stay small.
A small volume lies on one member. Nothing here is random: the seed (the volume's id) decides where it is a toss-up, so
that many volumes begin at different members.
"""

import hashlib
import math
from collections.abc import Sequence
from typing import Final, NamedTuple

RANGES_MAX: Final = 64
SPREAD_BYTES_MIN: Final = 64 << 20
"""A smaller volume lies on one member."""
STRIPE_BYTES_MIN: Final = 16 << 20


class Candidate(NamedTuple):
    """A member that may take blocks."""

    name: str
    free_bytes: int


class Share(NamedTuple):
    """Blocks [start, end) for one member."""

    start: int
    end: int
    owner: str


def spread(
    seed: str,
    start: int,
    end: int,
    block_size: int,
    region_bytes: int,
    candidates: Sequence[Candidate],
    every_one: bool = False,
) -> list[Share]:
    """Gap-free shares of the blocks [start, end), in order, neighbours of different owners; at most RANGES_MAX.

    start: a multiple of the region size, as are the ends of all shares but the last. candidates: at least one, by
    different names. every_one: each of them gets something, as far as there are regions (and RANGES_MAX) for it.
    """
    region = region_bytes // block_size
    if not candidates or start % region or end <= start:
        raise AssertionError(f"spreading blocks {start}-{end} over {len(candidates)} members")
    regions = -(-(end - start) // region)
    if len(candidates) == 1 or (not every_one and (end - start) * block_size < SPREAD_BYTES_MIN):
        return [Share(start, end, _only(seed, candidates))]
    # For shares that are in proportion, each member needs a few stripes.
    stripe_regions = max(-(-regions // RANGES_MAX), STRIPE_BYTES_MIN // region_bytes)
    if every_one:
        stripe_regions = max(-(-regions // RANGES_MAX), min(stripe_regions, regions // len(candidates)))
    stripes = -(-regions // stripe_regions)
    shares: list[Share] = []
    for number, owner in enumerate(_turns(_quotas(seed, stripes, candidates, every_one))):
        first = start + number * stripe_regions * region
        last = min(end, first + stripe_regions * region)
        if shares and shares[-1].owner == owner:
            shares[-1] = Share(shares[-1].start, last, owner)
        else:
            shares.append(Share(first, last, owner))
    return shares


def _only(seed: str, candidates: Sequence[Candidate]) -> str:
    """One member, each as likely as its free space is large: weighted rendezvous hashing."""
    weights = _weights(candidates)

    def score(candidate: Candidate) -> float:
        weight = weights[candidate.name]
        return -math.log((_hash(seed, candidate.name) + 1) / (1 << 64)) / weight if weight else math.inf

    return min(candidates, key=lambda candidate: (score(candidate), candidate.name)).name


def _quotas(seed: str, stripes: int, candidates: Sequence[Candidate], every_one: bool) -> dict[str, int]:
    """How many stripes each member gets, `stripes` in all: by the largest remainders, in the seed's order if equal."""
    weights = _weights(candidates)
    total = sum(weights.values())
    quotas = {name: stripes * weight // total for name, weight in weights.items()}
    by_remainder = sorted(
        candidates, key=lambda one: (-(stripes * weights[one.name] % total), _hash(seed, one.name), one.name)
    )
    for candidate in by_remainder[: stripes - sum(quotas.values())]:
        quotas[candidate.name] += 1
    if every_one:
        for poor in sorted(name for name, quota in quotas.items() if not quota):
            rich = max(quotas, key=lambda name: (quotas[name], name))
            if quotas[rich] > 1:
                quotas[rich] -= 1
                quotas[poor] += 1
    begin = sorted((name for name, quota in quotas.items() if quota), key=lambda name: (_hash(seed, name), name))
    return {name: quotas[name] for name in begin}


def _turns(quotas: dict[str, int]) -> list[str]:
    """Each name as often as its quota says, as evenly as can be: smooth weighted round-robin."""
    total = sum(quotas.values())
    credit = dict.fromkeys(quotas, 0)
    turns = []
    for _ in range(total):
        for name, quota in quotas.items():
            credit[name] += quota
        chosen = max(credit, key=credit.__getitem__)
        credit[chosen] -= total
        turns.append(chosen)
    return turns


def _weights(candidates: Sequence[Candidate]) -> dict[str, int]:
    """Free space by name; equal where nobody has any."""
    weights = {candidate.name: max(0, candidate.free_bytes) for candidate in candidates}
    return weights if any(weights.values()) else dict.fromkeys(weights, 1)


def _hash(seed: str, name: str) -> int:
    """64 bits."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest(), "big")
