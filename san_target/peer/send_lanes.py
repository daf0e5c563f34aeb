"""A link's credits, and the requests that wait for some. Pure."""

from collections import deque
from collections.abc import Callable, Sequence

from san_target.peer.frames import Answer, Operation, Request
from san_target.peer.lanes import LANE_OF_OPERATION, Lane, LaneLimits

Done = Callable[[Answer], None]
"""Whom to call with the answer to a request."""


class Waiter:
    """A request that waits for a connection or credit."""

    __slots__ = ("cost_bytes", "done", "request")

    def __init__(self, request: Request, done: Done, cost_bytes: int) -> None:
        self.request = request
        self.done = done
        self.cost_bytes = cost_bytes


class SendLane(Lane):
    """A lane of one connection, with those who wait for credit in it; they outlive the connection."""

    __slots__ = ("waiting",)

    def __init__(self, limits: LaneLimits, waiting: deque[Waiter]) -> None:
        super().__init__(limits)
        self.waiting = waiting


def granted(limits: Sequence[LaneLimits], waiting: Sequence[deque[Waiter]]) -> list[SendLane]:
    """The lanes of a new connection, indexed by operation; both arguments by `LaneName`."""
    lanes = [SendLane(*each) for each in zip(limits, waiting, strict=True)]
    return [lanes[LANE_OF_OPERATION[operation]] for operation in Operation]
