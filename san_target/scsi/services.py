"""What a logical unit needs from its surroundings; `server` provides it, tests fake it."""

from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from san_target.metadata.schema import ReservationsRecord
    from san_target.scsi.logical_unit import LogicalUnit


@dataclass(frozen=True, slots=True)
class Services:
    """spawn: run a coroutine in the background, its failure logged. save_reservations: returns once durable, and raises
    `volume.device.Unavailable` where the record was not stored, or may not have been.

    unit_of: the logical unit with this designator (the bytes of its NAA designator in VPD page 83), or None if this
    member does not serve it. now: monotonic seconds. sleep: waits that many seconds (pacing of background work).
    sanitize_bytes_per_s: how fast a SANITIZE overwrites, so that it leaves the disks to others.
    """

    spawn: Callable[[Coroutine[Any, Any, None]], object]
    save_reservations: "Callable[[ReservationsRecord], Awaitable[None]]"
    unit_of: "Callable[[bytes], LogicalUnit | None]"
    now: Callable[[], float]
    sleep: Callable[[float], Awaitable[None]]
    sanitize_bytes_per_s: int = 64 << 20
