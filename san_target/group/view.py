"""What the balancers look at, put together from load reports and partition maps. Pure."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Final

from san_target.group.decisions import Holding
from san_target.group.efficiency import RangeFlow

if TYPE_CHECKING:
    from san_target.peer.load_report import MemberLoad
    from san_target.volume.partition_map import MapSnapshot

SnapshotOf = Callable[[str], "tuple[MapSnapshot, int] | None"]
"""The map of a volume, by its id, and its block size; None: it is not known here."""

RUN_BYTES_MAX: Final = 4 << 30
"""Neighbours are moved together up to this size."""


def range_flows(loads: "Mapping[str, MemberLoad]", snapshot_of: SnapshotOf) -> list[RangeFlow]:
    """Everything that is touched, by range; neighbours that have the same owner and are asked for through the same
    member are one range."""
    touched: dict[tuple[str, int, int], dict[str, tuple[float, float]]] = {}
    for member, load in loads.items():
        for one in load.ranges:
            by_ingress = touched.setdefault((one.volume_id, one.start_lba, one.end_lba), {})
            by_ingress[member] = one.iops, one.bytes_per_second
    flows: list[RangeFlow] = []
    for (volume_id, start, end), by_ingress in sorted(touched.items()):
        known = snapshot_of(volume_id)
        if known is None or start >= known[0].blocks:
            continue
        snapshot, block_size = known
        piece = snapshot.range_at(start)
        end = min(end, piece.end)
        iops = sum(rate for rate, _ in by_ingress.values())
        byte_rate = sum(rate for _, rate in by_ingress.values())
        flow = RangeFlow(
            volume_id,
            start,
            end,
            piece.placement.owner,
            (end - start) * block_size,
            {member: rate for member, (rate, _) in by_ingress.items()},
            byte_rate / iops if iops else 0.0,
        )
        if flows and _belong_together(flows[-1], flow, block_size):
            flows[-1] = _joined(flows[-1], flow, block_size)
        else:
            flows.append(flow)
    return flows


def _most(flow: RangeFlow) -> str:
    return max(flow.by_ingress, key=lambda name: (flow.by_ingress[name], name), default="")


def _belong_together(left: RangeFlow, right: RangeFlow, block_size: int) -> bool:
    return (
        (left.volume_id, left.owner, _most(left)) == (right.volume_id, right.owner, _most(right))
        and left.end_lba <= right.start_lba
        # What lies between them was not seen to be touched: not more than what was.
        and (right.start_lba - left.end_lba) * block_size <= left.size_bytes
        and (right.end_lba - left.start_lba) * block_size <= RUN_BYTES_MAX
    )


def _joined(left: RangeFlow, right: RangeFlow, block_size: int) -> RangeFlow:
    by_ingress = {
        name: left.by_ingress.get(name, 0.0) + right.by_ingress.get(name, 0.0)
        for name in sorted({*left.by_ingress, *right.by_ingress})
    }
    iops = left.iops + right.iops
    size = (left.iops * left.bytes_each + right.iops * right.bytes_each) / iops if iops else 0.0
    size_bytes = (right.end_lba - left.start_lba) * block_size
    return RangeFlow(left.volume_id, left.start_lba, right.end_lba, left.owner, size_bytes, by_ingress, size)


def holdings(volume_ids: Iterable[str], snapshot_of: SnapshotOf, owners: frozenset[str]) -> Iterator[Holding]:
    """What these members own."""
    for volume_id in volume_ids:
        known = snapshot_of(volume_id)
        if known is None or not owners & set(known[0].holders):
            continue
        snapshot, block_size = known
        for start, end, placement in snapshot.ranges():
            if placement.owner in owners:
                yield Holding(volume_id, start, end, placement.owner, (end - start) * block_size)
