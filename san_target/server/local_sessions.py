"""The sessions of this member as its administration sees them."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from san_target.admin import service as values
from san_target.group.errors import NotFound
from san_target.peer.messages import PortalInfo
from san_target.server.group_sessions import PROBLEMS_MAX, Entry

if TYPE_CHECKING:
    from san_target.server.member import Member
    from san_target.session.session import Session


class LocalSessions:
    """Those of targets; discovery sessions are not shown. (`server.group_sessions.Own`)"""

    def __init__(self, member: "Member") -> None:
        self._member = member

    def all(self) -> "list[Session]":
        return [session for session in self._member.portal_server.sessions() if session.target is not None]

    def count(self) -> int:
        return sum(len(target.sessions) for target in self._member.directory.all())

    def find(self, session_id: str) -> "Session | None":
        return next((session for session in self.all() if self.id_of(session) == session_id), None)

    def get(self, session_id: str) -> "Session":
        """NotFound: there is none here. It says where one may be."""
        session = self.find(session_id)
        if session is not None:
            return session
        member = self._member.group_sessions.elsewhere(session_id)
        if member:
            raise NotFound(f"the session {session_id!r} is not at this member: ask member {member} (--api URL)")
        raise NotFound(f"there is no session {session_id!r}; `session list` shows all")

    def entries(self) -> Iterator[Entry]:
        for session in self.all():
            yield Entry(session.tsih, partial(self.show, session))

    def problems(self) -> dict[str, list[str]]:
        """Initiator ports that several machines use, by volume; the latest, if they are many."""
        member, found = self._member, dict[str, list[str]]()
        for quarrel in member.directory.reinstatements.quarrels(member.environment.now_s())[-PROBLEMS_MAX:]:
            target = member.directory.find(quarrel.target)
            if target is not None:
                found.setdefault(target.alias, []).append(str(quarrel))
        return found

    def portals(self) -> Sequence[PortalInfo]:
        portals = self._member.portals
        reached = [portals.bound_for(session.connection.portal_address) for session in self.all()]
        return [PortalInfo(bound, advertised, reached.count(bound)) for bound, advertised in portals.pairs()]

    def drop(self, session_id: str) -> bool:
        session = self.find(session_id)
        return session is not None and self._member.portal_server.drop(session.id)

    def show(self, session: "Session") -> values.Session:
        member, counters, parameters = self._member, session.counters, session.parameters
        now_s = member.environment.now_s()
        rate = member.rates.rate(session, now_s)
        return values.Session(
            id=self.id_of(session),
            initiator=session.initiator_name,
            isid=session.isid.hex(),
            volume=session.target.alias if session.target is not None else "",
            member=member.name,
            address=session.address,
            since=utc(member.environment.wall_clock_s() - (now_s - session.since_s)),
            iops=rate.commands,
            bytes_per_second=rate.bytes,
            owners=member.balancing.monitor.owners_of(session),
            user=session.user,
            header_digest=parameters.header_digest,
            data_digest=parameters.data_digest,
            commands=counters.commands,
            commands_in_flight=len(session.connection.tasks),
            read_bytes=counters.bytes_read,
            written_bytes=counters.bytes_written,
            problem=self._problem(session, now_s),
        )

    def _problem(self, session: "Session", now_s: float) -> str:
        iqn = session.target.iqn if session.target is not None else ""
        quarrel = self._member.directory.reinstatements.quarrel_of(iqn, *session.key, now_s)
        return "" if quarrel is None else str(quarrel)

    def id_of(self, session: "Session") -> str:
        """Unique in the group."""
        return f"{self._member.name}-{session.tsih}"


def utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
