"""The load of this member, measured once a second and told to all others; and what they told."""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Final

import structlog

from san_target.group.load import Meter, Reports, SessionTotals, Totals
from san_target.peer.messages import Done, LoadReport, Message
from san_target.server.other_members import NoAnswer
from san_target.session.pattern import REGION_BLOCKS, SAMPLE_S

if TYPE_CHECKING:
    from san_target.peer.load_report import MemberLoad
    from san_target.server.background import Background
    from san_target.server.member import Member
    from san_target.server.other_members import Handlers
    from san_target.session.session import Session
    from san_target.volume.partition_map import MapSnapshot

log = structlog.get_logger()

REPORT_S: Final = 1.0
TELL_S: Final = 1.0
"""A report that does not arrive within this time is left to the next one."""
BEATS: Final = 10
"""So often within REPORT_S it is looked how late the event loop is."""
SESSIONS_AT_ONCE: Final = 16
BUSY_SESSIONS: Final = 20
"""With more sessions each of them is looked at less often, so that the look costs the same."""
RANGES_OF_VOLUME: Final = 256


class LoadMonitor:
    """reports: of all members, this one's too. told: called with each new report of this member."""

    def __init__(self, member: "Member", background: "Background") -> None:
        self._member = member
        self._background = background
        self._meter = Meter()
        self._telling: set[str] = set()
        self._incarnation = 0
        self.reports: Final = Reports()
        self.told: list[Callable[[], None]] = []

    async def run(self) -> None:
        environment = self._member.environment
        while True:
            late_s = 0.0
            for _ in range(BEATS):
                asked_s = environment.now_s()
                await environment.sleep(REPORT_S / BEATS)
                late_s += max(0.0, environment.now_s() - asked_s - REPORT_S / BEATS)
            load = await self._measure(late_s / BEATS)
            now_s = environment.now_s()
            self.reports.keep(self._member.members.view)
            self.reports.note(load, now_s)
            self._tell(load)
            for tell in self.told:
                tell()

    # Measuring --------------------------------------------------------------------------------------------------------

    async def _measure(self, late_s: float) -> "MemberLoad":
        member = self._member
        if member.membership.incarnation != self._incarnation:
            self._incarnation, self._meter = member.membership.incarnation, Meter()
        sessions = member.local_sessions.all()
        interval_s = SAMPLE_S * max(1.0, len(sessions) / BUSY_SESSIONS)
        totals: list[SessionTotals] = []
        for number, session in enumerate(sessions):
            totals.append(self._session(session))
            session.connection.pattern.interval_s = interval_s
            if number % SESSIONS_AT_ONCE == SESSIONS_AT_ONCE - 1:
                await asyncio.sleep(0)
        return self._meter.measure(
            member.name,
            self._incarnation,
            member.environment.now_s(),
            self._totals(late_s),
            totals,
            member.pool.space(),
        )

    def _totals(self, late_s: float) -> Totals:
        member = self._member
        forwarders = member.life.forwarders.values()
        owner, waits = member.life.owner, member.threads.waits
        return Totals(
            member.environment.cpu_s(),
            sum(one.requests for one in forwarders),
            sum(one.bytes for one in forwarders),
            owner.requests,
            owner.bytes,
            waits.jobs,
            waits.seconds,
            late_s,
            member.environment.cpu_limit(),
        )

    def _session(self, session: "Session") -> SessionTotals:
        target, counters = session.target, session.counters
        if target is None:
            raise AssertionError("a discovery session has no load")
        taken = session.connection.pattern.take()
        export = self._member.exports.by_id.get(target.unit.identity.volume_id)
        snapshot = None if export is None else export.snapshot
        return SessionTotals(
            session,
            self._member.local_sessions.id_of(session),
            target.unit.identity.volume_id,
            target.alias,
            session.initiator_name,
            session.isid.hex(),
            self._member.environment.now_s() - session.since_s,
            counters.commands,
            counters.reads,
            counters.writes,
            counters.bytes_read + counters.bytes_written,
            taken.depth,
            taken.commands,
            taken.sequential,
            {} if snapshot is None else regions_of(snapshot, taken.regions),
            lambda lba: "" if snapshot is None or lba >= snapshot.blocks else snapshot.find(lba).owner,
            self._member.balancing.moves.why_held(session),
        )

    def owners_of(self, session: "Session") -> dict[str, float]:
        """Share of a session's commands by the member that owns what they touch, as it was told last."""
        counters, target = session.counters, session.target
        if target is None or not (counters.reads or counters.writes):
            return {}
        known = self.reports.all().get(self._member.name)
        session_id = self._member.local_sessions.id_of(session)
        for told in () if known is None else known.load.details:
            if told.id == session_id and told.owners:
                return told.owners
        export = self._member.exports.by_id.get(target.unit.identity.volume_id)
        holders = export.snapshot.holders if export is not None and export.snapshot is not None else ()
        return dict.fromkeys(holders, 1.0) if len(holders) == 1 else {}

    # The others -------------------------------------------------------------------------------------------------------

    def _tell(self, load: "MemberLoad") -> None:
        message = LoadReport(load)
        for one in self._member.life.others.all():
            if one.alive and one.name not in self._telling:
                self._telling.add(one.name)
                self._background.spawn(self._tell_one(one.name, message))

    async def _tell_one(self, name: str, message: LoadReport) -> None:
        try:
            await self._member.life.others.ask(name, message, Done, TELL_S)
        except NoAnswer as error:
            log.debug("a load report did not arrive", member=name, reason=str(error))
        finally:
            self._telling.discard(name)

    def handlers(self) -> "Handlers":
        return {LoadReport: self._note}

    def _note(self, message: LoadReport) -> Message:
        load = message.load
        if self._member.members.incarnation_of(load.member) == load.incarnation:
            self.reports.note(load, self._member.environment.now_s())
        return Done()


def regions_of(snapshot: "MapSnapshot", touched: dict[int, int]) -> dict[tuple[int, int], int]:
    """Commands by range of LBAs: at most some hundred of a volume, none of which has several owners."""
    unit = max(REGION_BLOCKS, -(-snapshot.blocks // RANGES_OF_VOLUME // REGION_BLOCKS) * REGION_BLOCKS)
    found: dict[tuple[int, int], int] = {}
    for (start, end), commands in _cut(snapshot, unit, touched.items()):
        found[start, end] = found.get((start, end), 0) + commands
    return found


def _cut(
    snapshot: "MapSnapshot", unit: int, touched: Iterable[tuple[int, int]]
) -> Iterator[tuple[tuple[int, int], int]]:
    for region, commands in touched:
        lba = region * REGION_BLOCKS
        if lba >= snapshot.blocks:
            continue  # it was cut off meanwhile
        piece = snapshot.range_at(lba)
        start = lba // unit * unit
        yield (max(start, piece.start), min(start + unit, piece.end)), commands
