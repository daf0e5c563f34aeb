"""What the timers of a path look at."""

import asyncio
from typing import Any


class Watch:
    """Of one path: when it was last heard, how old its oldest command is, who waits for an answer.

    batches: how many receives there were at the last tick; step: how far the escalation for a command has gone.
    """

    __slots__ = (
        "batches",
        "logout_by_s",
        "oldest_itt",
        "oldest_since",
        "pinged",
        "quiet_since",
        "step",
        "waiters",
    )

    def __init__(self) -> None:
        self.waiters: set[asyncio.Future[Any]] = set()
        self.restart(0.0)

    def restart(self, now: float) -> None:
        self.batches = -1
        self.quiet_since = now
        self.pinged = False
        self.oldest_itt = 0
        self.oldest_since = now
        self.step = 0
        self.logout_by_s = float("inf")

    def fail_waiters(self, error: Exception) -> None:
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_exception(error)
