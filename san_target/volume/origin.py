"""On whose behalf a volume is asked, and what must still hold when the request is carried out.

A command is judged when it comes, and may then wait: for a lock, a thread, another member. What it was judged by can
change meanwhile (a reservation was taken, its session ended, its initiator was moved elsewhere). So a request carries
what it was judged by, and it is looked at again at execution, at the owner of the blocks, under the range lock.

It travels as a context variable: whatever a command does, in however many steps, it does as its own task.
"""

from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

from san_target.volume.device import Unavailable


class Overtaken(Unavailable):
    """What a request was judged by does not hold any more; it was not carried out.

    outcome: how its command ends by what holds now (a `scsi.command.Outcome`); None: BUSY.
    """

    def __init__(self, message: str, outcome: object = None) -> None:
        super().__init__(message)
        self.outcome = outcome


@dataclass(slots=True)
class Origin:
    """A command of an initiator.

    volume_id     of the volume that it was given to
    epoch         of the unit's state (reservations, resets) that it was judged by
    heard_s       when its initiator was last heard, in the loop's time
    judge_again   asked with the epoch to reach: judges by the state of then, and returns its epoch; Overtaken or what
                  the unit makes of it, if the command is not to go on
    wanted        whether it is still to be carried out: neither aborted nor of a session that has ended
    hear_again    asks the initiator for a sign of life, and returns when it came; Overtaken if none comes
    """

    volume_id: str
    epoch: int
    heard_s: float
    judge_again: Callable[[int], Awaitable[int]]
    hear_again: Callable[[], Awaitable[float]]
    wanted: Callable[[], bool]

    def require_wanted(self) -> None:
        """Before each attempt but the first: nothing is begun any more for a fenced nexus. Overtaken."""
        if not self.wanted():
            raise Overtaken("its command was aborted")


ORIGIN: Final[ContextVar[Origin | None]] = ContextVar("origin", default=None)
"""None: the member's own work (a SANITIZE, a flush at its end)."""

CHECK: Final[ContextVar[Callable[[], None] | None]] = ContextVar("check", default=None)
"""Called under the range lock, just before a request is carried out; raises Overtaken."""
