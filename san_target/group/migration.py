"""The rules of migrations: what is done with a piece, step by step, whatever happens. Pure.

A piece is moved in an attempt. The table below says for each phase of it, and everything that can happen then, what is
done next. Whoever carries it out (`group.migrator`) does the instructions of a step in order; the last one ends in the
next event, and one that goes wrong in FAILED at once.
"""

from collections.abc import Iterator, Mapping
from enum import Enum, auto
from typing import Final, NamedTuple

from san_target.metadata.schema import MigrationRecord
from san_target.volume.partition_map import MapSnapshot

PIECE_BYTES: Final = 4 << 20
HOLE_BYTES_MAX: Final = 16 << 30
"""A piece without any data may be this large: it costs what one of the ordinary size does."""
FAILURES_MAX: Final = 3
"""So many attempts in a row may fail before the migration rests for a while, and tells why."""
BACK_OFF_MIN_S: Final = 1.0
BACK_OFF_MAX_S: Final = 60.0

RUN, PAUSE, CANCEL = "run", "pause", "cancel"
WAITING, RUNNING, RETRYING, PAUSED, DONE, CANCELLED = "waiting", "running", "retrying", "paused", "done", "cancelled"
FINISHED: Final = frozenset({DONE, CANCELLED})


class Phase(Enum):
    """PREPARING     the destination empties the piece
    DRAINING      changes are mirrored from now on; those begun before end
    COPYING       what was there before goes over, under locks
    SEALING       the piece is locked; the destination makes it durable
    COMMITTING    the store is asked to name the destination as the owner
    IN_DOUBT      nobody knows whether it did: changes must reach both, and the lease must hold
    HANDING_OVER  it did; the destination is told to serve
    GIVING_UP     it surely did not, nor will
    MOVED, GIVEN_UP   the ends
    """

    PREPARING = auto()
    DRAINING = auto()
    COPYING = auto()
    SEALING = auto()
    COMMITTING = auto()
    IN_DOUBT = auto()
    HANDING_OVER = auto()
    GIVING_UP = auto()
    MOVED = auto()
    GIVEN_UP = auto()


class Event(Enum):
    """DONE: what was asked is done. FAILED: it is not, or the attempt is spoiled. STOPPED: the operator's wish.

    COMMITTED, REFUSED: the store surely has (has not, and never will have) taken the commit. CONFLICT: the same as
    REFUSED, since something else was changed meanwhile. UNANSWERED: nobody knows.
    """

    DONE = auto()
    FAILED = auto()
    STOPPED = auto()
    COMMITTED = auto()
    REFUSED = auto()
    CONFLICT = auto()
    UNANSWERED = auto()


class Do(Enum):
    """PREPARE  ask the destination to empty the piece, once frames of earlier attempts have ended
    MIRROR   from now on
    DRAIN    until changes that were begun before have ended
    COPY     all data, block by block under the range lock
    PLAN     look at what the commit will compare
    LOCK     nobody uses the piece until UNLOCK; which does nothing if it is not locked
    SEAL     at the destination; fails if the attempt is spoiled
    REQUIRE  changes must reach the destination to be acknowledged, and are served while the lease holds
    COMMIT   in the store
    RESOLVE  find out: see the nonce, or make sure that the commit cannot come true
    CLOSE    nothing of the piece is served here any more
    HANDOVER to the destination
    ROUTE    requests go to the destination
    RELEASE  the mirror is off, and the piece stays
    CANCEL   tell the destination
    """

    PREPARE = auto()
    MIRROR = auto()
    DRAIN = auto()
    COPY = auto()
    PLAN = auto()
    LOCK = auto()
    UNLOCK = auto()
    SEAL = auto()
    REQUIRE = auto()
    COMMIT = auto()
    RESOLVE = auto()
    CLOSE = auto()
    HANDOVER = auto()
    ROUTE = auto()
    RELEASE = auto()
    CANCEL = auto()


class Step(NamedTuple):
    phase: Phase
    instructions: tuple[Do, ...]


_GIVE_UP: Final = Step(Phase.GIVING_UP, (Do.RELEASE, Do.UNLOCK, Do.CANCEL))

FIRST: Final = Step(Phase.PREPARING, (Do.PREPARE,))

TABLE: Final[Mapping[Phase, Mapping[Event, Step]]] = {
    Phase.PREPARING: {
        Event.DONE: Step(Phase.DRAINING, (Do.MIRROR, Do.DRAIN)),
        Event.FAILED: _GIVE_UP,
        Event.STOPPED: _GIVE_UP,
    },
    Phase.DRAINING: {
        Event.DONE: Step(Phase.COPYING, (Do.COPY,)),
        Event.FAILED: _GIVE_UP,
        Event.STOPPED: _GIVE_UP,
    },
    Phase.COPYING: {
        Event.DONE: Step(Phase.SEALING, (Do.PLAN, Do.LOCK, Do.SEAL)),
        Event.FAILED: _GIVE_UP,
        Event.STOPPED: _GIVE_UP,
    },
    Phase.SEALING: {
        Event.DONE: Step(Phase.COMMITTING, (Do.REQUIRE, Do.COMMIT)),
        Event.FAILED: _GIVE_UP,
        Event.STOPPED: _GIVE_UP,
    },
    Phase.COMMITTING: {
        Event.COMMITTED: Step(Phase.HANDING_OVER, (Do.CLOSE, Do.HANDOVER)),
        Event.REFUSED: _GIVE_UP,
        # Neighbours that move at the same time write the same keys. The piece is still sealed, and locked.
        Event.CONFLICT: Step(Phase.SEALING, (Do.PLAN,)),
        # Initiators do not wait for a store.
        Event.UNANSWERED: Step(Phase.IN_DOUBT, (Do.UNLOCK, Do.RESOLVE)),
    },
    Phase.IN_DOUBT: {
        Event.COMMITTED: Step(Phase.HANDING_OVER, (Do.CLOSE, Do.LOCK, Do.HANDOVER)),
        Event.REFUSED: _GIVE_UP,
        Event.CONFLICT: _GIVE_UP,
        Event.UNANSWERED: Step(Phase.IN_DOUBT, (Do.RESOLVE,)),
    },
    Phase.HANDING_OVER: {
        Event.DONE: Step(Phase.MOVED, (Do.ROUTE, Do.UNLOCK)),
        # The destination is the owner, whether it knows or not: requests wait for it, not for us.
        Event.FAILED: Step(Phase.HANDING_OVER, (Do.ROUTE, Do.UNLOCK, Do.HANDOVER)),
    },
    Phase.GIVING_UP: {
        Event.DONE: Step(Phase.GIVEN_UP, ()),
        Event.FAILED: Step(Phase.GIVEN_UP, ()),  # the next PREPARE, or the end of the migration, will tell it
    },
    Phase.MOVED: {},
    Phase.GIVEN_UP: {},
}

ENDS: Final = frozenset({Phase.MOVED, Phase.GIVEN_UP})

UNSURE: Final = frozenset({Phase.COMMITTING, Phase.IN_DOUBT, Phase.HANDING_OVER, Phase.MOVED})
"""If the source's life ends now, the piece must not be served before the store was asked."""


def next_step(phase: Phase, event: Event) -> Step:
    """AssertionError: this cannot happen then."""
    step = TABLE[phase].get(event)
    if step is None:
        raise AssertionError(f"{event.name} while {phase.name}")
    return step


# --- Pieces -----------------------------------------------------------------------------------------------------------


class Piece(NamedTuple):
    """Blocks [start, end)."""

    start: int
    end: int


def owned(snapshot: MapSnapshot, member: str, start: int, end: int) -> Iterator[Piece]:
    """What the member owns of [start, end)."""
    end = min(end, snapshot.blocks)
    for found in snapshot.ranges(start) if start < end else ():
        if found.start >= end:
            return
        if found.placement.owner == member:
            yield Piece(max(found.start, start), min(found.end, end))


def to_move(snapshot: MapSnapshot, record: MigrationRecord, generation: int, start: int) -> Iterator[Piece]:
    """What a migration, which was created at the revision `generation`, has to move from `start` on.

    Not what came to its source by a younger decision. It would come back under an older generation: two migrations in
    opposite directions would never end, and whoever gave it up could not tell that it is gone.
    """
    for piece in owned(snapshot, record.source, start, record.end_lba):
        if snapshot.find(piece.start).generation < generation:
            yield piece


def next_piece(snapshot: MapSnapshot, record: MigrationRecord, generation: int, piece_blocks: int) -> Piece | None:
    """The next one to be moved; None: all are. Pieces end at multiples of their size, so that they do not fray."""
    for first in to_move(snapshot, record, generation, record.start_lba):
        return Piece(first.start, min(first.end, (first.start // piece_blocks + 1) * piece_blocks))
    return None


def largest_piece(
    snapshot: MapSnapshot, record: MigrationRecord, generation: int, piece: Piece, block_size: int
) -> Piece:
    """How far the piece might reach if there were no data in it."""
    for first in to_move(snapshot, record, generation, piece.start):
        if first.start == piece.start:
            return Piece(piece.start, min(first.end, piece.start + HOLE_BYTES_MAX // block_size))
        break
    return piece


def units(piece: Piece, piece_blocks: int) -> int:
    """How many pieces of the ordinary size that is."""
    return (piece.end - 1) // piece_blocks - piece.start // piece_blocks + 1


def pieces_left(snapshot: MapSnapshot, record: MigrationRecord, generation: int, piece_blocks: int) -> int:
    found = to_move(snapshot, record, generation, record.start_lba)
    return sum(units(piece, piece_blocks) for piece in found)


def back_off_s(failures: int) -> float:
    """How long to rest after so many failed attempts in a row."""
    if failures < FAILURES_MAX:
        return 0.0
    return float(min(BACK_OFF_MAX_S, BACK_OFF_MIN_S * 2 ** min(failures - FAILURES_MAX, 10)))
