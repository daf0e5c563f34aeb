"""What a logical unit needs from its surroundings; `server` provides it, tests fake it."""

from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from san_target.metadata.schema import ReservationsRecord
    from san_target.scsi.logical_unit import LogicalUnit


async def _alone(_what: int) -> None:
    """There are no other members."""


@dataclass(frozen=True, slots=True)
class Services:
    """spawn: run a coroutine in the background, its failure logged.

    save_reservations: stores a record that was made of the one of this epoch, and returns its own epoch once it is
    durable; raises `shared_state.Outdated` where another one was stored meanwhile, `volume.device.Unavailable` where it
    was not stored, or may not have been. before_change: asked before that; Unavailable where somebody who has to know
    cannot be asked; True: this change first keeps somebody out of the unit. everyone_has: returns when every other
    member has taken over the state of this epoch, and ended what it ends; Unavailable where one that lives cannot be
    asked. is_alone: no other member has to know of anything. may_serve: whether this member may still go by what it
    knows of the state; without its lease, others may have changed it. place: "member/incarnation".

    unit_of: the logical unit with this designator (the bytes of its NAA designator in VPD page 83), or None if this
    member does not serve it. now: monotonic seconds. sleep: waits that many seconds (pacing of background work).
    sanitize_bytes_per_s: how fast a SANITIZE overwrites, so that it leaves the disks to others.
    """

    spawn: Callable[[Coroutine[Any, Any, None]], object]
    save_reservations: "Callable[[ReservationsRecord, int], Awaitable[int]]"
    unit_of: "Callable[[bytes], LogicalUnit | None]"
    now: Callable[[], float]
    sleep: Callable[[float], Awaitable[None]]
    sanitize_bytes_per_s: int = 64 << 20
    before_change: Callable[[bool], Awaitable[None]] = _alone
    everyone_has: Callable[[int], Awaitable[None]] = _alone
    may_serve: Callable[[], bool] = lambda: True
    is_alone: Callable[[], bool] = lambda: True
    place: Callable[[], str] = lambda: ""
