"""Load, moves and balance of one member, wired together: what measures, what moves sessions, and what decides."""

from typing import TYPE_CHECKING, Final

import msgspec

from san_target.admin.balance import BalanceReport, Load, MovedSession
from san_target.group.efficiency import Flow, Model, model_of
from san_target.group.errors import Conflict, NotFound
from san_target.group.login_balancer import expected_of, order, share_of
from san_target.group.migration_requests import MigrationRequests, unfinished
from san_target.peer.messages import BalanceReply, BalanceRequest, Message
from san_target.server.balancer import Balancer
from san_target.server.load_monitor import LoadMonitor
from san_target.server.other_members import SERVING, NoAnswer
from san_target.server.session_moves import SessionMoves

if TYPE_CHECKING:
    from san_target.group.follower import StoreFollower
    from san_target.peer.identity import PeerIdentity
    from san_target.server.background import Background
    from san_target.server.member import Member
    from san_target.server.portal_placement import PortalPlacement
    from san_target.session.target import Target

ASK_S: Final = 5.0
RUN_S: Final = 25.0
MODEL_S: Final = 1.0


class Balancing:
    """drains_data: the balancer also plans the migrations of what a drained member holds."""

    def __init__(self, member: "Member", follower: "StoreFollower", background: "Background") -> None:
        self._member = member
        self._background = background
        self._model: Model | None = None
        self._model_at_s = float("-inf")
        self.drains_data = True
        self.moves: Final = SessionMoves(member)
        self.monitor: Final = LoadMonitor(member, background)
        self.balancer: Final = Balancer(member, self, background)
        follower.add(Balancer.KINDS, self.balancer)

    def join(self, placement: "PortalPlacement") -> None:
        """From now on this member takes part; its directory and its peers are there."""
        peering = self._member.life.peering
        for kind, answer in self.monitor.handlers().items():
            peering.answer_at_once(kind, answer)
        peering.answer(BalanceRequest, self._asked)
        self.moves.answer(placement)
        placement.adaptive = self._order
        directory = self._member.directory
        directory.began = self.moves.logged_in
        self._member.life.succession.take_left = self.moves.take_left
        if not self.monitor.told:
            self.monitor.told.append(self.balancer.reported)
            self._background.spawn(self.monitor.run())

    # Logins -----------------------------------------------------------------------------------------------------------

    def _order(self, target: "Target", initiator_name: str, members: list[str], turn: int) -> list[str] | None:
        """For `PortalPlacement.adaptive`."""
        member = self._member
        now_s = member.environment.now_s()
        loads = self.monitor.reports.fresh(now_s)
        if member.name not in loads:
            return None
        if self._model is None or now_s - self._model_at_s > MODEL_S:
            self._model, self._model_at_s = model_of(loads), now_s
        model = self._model
        volume_id = target.unit.identity.volume_id
        export = member.exports.by_id.get(volume_id)
        snapshot = None if export is None else export.snapshot
        ranges = () if snapshot is None else snapshot.ranges()
        lies_at = share_of([(start, end, placement.owner) for start, end, placement in ranges])
        expected = expected_of(loads, volume_id, initiator_name, lies_at)
        siblings = {
            name
            for name, load in loads.items()
            for session in load.details
            if (session.volume_id, session.initiator) == (volume_id, initiator_name)
        }
        if any(session.initiator_name == initiator_name for session in target.sessions.values()):
            siblings.add(member.name)
        known = [name for name in members if name in model.stations]
        found = order(model, member.name, known, expected, siblings, turn)
        # Until the next reports, the model has this login too: many at a time must not all see the same idle member.
        model.add(Flow((found or [member.name])[0], expected.iops, expected.bytes_each, expected.owners))
        return found

    # Migrations -------------------------------------------------------------------------------------------------------

    def volumes_moving(self) -> frozenset[str]:
        """Volumes with a migration that has not ended."""
        known = self._member.life.migrations.known.values()
        return frozenset(record.volume_id for record in unfinished([record for record, _ in known]))

    async def plan_migration(
        self, volume_id: str, source: str, wanted_range: tuple[int, int], destination: str
    ) -> None:
        """Of what `source` owns of a range of a volume. AdministrationError, StoreError."""
        member = self._member
        export = member.exports.by_id.get(volume_id)
        if export is None or export.snapshot is None:
            raise Conflict("the volume is not served")
        requests = MigrationRequests(member.store, member.environment.new_id, member.environment.wall_clock_s)
        await requests.start(
            export.record, export.snapshot, member.members.view, destination, wanted_range, only_source=source
        )

    # For the administration -------------------------------------------------------------------------------------------

    def loads(self) -> tuple[Load, ...]:
        """Of all members that are to be heard of, by name."""
        now_s = self._member.environment.now_s()
        fresh, known = self.monitor.reports.fresh(now_s), self.monitor.reports.all()
        names = [name for name, one in sorted(self._member.members.view.items()) if one.state != "removed"]
        return tuple(
            Load(member=name, state="missing")
            if name not in known
            else Load(
                member=name,
                state="fresh" if name in fresh else "stale",
                age_s=now_s - known[name].at_s,
                is_own=name == self._member.name,
                report=known[name].load,
            )
            for name in names
        )

    async def move_session(self, session_id: str, to: str) -> MovedSession:
        """NotFound: session or member. Conflict: it cannot be moved, or did not arrive; says why."""
        view = self._member.members.view.get(to)
        if view is None or view.state == "removed":
            raise NotFound(f"there is no member {to!r}; `member list` shows all")
        if view.state not in SERVING or not view.alive:
            raise Conflict(f"member {to!r} is {view.state}")
        sessions = await self._member.group_sessions.all()
        if all(one.id != session_id for one in sessions.sessions):
            raise NotFound(f"there is no session {session_id!r}; `session list` shows all")
        try:
            outcome = await self.moves.move_anywhere(session_id, to)
        except NoAnswer as error:
            raise Conflict(f"the session {session_id!r} cannot be moved: {error}") from None
        if outcome.reason:
            raise Conflict(f"the session {session_id!r} is not moved: {outcome.reason}")
        return MovedSession(id=outcome.session_id, member=to, dropped=outcome.dropped, seconds=outcome.seconds)

    async def balance(self, action: str) -> BalanceReport:
        """explain: what was decided last; plan: a look now; run: a look now, and what it decides is done. Conflict:
        nobody decides."""
        balancer = self.balancer
        if balancer.decides:
            return await self._decide(action)
        if not balancer.decider:
            raise Conflict("no member decides yet; try again in a moment")
        try:
            reply = await self._member.life.others.ask(
                balancer.decider, BalanceRequest(action), BalanceReply, RUN_S if action == "run" else ASK_S
            )
        except NoAnswer as error:
            raise Conflict(f"the member that decides cannot be asked: {error}") from None
        return msgspec.json.decode(reply.report, type=BalanceReport)

    async def _decide(self, action: str) -> BalanceReport:
        if action == "explain":
            return self.balancer.report()
        return await self.balancer.run_once(dry_run=action != "run")

    async def _asked(self, _peer: "PeerIdentity", message: BalanceRequest) -> Message:
        report = await self._decide(message.action)
        fitting = len(report.decisions)
        while len(encoded := msgspec.json.encode(report)) > REPLY_BYTES_MAX and fitting:
            fitting //= 2
            report = msgspec.structs.replace(report, decisions=report.decisions[:fitting])
        return BalanceReply(encoded)


REPLY_BYTES_MAX: Final = 60_000
"""A control answer may have 64 KiB."""
