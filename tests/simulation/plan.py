"""What the users of simulated hosts do: few blocks, many hands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from initiator_sim.parameters import Pair

if TYPE_CHECKING:
    import random

    from initiator_sim.personalities import Personality
    from tests.simulation.book import Book
    from tests.simulation.hosts import Work

ATOMIC_BLOCKS: Final = 8
COMPARED_BLOCKS: Final = 3
READ_BLOCKS: Final = 64
ZONE_LBA: Final = 24
AROUND: Final = 64
USUAL: Final[Mapping[str, int]] = {
    "read": 40,
    "write": 40,
    "flush": 5,
    "unmap": 3,
    "compare": 6,
    "learn": 2,
    "write atomic": 3,
    "read atomic": 4,
}


@dataclass(frozen=True)
class Load:
    """What plans are drawn from. pace: (commands of a host at a time, seconds between two of them on average).

    bursts: how likely it is that a host sends its commands together and waits for all of them. zone: blocks of the hot
    zone at the start of the disk. weights: how often what is done.
    """

    pace: Sequence[tuple[int, float]] = ((1, 0.0), (2, 0.002), (4, 0.005), (4, 0.02), (8, 0.02), (8, 0.1))
    blocks_max: Sequence[int] = (1, 4, 8, 8)
    bursts: float = 0.2
    zone: Sequence[int] = (24, 24, 200, 1000)
    fua: float = 0.1
    weights: Mapping[str, int] = field(default_factory=lambda: USUAL)


USUAL_LOAD: Final = Load()


@dataclass(slots=True)
class Plan:
    """zones: (first LBA, blocks) of the general kind, hot ones. compared: blocks changed by COMPARE AND WRITE only;
    atomic: first LBAs of ATOMIC_BLOCKS blocks that are written whole only. The rest as in `Load`."""

    zones: Sequence[tuple[int, int]]
    compared: Sequence[int]
    atomic: Sequence[int]
    depth: int
    think_s: float
    blocks_max: int
    bursts: bool
    fua: float
    weights: Mapping[str, int]

    def choose(self, work: Work, random: random.Random, book: Book) -> None:
        kind = random.choices(list(self.weights), list(self.weights.values()))[0]
        work.kind = kind
        work.fua = kind == "write" and random.random() < self.fua
        if kind in ("compare", "learn"):
            work.lba, work.blocks = random.choice(self.compared), 1
            return
        if kind in ("write atomic", "read atomic"):
            work.lba, work.blocks = random.choice(self.atomic), ATOMIC_BLOCKS
            return
        start, length = random.choice(self.zones)
        work.blocks = min(length, random.randint(1, self.blocks_max))
        work.lba = start + random.randrange(length - work.blocks + 1)
        if kind == "unmap" and not book.may_unmap(work.lba, work.blocks):
            work.kind = "read"

    def everything(self) -> list[tuple[int, int]]:
        """All blocks that are ever written, in pieces that one command reads."""
        zones = [
            (first, min(READ_BLOCKS, start + length - first))
            for start, length in self.zones
            for first in range(start, start + length, READ_BLOCKS)
        ]
        return [*zones, *((lba, 1) for lba in self.compared), *((lba, ATOMIC_BLOCKS) for lba in self.atomic)]

    def keys(self, personality: Personality, random: random.Random) -> tuple[Pair, ...]:
        """The login offers of a personality, some of them made small, so that R2Ts and bursts are needed."""
        small = random.random() < 0.5
        changed = {"InitialR2T": "Yes", "FirstBurstLength": "512", "MaxBurstLength": "2048"} if small else {}
        if random.random() < 0.2:
            changed |= {"HeaderDigest": "CRC32C", "DataDigest": "CRC32C"}
        return tuple((key, changed.get(key, value)) for key, value in personality.keys)


def plan_for(boundaries: Sequence[int], load: Load, random: random.Random) -> Plan:
    """Around the start, and around each boundary between owners."""
    compared = list(range(COMPARED_BLOCKS))
    atomic = [8, 16]
    first = min(boundaries, default=1 << 20)
    zones = [(ZONE_LBA, min(random.choice(load.zone), first - AROUND - ZONE_LBA))]
    for boundary in boundaries:
        zones.append((boundary - 8, 16))
        compared += [boundary - 32, boundary + 32]
        atomic += [boundary - AROUND, boundary + AROUND]
    depth, think_s = random.choice(load.pace)
    return Plan(
        zones,
        compared,
        atomic,
        depth,
        think_s,
        random.choice(load.blocks_max),
        random.random() < load.bursts,
        load.fua,
        load.weights,
    )
