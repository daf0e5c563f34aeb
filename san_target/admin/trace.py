"""A bounded trace of the PDUs of a session: a ring of basic header segments, made readable only when asked for.

While no trace is on, the connection tests one attribute that is None. While one is on, a PDU costs one copy of 48
bytes; the oldest entries fall out when the ring is full. Data segments are never kept, hence no user data and no
secrets.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from msgspec import Struct

from san_target.admin.trace_text import describe
from san_target.group.errors import Conflict, NotFound
from san_target.wire.opcodes import BHS_BYTES

if TYPE_CHECKING:
    from san_target.admin.service import MemberService

ENTRIES_MAX = 4096
TRACES_MAX = 8
# A page is decoded in one go on the member's event loop: about 20 us an entry.
PAGE_ENTRIES_MAX = 128


class TraceEntry(Struct, kw_only=True, frozen=True):
    """One PDU. number: 1 for the first of the trace; direction: received (by the target) | sent; time: UTC text."""

    number: int
    time: str
    direction: str
    pdu: str
    text: str


class Trace(Struct, kw_only=True, frozen=True):
    """A part of a trace. next: the `after` of the following request; dropped: entries lost since the given `after`."""

    session: str
    active: bool
    seconds_left: float
    entries: tuple[TraceEntry, ...]
    next: int
    dropped: int


@dataclass(slots=True)
class Ring:
    """The entries of one trace, numbered from 1. ends_at: on the tracer's clock, in seconds."""

    ends_at: float
    active: bool = True
    count: int = 0
    entries: deque[tuple[float, str, bytes]] = field(default_factory=lambda: deque(maxlen=ENTRIES_MAX))

    def add(self, at: float, direction: str, header: bytes) -> None:
        self.count += 1
        self.entries.append((at, direction, header))

    def page(self, after: int) -> tuple[list[tuple[int, float, str, bytes]], int]:
        """At most PAGE_ENTRIES_MAX entries with a number greater than `after`, and how many such are lost."""
        first_kept = self.count - len(self.entries) + 1
        start = max(after + 1, first_kept)
        stop = min(self.count + 1, start + PAGE_ENTRIES_MAX)
        page = [(number, *self.entries[number - first_kept]) for number in range(start, stop)]
        return page, max(0, start - after - 1)


class Tracer:
    """The traces of one member, at most TRACES_MAX; finished ones stay readable until their place is needed.

    clock: seconds, for the end of a trace; wall_clock: seconds since 1970, for the time of an entry.
    """

    def __init__(
        self,
        service: "MemberService",
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._service = service
        self._clock = clock
        self._wall_clock = wall_clock
        self._rings: dict[str, Ring] = {}

    def start(self, session_id: str, seconds: float) -> Trace:
        """Trace a session from now on, for `seconds`; a trace that is on already begins anew.

        NotFound: no such session. Conflict: too many traces are on.
        """
        self._expire()
        if session_id not in self._rings and len(self._rings) >= TRACES_MAX:
            self._make_room()
        ring = Ring(ends_at=self._clock() + seconds)
        self._service.set_trace(session_id, self._sink(session_id, ring))
        self._rings[session_id] = ring
        return self.read(session_id, 0)

    def stop(self, session_id: str) -> None:
        """End a trace; what it holds stays readable. NotFound: the session was never traced."""
        self._end(session_id, self._ring(session_id))

    def read(self, session_id: str, after: int) -> Trace:
        """The entries that follow number `after`. NotFound: the session was never traced."""
        self._expire()
        ring = self._ring(session_id)
        page, dropped = ring.page(after)
        entries = []
        for number, at, direction, header in page:
            name, text = describe(header)
            entries.append(TraceEntry(number=number, time=utc_text(at), direction=direction, pdu=name, text=text))
        return Trace(
            session=session_id,
            active=ring.active,
            seconds_left=max(0.0, round(ring.ends_at - self._clock(), 3)) if ring.active else 0.0,
            entries=tuple(entries),
            next=entries[-1].number if entries else max(after, ring.count - len(ring.entries)),
            dropped=dropped,
        )

    def _ring(self, session_id: str) -> Ring:
        ring = self._rings.get(session_id)
        if ring is None:
            raise NotFound(f"session {session_id!r} is not traced")
        return ring

    def _sink(self, session_id: str, ring: Ring) -> Callable[[str, bytes], None]:
        def add(direction: str, header: bytes) -> None:
            # The end is checked here too, so that a trace that nobody reads stops costing anything.
            if self._clock() >= ring.ends_at:
                self._end(session_id, ring)
            elif ring.active:
                ring.add(self._wall_clock(), direction, bytes(header[:BHS_BYTES]))

        return add

    def _end(self, session_id: str, ring: Ring) -> None:
        if not ring.active:
            return
        ring.active = False
        if self._rings.get(session_id) is ring:
            self._service.set_trace(session_id, None)

    def _expire(self) -> None:
        now = self._clock()
        for session_id, ring in self._rings.items():
            if now >= ring.ends_at:
                self._end(session_id, ring)

    def _make_room(self) -> None:
        for session_id, ring in self._rings.items():
            if not ring.active:
                del self._rings[session_id]
                return
        raise Conflict(f"{TRACES_MAX} sessions are traced already; stop one of them first")


def utc_text(seconds: float) -> str:
    """Seconds since 1970 as "2026-01-31T12:00:00.000123Z"."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
