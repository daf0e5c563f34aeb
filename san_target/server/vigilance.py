"""A member that stood still (SIGSTOP, a paused virtual machine, a loop that was held up) must not just go on.

What lies in its sockets may be old: its initiators may have gone elsewhere long ago, and what they wrote there since
must not be overwritten by what they had sent here before [23, 28]. And its lease may have ended meanwhile. Timers need
not run before what has arrived is handled, so both are looked at before each batch, by the clock that also counts while
a machine sleeps.
"""

from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Final

import structlog

if TYPE_CHECKING:
    from san_target.scsi.logical_unit import LogicalUnit

log = structlog.get_logger()

BEAT_S: Final = 0.25
STILL_S: Final = 2.0
"""From this on it stood still; not more than the age at which owners refuse the stamp of a request."""


class Vigilance:
    """guard: asked before each batch of an initiator; False: it must not be executed.

    clock: CLOCK_BOOTTIME seconds. lease_ends_s: by that clock. has_others: whether there are other members at all.
    units: those of this member. stood_still: called when it is found out; ends every session.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        lease_ends_s: Callable[[], float],
        has_others: Callable[[], bool],
        units: "Callable[[], Iterable[LogicalUnit]]",
        stood_still: Callable[[float], None],
    ) -> None:
        self._clock = clock
        self._lease_ends_s = lease_ends_s
        self._has_others = has_others
        self._units = units
        self._stood_still = stood_still
        self._beat_s = clock()
        self._lapsed = False
        self._quiet_until_s = float("-inf")

    def guard(self) -> bool:
        """(What it costs, each batch pays: so it is a look at the clock as long as nothing can have happened.)"""
        now_s = self._clock()
        return now_s <= self._quiet_until_s or self._look_closer(now_s)

    def look(self) -> None:
        """At once: the lease may have ended before its time."""
        self._look_closer(self._clock())

    async def beat(self, sleep: Callable[[float], Awaitable[None]]) -> None:
        while True:
            now_s = self._clock()
            self._look_still(now_s)
            self._look_closer(now_s)
            await sleep(BEAT_S)

    def _look_closer(self, now_s: float) -> bool:
        """May a batch be executed?"""
        if (now_s > self._lease_ends_s()) is not self._lapsed:
            self._lapsed = not self._lapsed
            for unit in self._units():
                if unit.reservations.bind_to_lease:
                    unit.refresh_all()
        stood_still = now_s - self._beat_s > STILL_S and self._look_still(now_s)
        self._quiet_until_s = float("-inf") if self._lapsed else min(self._beat_s + STILL_S, self._lease_ends_s())
        return not stood_still

    def _look_still(self, now_s: float) -> bool:
        """Did it stand still, where that matters?"""
        still_s, self._beat_s = now_s - self._beat_s, now_s
        if still_s <= STILL_S or not self._has_others():
            return False
        log.warning(
            "this member stood still; its sessions end, and their initiators come back", seconds=round(still_s, 1)
        )
        self._stood_still(still_s)
        return True
