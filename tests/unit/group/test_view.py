"""What balancers look at: ranges by owner, and what members hold."""

from san_target.group.view import RUN_BYTES_MAX, holdings, range_flows
from san_target.metadata.schema import PlacementRecord
from san_target.peer.load_report import MemberLoad, RangeLoad
from san_target.volume.partition_map import MapSnapshot, PartitionMap

BLOCKS = 65536


def made_map() -> MapSnapshot:
    records = {0: PlacementRecord(end_lba=32768, owner="m1", generation=1),
               32768: PlacementRecord(end_lba=BLOCKS, owner="m2", generation=1)}  # fmt: skip
    return PartitionMap.from_records(BLOCKS, records.items()).snapshot()


def told(member: str, *ranges: RangeLoad) -> MemberLoad:
    return MemberLoad(member, 1, 1, ranges=ranges)


def test_neighbours_are_one_range_and_owners_cut_it() -> None:
    snapshot = made_map()
    touched = [RangeLoad("v", start, start + 2048, 10.0, 40960.0) for start in (0, 2048, 30720, 32768, 34816)]
    flows = range_flows({"m1": told("m1", *touched)}, {"v": (snapshot, 512)}.get)
    assert [(one.start_lba, one.end_lba, one.owner, one.iops) for one in flows] == [
        (0, 4096, "m1", 20.0),
        (30720, 32768, "m1", 10.0),
        (32768, 36864, "m2", 20.0),
    ]
    assert flows[0].size_bytes == 4096 * 512
    assert flows[0].bytes_each == 4096.0
    assert max(one.size_bytes for one in flows) <= RUN_BYTES_MAX


def test_what_others_ask_for_is_another_range() -> None:
    snapshot = made_map()
    loads = {
        "m1": told("m1", RangeLoad("v", 0, 2048, 10.0, 0.0), RangeLoad("v", 2048, 4096, 1.0, 0.0)),
        "m2": told("m2", RangeLoad("v", 2048, 4096, 30.0, 0.0)),
    }
    flows = range_flows(loads, {"v": (snapshot, 512)}.get)
    assert [(one.start_lba, one.by_ingress) for one in flows] == [(0, {"m1": 10.0}), (2048, {"m1": 1.0, "m2": 30.0})]


def test_volumes_that_are_gone_or_cut_are_left_out() -> None:
    loads = {"m1": told("m1", RangeLoad("gone", 0, 2048, 10.0, 0.0), RangeLoad("v", BLOCKS, BLOCKS + 1, 1.0, 0.0))}
    assert range_flows(loads, {"v": (made_map(), 512)}.get) == []


def test_holdings_of_some_members() -> None:
    maps = {"v": (made_map(), 512)}
    found = list(holdings(maps, maps.get, frozenset({"m2"})))
    assert [(one.start_lba, one.end_lba, one.owner, one.size_bytes) for one in found] == [
        (32768, BLOCKS, "m2", 16 << 20)
    ]
    assert list(holdings(maps, maps.get, frozenset({"m3"}))) == []
