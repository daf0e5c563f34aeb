"""What is served here follows from the map and from what the pool holds, both."""

import pytest

from san_target.storage.records import HeldRange
from san_target.volume.device import MediumError, NotAtomic, Unavailable
from san_target.volume.partition_map import LOST, PartitionMap, Placement, Segment
from san_target.volume.router import Router, Served, uncut
from tests.unit.volume.kit import make_volume, run

MINE, THEIRS = Placement("a", generation=3), Placement("b", generation=4)


def snapshot(blocks: int = 100):
    volume_map = PartitionMap(blocks, MINE)
    volume_map.replace(40, 60, THEIRS)
    return volume_map.snapshot()


def test_a_whole_volume_that_is_owned_and_held_needs_no_look_up() -> None:
    router = Router(PartitionMap(100, MINE).snapshot(), "a", [HeldRange(0, 50, 3), HeldRange(50, 100, 3)])
    assert router.whole
    assert router.serves(0, 100)


def test_only_what_is_owned_and_held_is_served() -> None:
    router = Router(snapshot(), "a", [HeldRange(0, 30, 3), HeldRange(35, 100, 3)])
    assert not router.whole
    assert router.served == (Served(0, 30), Served(35, 40), Served(60, 100))
    assert router.serves(0, 30)
    assert router.serves(60, 40)
    for lba, blocks in ((0, 31), (30, 1), (34, 2), (40, 1), (39, 2), (59, 2)):
        assert not router.serves(lba, blocks)


def test_segments_name_the_owners() -> None:
    router = Router(snapshot(), "a", [HeldRange(0, 100, 3)])
    assert router.segments(30, 40) == [Segment("a", 30, 10, 3), Segment("b", 40, 20, 4), Segment("a", 60, 10, 3)]
    assert router.segments(45, 5) == [Segment("b", 45, 5, 4)]


def test_blocks_without_a_record_are_lost_and_not_zeros() -> None:
    router = Router(PartitionMap(100, MINE).snapshot(), "a", [HeldRange(0, 30, 3)])
    refusal = router.refusal(20, 20)
    assert isinstance(refusal, MediumError)
    assert refusal.lba == 30


@pytest.mark.parametrize("held", [HeldRange(0, 100, 2), HeldRange(0, 100, 3, "receiving")])
def test_another_generation_or_state_may_be_served_later(held: HeldRange) -> None:
    router = Router(PartitionMap(100, MINE).snapshot(), "a", [held])
    assert not router.serves(0, 1)
    assert isinstance(router.refusal(0, 1), Unavailable)


def test_blocks_are_served_only_under_their_own_generation() -> None:
    volume_map = PartitionMap(100, MINE)
    volume_map.replace(40, 60, Placement("a", generation=4))
    router = Router(volume_map.snapshot(), "a", [HeldRange(0, 40, 3), HeldRange(40, 60, 4), HeldRange(60, 90, 3)])
    assert router.serves(0, 90)
    assert router.serves_under(0, 40, 3)
    assert router.serves_under(40, 20, 4)
    for lba, blocks, generation in ((0, 41, 3), (39, 1, 4), (40, 1, 3), (60, 31, 3), (30, 60, 3), (99, 2, 3)):
        assert not router.serves_under(lba, blocks, generation)


def test_what_is_changed_as_a_whole_goes_by_its_youngest_generation() -> None:
    volume_map = PartitionMap(100, MINE)
    volume_map.replace(40, 60, Placement("a", generation=4))
    held = [HeldRange(0, 40, 3), HeldRange(40, 60, 4), HeldRange(60, 90, 3)]
    router = Router(volume_map.snapshot(), "a", held)
    assert uncut(router.segments(30, 20)) == [Segment("a", 30, 20, 4)]
    assert router.serves_up_to(30, 20, 4)
    assert router.serves_up_to(30, 10, 3)
    for lba, blocks, generation in ((30, 20, 3), (30, 20, 5), (30, 10, 4), (80, 20, 3)):
        assert not router.serves_up_to(lba, blocks, generation)
    # The older part has left and come back since: it is younger than all that was known before.
    volume_map.replace(0, 40, Placement("a", generation=9))
    returned = Router(volume_map.snapshot(), "a", [HeldRange(0, 40, 9), *held[1:]])
    assert not returned.serves_up_to(30, 20, 4)


def test_what_several_have_is_not_changed_as_a_whole() -> None:
    router = Router(snapshot(), "a", [HeldRange(0, 100, 3)])
    with pytest.raises(NotAtomic, match="blocks 30\\+40 have several owners"):
        uncut(router.segments(30, 40))
    lost = PartitionMap(100, MINE)
    lost.replace(40, 60, Placement(LOST, generation=4))
    parts = lost.snapshot().segments(30, 40)
    assert uncut(parts) == parts  # each says for itself what became of it


def test_what_was_placed_here_is_not_lost_by_an_older_map() -> None:
    async def work() -> None:
        volume = make_volume()
        old = volume.snapshot
        elsewhere = Placement("b", generation=7)
        volume.place(256, 512, elsewhere, volume.local.router.held, 9)
        assert volume.snapshot.find(300) == elsewhere
        assert volume.revision == 9, "who asks by an older map must hear of this one"
        for revision in (5, 8):
            volume.update(old, volume.local.router.held, revision)
            assert volume.snapshot.find(300) == elsewhere, "the store has not told of it yet"
            assert not volume.local.router.serves(300, 1)
        await volume.resize(400, old.resized(400), (HeldRange(0, 400, 1),), 8)
        assert volume.snapshot.find(300) == elsewhere
        volume.update(old.resized(400), (HeldRange(0, 400, 1),), 10)
        assert volume.snapshot.find(300) == Placement("a", generation=1), "a later revision says all"

    run(work())
