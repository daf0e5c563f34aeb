"""The partition map against the plainest model there is: one placement per block."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from san_target.metadata.schema import PlacementRecord
from san_target.volume.partition_map import PartitionMap, PartitionMapError, Placement, Segment

BLOCKS = 40
placements = st.builds(
    Placement,
    owner=st.sampled_from("abc"),
    copies=st.sampled_from([(), ("d",)]),
    joining=st.sampled_from(["", "e"]),
    generation=st.integers(1, 2),
)
ranges = st.tuples(st.integers(0, BLOCKS - 1), st.integers(1, BLOCKS)).map(
    lambda pair: (pair[0], min(BLOCKS, pair[0] + pair[1]))
)
replacements = st.lists(st.tuples(ranges, placements), max_size=12)


def build(first: Placement, changes) -> tuple[PartitionMap, list[Placement]]:
    volume_map, model = PartitionMap(BLOCKS, first), [first] * BLOCKS
    for (start, end), placement in changes:
        volume_map.replace(start, end, placement)
        model[start:end] = [placement] * (end - start)
    return volume_map, model


def check(volume_map: PartitionMap, model: list[Placement]) -> None:
    snapshot = volume_map.snapshot()
    assert [snapshot.find(lba) for lba in range(len(model))] == model
    assert snapshot.starts[0] == 0
    assert snapshot.ends == (*snapshot.starts[1:], len(model))
    assert snapshot.blocks == volume_map.blocks == len(model)


@given(placements, replacements)
def test_replacing_is_what_it_does_to_each_block(first, changes) -> None:
    volume_map, model = build(first, changes)
    check(volume_map, model)
    held = volume_map.snapshot().placements
    assert all(left != right for left, right in itertools.pairwise(held))


@given(placements, replacements, ranges)
def test_segments_cover_the_range_in_order(first, changes, wanted) -> None:
    volume_map, model = build(first, changes)
    start, end = wanted
    segments = volume_map.snapshot().segments(start, end - start)
    blocks = [(part.owner, part.generation) for part in segments for _lba in range(part.blocks)]
    assert blocks == [(placement.owner, placement.generation) for placement in model[start:end]]
    assert [part.lba for part in segments] == [
        start + sum(p.blocks for p in segments[:i]) for i in range(len(segments))
    ]
    assert all(
        (left.owner, left.generation) != (right.owner, right.generation) for left, right in itertools.pairwise(segments)
    )


@given(placements, replacements)
def test_records_bring_the_same_map_back(first, changes) -> None:
    volume_map, model = build(first, changes)
    records = volume_map.records()
    check(PartitionMap.from_records(BLOCKS, reversed(records.items())), model)


@given(placements, replacements, ranges, placements)
def test_a_change_names_the_keys_it_touches(first, changes, wanted, placement) -> None:
    volume_map, _model = build(first, changes)
    stored = volume_map.records()
    change = volume_map.replace(*wanted, placement)
    for start in change.removed:
        del stored[start]
    now = volume_map.records()
    for start in change.written:
        assert stored.get(start) != now[start]
        stored[start] = now[start]
    assert stored == now


@given(placements, replacements, st.integers(1, 2 * BLOCKS), placements)
def test_resizing_cuts_or_extends(first, changes, blocks, placement) -> None:
    volume_map, model = build(first, changes)
    cut = volume_map.snapshot().resized(blocks)
    stored = volume_map.records()
    change = volume_map.resize(blocks, placement)
    check(volume_map, (model + [placement] * BLOCKS)[:blocks])
    for start in change.removed:
        del stored[start]
    stored.update({start: volume_map.records()[start] for start in change.written})
    assert stored == volume_map.records()
    assert [cut.find(lba) for lba in range(blocks)] == (model + [model[-1]] * BLOCKS)[:blocks]


@given(placements, replacements)
def test_a_snapshot_never_changes(first, changes) -> None:
    volume_map, model = build(first, changes)
    snapshot = volume_map.snapshot()
    assert volume_map.snapshot() is snapshot
    volume_map.replace(0, BLOCKS, Placement("z"))
    assert [snapshot.find(lba) for lba in range(BLOCKS)] == model


@given(placements, replacements, st.data())
def test_a_gap_or_an_overlap_is_refused(first, changes, data) -> None:
    volume_map, _model = build(first, changes)
    records = volume_map.records()
    start = data.draw(st.sampled_from(sorted(records)))
    record = records[start]
    end = data.draw(st.integers(0, BLOCKS + 5).filter(lambda end: end != record.end_lba))
    records[start] = PlacementRecord(end_lba=end, owner=record.owner, generation=record.generation)
    with pytest.raises(PartitionMapError):
        PartitionMap.from_records(BLOCKS, records.items())


def test_neighbours_that_were_stored_apart_stay_apart_but_are_one_segment() -> None:
    record = PlacementRecord(end_lba=10, owner="a", generation=1)
    other = PlacementRecord(end_lba=20, owner="a", generation=1)
    snapshot = PartitionMap.from_records(20, [(0, record), (10, other)]).snapshot()
    assert snapshot.starts == (0, 10)
    assert snapshot.segments(5, 10) == [Segment("a", 5, 10, 1)]


def test_an_empty_map_is_refused() -> None:
    with pytest.raises(PartitionMapError):
        PartitionMap.from_records(10, [])
