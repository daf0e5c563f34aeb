"""The table of a piece's attempt: every pair of phase and event, and what must hold on every way through it."""

from itertools import product

import pytest

from san_target.group.migration import (
    BACK_OFF_MAX_S,
    ENDS,
    FAILURES_MAX,
    FIRST,
    TABLE,
    UNSURE,
    Do,
    Event,
    Phase,
    Piece,
    back_off_s,
    largest_piece,
    next_piece,
    next_step,
    pieces_left,
    units,
)
from san_target.metadata.schema import MigrationRecord
from san_target.volume.partition_map import PartitionMap, Placement

# Phase -> event -> the next phase. What is not here cannot happen.
EXPECTED = {
    Phase.PREPARING: {
        Event.DONE: Phase.DRAINING,
        Event.FAILED: Phase.GIVING_UP,
        Event.STOPPED: Phase.GIVING_UP,
    },
    Phase.DRAINING: {
        Event.DONE: Phase.COPYING,
        Event.FAILED: Phase.GIVING_UP,
        Event.STOPPED: Phase.GIVING_UP,
    },
    Phase.COPYING: {
        Event.DONE: Phase.SEALING,
        Event.FAILED: Phase.GIVING_UP,
        Event.STOPPED: Phase.GIVING_UP,
    },
    Phase.SEALING: {
        Event.DONE: Phase.COMMITTING,
        Event.FAILED: Phase.GIVING_UP,
        Event.STOPPED: Phase.GIVING_UP,
    },
    Phase.COMMITTING: {
        Event.COMMITTED: Phase.HANDING_OVER,
        Event.REFUSED: Phase.GIVING_UP,
        Event.CONFLICT: Phase.SEALING,
        Event.UNANSWERED: Phase.IN_DOUBT,
    },
    Phase.IN_DOUBT: {
        Event.COMMITTED: Phase.HANDING_OVER,
        Event.REFUSED: Phase.GIVING_UP,
        Event.CONFLICT: Phase.GIVING_UP,
        Event.UNANSWERED: Phase.IN_DOUBT,
    },
    Phase.HANDING_OVER: {Event.DONE: Phase.MOVED, Event.FAILED: Phase.HANDING_OVER},
    Phase.GIVING_UP: {Event.DONE: Phase.GIVEN_UP, Event.FAILED: Phase.GIVEN_UP},
    Phase.MOVED: {},
    Phase.GIVEN_UP: {},
}


@pytest.mark.parametrize(("phase", "event"), list(product(Phase, Event)))
def test_every_pair(phase: Phase, event: Event) -> None:
    expected = EXPECTED[phase].get(event)
    if expected is None:
        with pytest.raises(AssertionError, match=f"{event.name} while {phase.name}"):
            next_step(phase, event)
    else:
        assert next_step(phase, event).phase is expected


class Walk:
    """One way through the table: what is true after the instructions so far."""

    def __init__(self) -> None:
        self.done: set[Do] = set()
        self.locked = self.mirrored = self.mandatory = self.closed = self.routed = self.sent = False

    def carry_out(self, instruction: Do) -> None:
        match instruction:
            case Do.MIRROR:
                assert Do.PREPARE in self.done
                self.mirrored = True
            case Do.COPY:
                assert self.mirrored, "a change could be missed"
                assert Do.DRAIN in self.done
            case Do.LOCK:
                self.locked = True
            case Do.SEAL:
                assert self.locked
                assert Do.COPY in self.done
            case Do.REQUIRE:
                assert self.locked
                self.mandatory = True
            case Do.COMMIT:
                assert self.locked
                assert self.mandatory
                assert Do.SEAL in self.done
                assert Do.PLAN in self.done
                self.sent = True
            case Do.UNLOCK:
                assert not self.sent or self.mandatory or self.routed, "it may be the destination's"
                self.locked = False
            case Do.CLOSE:
                self.closed = True
            case Do.HANDOVER:
                assert self.closed
                assert self.sent
                assert self.locked or self.routed, "changes may still be under way to the destination"
            case Do.ROUTE:
                assert self.sent
                assert self.locked | self.routed
                self.routed = True
            case Do.RELEASE:
                assert not self.routed
                self.mirrored = self.mandatory = self.sent = False
        self.done.add(instruction)


def ways(phase: Phase, length: int) -> list[list[Event]]:
    if length == 0 or not TABLE[phase]:
        return [[]]
    return [[event, *rest] for event, step in TABLE[phase].items() for rest in ways(step.phase, length - 1)]


def test_on_every_way_nothing_is_done_too_early() -> None:
    ends = set()
    for way in ways(FIRST.phase, 9):
        walk, step = Walk(), FIRST
        for event in [*way, None]:
            for instruction in step.instructions:
                walk.carry_out(instruction)
            if event is not None:
                step = next_step(step.phase, event)
        if step.phase in ENDS:
            ends.add(step.phase)
            assert not walk.locked
            assert walk.routed == (step.phase is Phase.MOVED)
    assert ends == ENDS


def test_unsure_is_exactly_what_lies_between_the_commit_and_its_outcome() -> None:
    sends = {step.phase for steps in TABLE.values() for step in steps.values() if Do.COMMIT in step.instructions}
    later = {step.phase for phase in sends for step in TABLE[phase].values()} - {Phase.GIVING_UP, Phase.SEALING}
    assert sends | later | {Phase.MOVED} == UNSURE


# --- Pieces -----------------------------------------------------------------------------------------------------------

PIECE = 8192
GENERATION = 2  # of the migration


def record(start: int = 0, end: int = 100_000) -> MigrationRecord:
    return MigrationRecord(id="1", volume_id="v", volume="d", start_lba=start, end_lba=end, source="a", destination="b")


def moved(blocks: int, *ranges: tuple[int, int]) -> PartitionMap:
    made = PartitionMap(blocks, Placement("a", generation=1))
    for start, end in ranges:
        made.replace(start, end, Placement("b", generation=2))
    return made


def test_pieces_end_at_multiples_of_their_size() -> None:
    assert next_piece(moved(100_000).snapshot(), record(), GENERATION, PIECE) == Piece(0, PIECE)
    assert next_piece(moved(100_000, (0, 2048)).snapshot(), record(), GENERATION, PIECE) == Piece(2048, PIECE)
    assert next_piece(moved(100_000, (0, 98_304)).snapshot(), record(), GENERATION, PIECE) == Piece(98_304, 100_000)
    assert next_piece(moved(100_000, (0, 100_000)).snapshot(), record(), GENERATION, PIECE) is None


def test_pieces_stay_in_the_range() -> None:
    assert next_piece(moved(100_000).snapshot(), record(2048, 4096), GENERATION, PIECE) == Piece(2048, 4096)
    assert next_piece(moved(100_000, (2048, 4096)).snapshot(), record(2048, 4096), GENERATION, PIECE) is None


def test_what_came_back_by_a_younger_decision_stays() -> None:
    came_back = moved(100_000, (0, PIECE))
    came_back.replace(0, PIECE, Placement("a", generation=3))
    snapshot = came_back.snapshot()
    assert next_piece(snapshot, record(), GENERATION, PIECE) == Piece(PIECE, 2 * PIECE)
    assert next_piece(snapshot, record(0, PIECE), GENERATION, PIECE) is None
    assert next_piece(snapshot, record(0, PIECE), 4, PIECE) == Piece(0, PIECE)
    assert pieces_left(snapshot, record(), GENERATION, PIECE) == 12
    cut = moved(100_000)
    cut.replace(PIECE, 2 * PIECE, Placement("a", generation=3))
    assert largest_piece(cut.snapshot(), record(), GENERATION, Piece(0, PIECE), 512) == Piece(0, PIECE)


def test_what_is_left_is_counted_in_pieces() -> None:
    assert pieces_left(moved(100_000).snapshot(), record(), GENERATION, PIECE) == 13
    assert pieces_left(moved(100_000, (0, PIECE)).snapshot(), record(), GENERATION, PIECE) == 12
    assert units(Piece(0, 5 * PIECE), PIECE) == 5
    assert units(Piece(2048, 4096), PIECE) == 1


def test_a_hole_may_reach_to_the_end_of_what_is_owned() -> None:
    snapshot = moved(100_000, (50_000, 60_000)).snapshot()
    assert largest_piece(snapshot, record(), GENERATION, Piece(0, PIECE), 512) == Piece(0, 50_000)


def test_rests_grow_and_are_bounded() -> None:
    rests = [back_off_s(failures) for failures in range(40)]
    assert rests[FAILURES_MAX - 1] == 0.0
    assert rests == sorted(rests)
    assert rests[-1] == BACK_OFF_MAX_S
