"""What is counted of sessions: of one volume, what ended sessions left behind, and rates over the last seconds."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from san_target.session.session import Counters

if TYPE_CHECKING:
    from san_target.session.session import Session

COUNTED = Counters.__slots__


def add_counters(total: Counters, more: Counters) -> None:
    """total += more"""
    for name in COUNTED:
        setattr(total, name, getattr(total, name) + getattr(more, name))


class SessionTable(dict[tuple[str, bytes], "Session"]):
    """The sessions of one target, by (initiator name, ISID); keeps the counts of those that ended.

    logins     sessions that ever began
    withdrawn  called with each session that begins although the target is withdrawn (its login had passed before that)
    """

    def __init__(self) -> None:
        super().__init__()
        self.logins = 0
        self.ended = Counters()
        self.withdrawn: Callable[[Session], None] | None = None

    def __setitem__(self, key: tuple[str, bytes], session: "Session") -> None:
        self.logins += 1
        super().__setitem__(key, session)
        if self.withdrawn is not None:
            self.withdrawn(session)

    def __delitem__(self, key: tuple[str, bytes]) -> None:
        add_counters(self.ended, self[key].counters)
        super().__delitem__(key)

    def total(self) -> Counters:
        """Of all sessions, ended ones too."""
        total = Counters()
        add_counters(total, self.ended)
        for session in self.values():
            add_counters(total, session.counters)
        return total


@dataclass(slots=True)
class Rate:
    """Per second, over the last few seconds."""

    commands: float = 0.0
    bytes: float = 0.0


@dataclass(slots=True)
class _Sample:
    at_s: float
    commands: int
    bytes: int


def _sample(session: "Session", now_s: float) -> _Sample:
    counters = session.counters
    return _Sample(now_s, counters.commands, counters.bytes_read + counters.bytes_written)


class RateMeter:
    """Rates of sessions: from the sample before last until now. `take` is called every few seconds for all sessions."""

    def __init__(self) -> None:
        self._older: dict[Session, _Sample] = {}
        self._newer: dict[Session, _Sample] = {}

    def begin(self) -> None:
        """A new round of samples: sessions that are not sampled in it are forgotten after the next."""
        self._older, self._newer = self._newer, {}

    def take(self, sessions: Iterable["Session"], now_s: float) -> None:
        for session in sessions:
            self._newer[session] = _sample(session, now_s)

    def rate(self, session: "Session", now_s: float) -> Rate:
        before = self._older.get(session) or self._newer.get(session) or _Sample(session.since_s, 0, 0)
        seconds = now_s - before.at_s
        if seconds <= 0:
            return Rate()
        now = _sample(session, now_s)
        return Rate((now.commands - before.commands) / seconds, (now.bytes - before.bytes) / seconds)
