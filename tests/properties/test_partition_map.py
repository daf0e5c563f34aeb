"""The partition map against the plainest model there is: one placement per block."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from san_target.metadata.schema import PlacementRecord
from san_target.volume import partition_map
from san_target.volume.partition_map import MapSnapshot, PartitionMap, PartitionMapError, Placement, Segment
from san_target.volume.stored_map import StoredMap

BLOCKS = 40
placements = st.builds(
    Placement,
    owner=st.sampled_from(["a", "b", "c", ""]),
    copies=st.sampled_from([(), ("d",)]),
    joining=st.sampled_from(["", "e"]),
    generation=st.integers(1, 2),
)
ranges = st.tuples(st.integers(0, BLOCKS - 1), st.integers(1, BLOCKS)).map(
    lambda pair: (pair[0], min(BLOCKS, pair[0] + pair[1]))
)
replacements = st.lists(st.tuples(ranges, placements), max_size=12)


@pytest.fixture(autouse=True, scope="module", params=[2, 512])
def chunk_ranges(request: pytest.FixtureRequest):
    """Tiny chunks, which every change cuts, joins and shares; and the real ones, of which a small map has one."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(partition_map, "CHUNK_RANGES", request.param)
        yield request.param


def as_kept(snapshot: MapSnapshot) -> None:
    """What a snapshot promises of its chunks."""
    assert snapshot.firsts == tuple(chunk.starts[0] for chunk in snapshot.chunks)
    assert all(len(chunk.starts) == len(chunk.ends) == len(chunk.placements) > 0 for chunk in snapshot.chunks)
    assert snapshot.ends == (*snapshot.starts[1:], snapshot.blocks)
    assert [one.start for one in snapshot.ranges()] == list(snapshot.starts)
    assert snapshot.holders == frozenset().union(*(one.holders for one in snapshot.placements))
    assert len(snapshot) == len(snapshot.starts)
    assert snapshot.lost_blocks == sum(one.end - one.start for one in snapshot.ranges() if not one.placement.owner)


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
    assert [snapshot.range_at(lba).placement for lba in range(len(model))] == model
    assert [volume_map.range_at(lba) for lba in snapshot.starts] == list(snapshot.ranges())
    as_kept(snapshot)


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


@given(placements, replacements, st.integers(1, 2 * BLOCKS))
def test_a_snapshot_is_cut_or_extended(first, changes, blocks) -> None:
    volume_map, model = build(first, changes)
    cut = volume_map.snapshot().resized(blocks)
    as_kept(cut)
    assert [cut.find(lba) for lba in range(blocks)] == (model + [model[-1]] * BLOCKS)[:blocks]


@given(placements, replacements)
def test_a_snapshot_never_changes(first, changes) -> None:
    volume_map, model = build(first, changes)
    snapshot = volume_map.snapshot()
    assert volume_map.snapshot() is snapshot
    for number, lba in enumerate(range(0, BLOCKS, 3)):
        volume_map.replace(lba, lba + 1, Placement("y", generation=number))
        volume_map.snapshot()
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


@given(placements, replacements, st.lists(st.tuples(ranges, placements), min_size=1, max_size=8))
def test_snapshots_between_changes_are_what_one_at_the_end_is(first, changes, more) -> None:
    volume_map, model = build(first, changes)
    for (start, end), placement in more:
        volume_map.replace(start, end, placement)
        model[start:end] = [placement] * (end - start)
        check(volume_map, model)


def test_a_change_leaves_the_chunks_that_it_does_not_touch(chunk_ranges: int) -> None:
    count = 20 * chunk_ranges
    volume_map = PartitionMap(count, Placement("a"))
    for lba in range(count):
        volume_map.replace(lba, lba + 1, Placement("a", generation=lba))
    before = volume_map.snapshot()
    volume_map.replace(5, 6, Placement("b"))
    volume_map.replace(count - 1, count, Placement("b"))
    after = volume_map.snapshot()
    kept = {id(chunk) for chunk in before.chunks} & {id(chunk) for chunk in after.chunks}
    assert len(kept) >= len(before.chunks) - 4
    assert after.holders == {"a", "b"}


def test_chunks_are_joined_when_ranges_are(chunk_ranges: int) -> None:
    count = 20 * chunk_ranges
    volume_map = PartitionMap(count, Placement("a"))
    for lba in range(count):
        volume_map.replace(lba, lba + 1, Placement("a", generation=lba))
    volume_map.snapshot()
    for lba in range(count):
        volume_map.replace(lba, lba + 1, Placement("b"))
        if lba % 7 == 0:
            volume_map.snapshot()
    assert len(volume_map.snapshot().chunks) <= 4
    check(volume_map, [Placement("b")] * count)


# Maps as the store's keys say them ------------------------------------------------------------------------------------


def stored(volume_map: PartitionMap, revision: int = 1) -> StoredMap:
    made = StoredMap()
    for start, record in volume_map.records().items():
        made.append(start, record, revision)
        made.completed()
    return made


@given(placements, replacements, replacements)
def test_a_stored_map_follows_every_change_of_its_keys(first, changes, more) -> None:
    volume_map, _model = build(first, changes)
    followed = stored(volume_map)
    for revision, ((start, end), placement) in enumerate(more, start=2):
        change = volume_map.replace(start, end, placement)
        keys = {key: volume_map.record_at(key) for key in change.written} | dict.fromkeys(change.removed)
        followed.apply(keys, revision)
        assert followed.revision == revision
        assert followed.records() == volume_map.records()
        snapshot = followed.snapshot(BLOCKS)
        as_kept(snapshot)
        assert list(snapshot.ranges()) == list(volume_map.snapshot().ranges())
        assert followed.snapshot(BLOCKS) is snapshot


@given(placements, replacements, st.integers(1, BLOCKS))
def test_a_stored_map_is_shown_as_far_as_the_volume_reaches(first, changes, blocks) -> None:
    volume_map, model = build(first, changes)
    followed = stored(volume_map)
    cut = followed.snapshot(blocks)
    as_kept(cut)
    assert [cut.find(lba) for lba in range(blocks)] == model[:blocks]
    assert followed.snapshot(blocks) is cut
    with pytest.raises(PartitionMapError, match="ends at LBA"):
        followed.snapshot(BLOCKS + 1)


@given(placements, replacements, st.data())
def test_keys_that_make_no_map_are_kept_until_they_do(first, changes, data) -> None:
    """Whatever single change breaks the map: taking it back brings the map back."""
    volume_map, model = build(first, changes)
    followed = stored(volume_map)
    keys = volume_map.records()
    key = data.draw(st.integers(0, BLOCKS - 1), label="key")
    record = data.draw(
        st.none()
        | st.builds(PlacementRecord, end_lba=st.integers(0, BLOCKS + 5), owner=st.just("x"), generation=st.just(9)),
        label="record",
    )
    broken = dict(keys)
    if record is None:
        broken.pop(key, None)
    else:
        broken[key] = record
    followed.apply({key: record}, 2)
    assert followed.records() == broken
    try:
        expected = PartitionMap.from_records(max((one.end_lba for one in broken.values()), default=0), broken.items())
    except PartitionMapError:
        with pytest.raises(PartitionMapError):
            followed.whole()
    else:
        assert list(followed.whole().ranges()) == list(expected.snapshot().ranges())
    followed.apply({key: keys.get(key)}, 3)
    assert [followed.snapshot(BLOCKS).find(lba) for lba in range(BLOCKS)] == model


def test_no_keys_are_no_map() -> None:
    with pytest.raises(PartitionMapError, match="has no partition map"):
        StoredMap().snapshot(1)


@given(placements, replacements, st.integers(1, BLOCKS - 1))
def test_keys_read_with_a_gap_are_no_map(first, changes, gap) -> None:
    volume_map, _model = build(first, changes)
    volume_map.replace(gap, gap + 1, Placement("gap", generation=77))
    followed = StoredMap()
    for start, record in volume_map.records().items():
        if start != gap:
            followed.append(start, record, 1)
    end = max(record.end_lba for record in followed.records().values())
    if end == gap:
        assert followed.whole().blocks == gap
    else:
        with pytest.raises(PartitionMapError, match="gap or an overlap"):
            followed.whole()
    followed.apply({gap: volume_map.record_at(gap)}, 2)
    assert list(followed.snapshot(BLOCKS).ranges()) == list(volume_map.snapshot().ranges())
