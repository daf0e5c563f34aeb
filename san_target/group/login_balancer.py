"""Where a login goes under the policy `adaptive`: to where the group is predicted to be most efficient with it. Pure.

What a new session will ask for is not known. It is taken to do what this initiator did on this volume before, or else
what sessions of the group do on average, and to touch the volume as it lies on the members.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from san_target.group.efficiency import Flow, Model
from san_target.peer.load_report import MemberLoad

IOPS_MIN: Final = 100.0
"""A login to a group without load is placed as if it would ask for this much."""
EQUAL: Final = 0.02
"""Members whose predictions differ by less than this share of the session's own time take turns."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What is expected of a session: I/Os per second, bytes of each, shares by owner."""

    iops: float
    bytes_each: float
    owners: Mapping[str, float]


def expected_of(
    loads: Mapping[str, MemberLoad], volume_id: str, initiator: str, lies_at: Mapping[str, float]
) -> Expected:
    """lies_at: share of the volume's blocks by owner."""
    rates: list[tuple[float, float]] = []
    for load in loads.values():
        for session in load.details:
            if (session.volume_id, session.initiator) == (volume_id, initiator) and session.iops > IOPS_MIN:
                return Expected(session.iops, session.bytes_per_second / session.iops, session.owners or lies_at)
            if session.iops > 1.0:
                rates.append((session.iops, session.bytes_per_second))
    if not rates:
        return Expected(IOPS_MIN, 4096.0, lies_at)
    iops = max(IOPS_MIN, sum(rate for rate, _ in rates) / len(rates))
    return Expected(iops, sum(size for _, size in rates) / sum(rate for rate, _ in rates), lies_at)


def order(
    model: Model,
    here: str,
    members: Iterable[str],
    expected: Expected,
    siblings: Iterable[str] = (),
    turn: int = 0,
) -> list[str]:
    """The members that this login should be offered to, best first; those that are worse than here are left out.

    here: the member that was asked (it may be in `siblings`, too). siblings: members with another session of the same
    initiator on this volume: they come last, behind all others. members, here: all in the model.
    """
    beside = set(siblings)
    names = sorted({*members, here})
    costs = {name: _cost(model, expected, name) for name in names}
    own_s = expected.iops * model.costs.ingress_s + 1e-9
    step_s = EQUAL * max(own_s, min(costs.values()))

    def rank(name: str) -> tuple[bool, int, int]:
        return name in beside, round(costs[name] / step_s), (names.index(name) - turn) % len(names)

    at_home = rank(here)[:2]
    better = [name for name in names if name != here and rank(name)[:2] < at_home]
    return sorted(better, key=rank)


def _cost(model: Model, expected: Expected, member: str) -> float:
    """Response time, per second, that the group has more with this session at that member."""
    flow = Flow(member, expected.iops, expected.bytes_each, expected.owners)
    remote = flow.iops * flow.remote_at(member)
    work = model.ingress_work(flow) + model.forward_work(remote, flow.bytes_each)
    station = model.stations[member]
    return station.response_s(work) - station.response_s() + remote * model.costs.hop_s


def share_of(snapshot_ranges: Sequence[tuple[int, int, str]]) -> dict[str, float]:
    """Share of a volume by owner, from (start, end, owner) ranges."""
    blocks: dict[str, int] = {}
    for start, end, owner in snapshot_ranges:
        blocks[owner] = blocks.get(owner, 0) + end - start
    total = sum(blocks.values())
    return {owner: count / total for owner, count in sorted(blocks.items())} if total else {}
