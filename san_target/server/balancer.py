"""One member decides for the whole group what is moved; all carry it out.

The decider is the one whose name is under the key `balancer`, which is bound to its lease: when it ends, another takes
its place. It looks at each of its own reports, and does one thing at a time (in a large group, one for each four
members); before the next, all members must have told their load three times anew.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import structlog

from san_target.admin.balance import BalanceAction, BalanceDecision, BalanceReport
from san_target.group.connection_balancer import plan_moves
from san_target.group.data_balancer import plan_migrations
from san_target.group.decisions import RULES, Decision, Kind, View, chosen
from san_target.group.efficiency import model_of
from san_target.group.errors import AdministrationError
from san_target.group.portal_group import Policy
from san_target.group.view import holdings, range_flows
from san_target.metadata.schema import BALANCE_KEY, BALANCER_KEY, BalanceRecord, BalancerRecord, decode, encode
from san_target.metadata.store import Compare, Put, StoreError
from san_target.peer.load_report import MemberLoad
from san_target.server.local_sessions import utc
from san_target.server.other_members import DRAINING, REMOVING, NoAnswer
from san_target.server.session_moves import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterable

    from san_target.metadata.store import Event, Item
    from san_target.server.background import Background
    from san_target.server.balancing import Balancing
    from san_target.server.member import Member
    from san_target.volume.partition_map import MapSnapshot

log = structlog.get_logger()

ACTIONS_KEPT: Final = 32
DECISIONS_SHOWN: Final = 100
SESSIONS_AT_ONCE: Final = 200
"""Up to so many, planning takes some milliseconds at most."""
IDLE_LOOKS: Final = 5
IDLE: Final = "the policy of the portal group is {policy!r}: only `adaptive` moves things by itself"


@dataclass(frozen=True, slots=True)
class _Seen:
    """One look. decisions: the best first."""

    view: View
    decisions: Sequence[Decision]
    planning_s: float


@dataclass(frozen=True, slots=True)
class _Known:
    """What is needed for a `View`. maps: of all volumes, with their block sizes; to_give: whose holdings matter."""

    now_s: float
    loads: dict[str, MemberLoad]
    serving: frozenset[str]
    leaving: frozenset[str]
    to_give: frozenset[str]
    maps: "dict[str, tuple[MapSnapshot, int]]"
    moved: dict[str, float]
    migrated: dict[str, float]
    stays: dict[tuple[str, int, int], float]
    sulking: dict[tuple[str, str], float]
    busy: frozenset[str]
    following: dict[str, str]


def decide(known: _Known) -> tuple[View, list[Decision]]:
    """All decisions, the best first."""
    view = View(
        known.now_s,
        known.loads,
        model_of(known.loads),
        known.serving,
        known.leaving,
        known.moved,
        known.migrated,
        known.stays,
        known.sulking,
        known.busy,
        range_flows(known.loads, known.maps.get),
        [*holdings(known.maps, known.maps.get, known.to_give)] if known.to_give else [],
        known.following,
    )
    decisions = [*plan_moves(view), *plan_migrations(view)]
    decisions.sort(key=lambda one: (one.taken, one.urgent, one.gain_s), reverse=True)
    return view, decisions


class Balancer:
    """A consumer of the follower. decider: a member's name, "" = none. paused: by the operator, for the whole group."""

    KINDS = ("balancer", "balance")

    def __init__(self, member: "Member", parts: "Balancing", background: "Background") -> None:
        self._member = member
        self._parts = parts
        self._monitor = parts.monitor
        self._moves = parts.moves
        self._read: list[Item] = []
        self._background = background
        self._moved: dict[str, float] = {}
        self._migrated: dict[str, float] = {}
        self._stays: dict[tuple[str, int, int], float] = {}
        self._sulking: dict[tuple[str, str], float] = {}
        self._following: dict[str, tuple[str, float]] = {}
        self._reports_at_action: dict[str, tuple[int, int]] = {}
        self._actions: deque[BalanceAction] = deque(maxlen=ACTIONS_KEPT)
        self._looks = 0
        self._looking = False
        self._acting = False
        self._seen: _Seen | None = None
        self.decider = ""
        self.paused = False

    # What the follower calls ------------------------------------------------------------------------------------------

    def begin(self) -> None:
        self._read = []

    def read(self, items: "Sequence[Item]") -> None:
        self._read += items

    def complete(self, revision: int) -> None:
        items, self._read = self._read, []
        self.decider, self.paused = "", False
        for item in items:
            self._put(item.key, item)

    def take(self, revision: int, events: "Sequence[Event]") -> None:
        for event in events:
            self._put(event.key, event.item)

    def _put(self, key: str, item: "Item | None") -> None:
        if key == BALANCER_KEY:
            self.decider = "" if item is None else decode(BalancerRecord, item.value, key).member
        elif key == BALANCE_KEY:
            self.paused = item is not None and decode(BalanceRecord, item.value, key).paused

    # Who decides ------------------------------------------------------------------------------------------------------

    @property
    def decides(self) -> bool:
        return self.decider == self._member.name

    async def _stand(self) -> None:
        """Become the decider, if there is none."""
        record = encode(BalancerRecord(member=self._member.name))
        try:
            await self._member.store.transact(
                [Compare(BALANCER_KEY, 0)], [Put(BALANCER_KEY, record, self._member.membership.lease_id)]
            )
        except StoreError as error:
            log.debug("nobody can become the decider", reason=str(error))

    async def set_paused(self, paused: bool) -> None:
        """For the whole group. StoreError."""
        await self._member.store.transact([], [Put(BALANCE_KEY, encode(BalanceRecord(paused=paused)))])
        self.paused = paused

    def reported(self) -> None:
        """This member has just told its load: time for a look."""
        if not self._looking:
            self._looking = True
            self._background.spawn(self._look())

    async def _look(self) -> None:
        try:
            if not self.decider:
                await self._stand()
            elif self.decides and not self._acting and self._is_time():
                seen = await self.plan()
                wanted = [one for one in seen.decisions if self._may(one)]
                taken = chosen(wanted, RULES, len(seen.view.loads))
                if taken:
                    await self._carry_out(taken)
        finally:
            self._looking = False

    def _may(self, decision: Decision) -> bool:
        """A drain is the operator's will; everything else is for the policy `adaptive`."""
        if self.paused:
            return False
        if decision.urgent and decision.source in self._leaving():
            return decision.kind is Kind.MOVE or self._parts.drains_data
        return self._policy == Policy.ADAPTIVE

    @property
    def _policy(self) -> str:
        return self._member.exports.group.portal_policy

    def _is_time(self) -> bool:
        """Not while reports are missing after an action; now and then where nothing is moved anyway."""
        self._looks += 1
        if self._waiting_for():
            return False
        return self._state()[0] == "active" or bool(self._leaving()) or self._looks % IDLE_LOOKS == 0

    def _waiting_for(self) -> list[str]:
        """Members that have not told their load often enough since the last action."""
        fresh = self._monitor.reports.fresh(self._member.environment.now_s())
        waiting = []
        for name, load in fresh.items():
            incarnation, number = self._reports_at_action.get(name, (0, 0))
            if incarnation == load.incarnation and load.number < number + RULES.fresh_reports:
                waiting.append(name)
        return waiting

    # Planning ---------------------------------------------------------------------------------------------------------

    async def plan(self) -> _Seen:
        """In a large group it takes long, and is done by a thread: initiators are not to wait for it."""
        began_s = self._member.environment.now_s()
        known = self._known(began_s)
        if sum(len(load.details) for load in known.loads.values()) > SESSIONS_AT_ONCE:
            view, decisions = await self._member.threads.run(decide, known)
        else:
            view, decisions = decide(known)
        self._seen = _Seen(view, decisions, self._member.environment.now_s() - began_s)
        return self._seen

    def _leaving(self) -> frozenset[str]:
        view = self._member.members.view.values()
        return frozenset(one.name for one in view if one.state in (DRAINING, REMOVING))

    def _known(self, now_s: float) -> _Known:
        """All that decisions are made by, as it is now."""
        loads = self._monitor.reports.fresh(now_s)
        members, leaving = self._member.members.view, self._leaving()
        serving = frozenset(name for name, one in members.items() if one.alive and one.state == "active")
        full = {
            name
            for name, one in loads.items()
            if one.pool_capacity_bytes and one.pool_free_bytes < (1 - RULES.pool_high) * one.pool_capacity_bytes
        }
        for times in (self._moved, self._migrated):
            for volume_id in [old for old, at_s in times.items() if now_s - at_s > RULES.rest_s]:
                del times[volume_id]
        for place in [old for old, at_s in self._stays.items() if now_s - at_s > RULES.data_stay_s]:
            del self._stays[place]
        for volume_id in [old for old, (_, until_s) in self._following.items() if until_s < now_s]:
            del self._following[volume_id]
        for key in [old for old, until_s in self._sulking.items() if until_s < now_s]:
            del self._sulking[key]
        return _Known(
            now_s,
            loads,
            serving,
            leaving,
            leaving | full,
            {
                volume_id: (export.snapshot, export.record.block_size)
                for volume_id, export in self._member.exports.by_id.items()
                if export.snapshot is not None
            },
            dict(self._moved),
            dict(self._migrated),
            dict(self._stays),
            dict(self._sulking),
            self._parts.volumes_moving(),
            {volume_id: to for volume_id, (to, _) in self._following.items()},
        )

    # Carrying out -----------------------------------------------------------------------------------------------------

    async def _carry_out(self, decisions: Sequence[Decision]) -> None:
        self._acting = True
        try:
            await asyncio.gather(*(self._do(one) for one in decisions))
        finally:
            self._acting = False
            self._reports_at_action = {
                name: (known.load.incarnation, known.load.number) for name, known in self._monitor.reports.all().items()
            }

    async def _do(self, decision: Decision) -> None:
        outcome = await (self._move(decision) if decision.kind is Kind.MOVE else self._migrate(decision))
        action = BalanceAction(
            time=utc(self._member.environment.wall_clock_s()), decision=self._shown(decision), outcome=outcome or "done"
        )
        self._actions.append(action)
        log.info(
            "balancing",
            kind=decision.kind,
            source=decision.source,
            destination=decision.destination,
            what=decision.session or f"{decision.volume_id} {decision.start_lba}-{decision.end_lba}",
            reason=decision.reason,
            outcome=action.outcome,
        )

    async def _move(self, decision: Decision) -> str:
        try:
            outcome = await self._moves.move_anywhere(decision.session, decision.destination)
        except NoAnswer as error:
            outcome = Outcome(reason=str(error))
        now_s = self._member.environment.now_s()
        self._moved[decision.volume_id] = now_s
        if decision.with_data and not outcome.reason:
            self._following[decision.volume_id] = decision.destination, now_s + RULES.follow_s
        if outcome.dropped or outcome.reason:
            self._sulking[decision.volume_id, decision.initiator] = now_s + RULES.sulk_s
        return outcome.reason or ("it did not go by itself, and was dropped" if outcome.dropped else "")

    async def _migrate(self, decision: Decision) -> str:
        now_s = self._member.environment.now_s()
        self._migrated[decision.volume_id] = now_s
        if not decision.urgent:
            self._stays[decision.volume_id, decision.start_lba, decision.end_lba] = now_s
        try:
            await self._parts.plan_migration(
                decision.volume_id, decision.source, (decision.start_lba, decision.end_lba), decision.destination
            )
        except (AdministrationError, StoreError) as error:
            return str(error)
        return ""

    # What is shown ----------------------------------------------------------------------------------------------------

    async def run_once(self, dry_run: bool) -> BalanceReport:
        """A look now, and what it decides is done, whatever the policy says; the decider's business."""
        seen = await self.plan()
        if not dry_run and not self._acting:
            await self._carry_out(chosen(seen.decisions, RULES, len(seen.view.loads)))
        return self.report(self._decisions(seen.decisions))

    def report(self, decisions: "Iterable[BalanceDecision] | None" = None) -> BalanceReport:
        """As this member sees it, which is of use where it decides."""
        seen = self._seen
        state, reason = self._state()
        if decisions is None:
            decisions = self._decisions(() if seen is None else seen.decisions)
        return BalanceReport(
            decider=self.decider,
            state=state,
            reason=reason,
            efficiency=1.0 if seen is None else seen.view.model.efficiency(),
            members=sum(one.alive for one in self._member.members.view.values()),
            reports=len(self._monitor.reports.fresh(self._member.environment.now_s())),
            planning_s=0.0 if seen is None else seen.planning_s,
            actions=tuple(self._actions),
            decisions=tuple(decisions),
        )

    def _state(self) -> tuple[Literal["active", "idle", "paused", "waiting"], str]:
        if self.paused:
            return "paused", "`balance resume` goes on"
        if self._policy != Policy.ADAPTIVE:
            return "idle", IDLE.format(policy=self._policy)
        waiting = self._waiting_for()
        if waiting:
            return "waiting", f"after an action, for new load reports of {', '.join(waiting[:5])}"
        return "active", ""

    def _decisions(self, decisions: Sequence[Decision]) -> list[BalanceDecision]:
        return [self._shown(one) for one in decisions[:DECISIONS_SHOWN]]

    def _shown(self, one: Decision) -> BalanceDecision:
        export = self._member.exports.by_id.get(one.volume_id)
        return BalanceDecision(
            kind="move" if one.kind is Kind.MOVE else "migrate",
            taken=one.taken,
            reason=one.reason,
            volume=one.volume_id if export is None else export.record.name,
            source=one.source,
            destination=one.destination,
            efficiency_before=one.before,
            efficiency_after=one.after,
            gain_s=one.gain_s,
            cost_s=one.cost_s,
            session=one.session,
            initiator=one.initiator,
            start_lba=one.start_lba,
            end_lba=one.end_lba,
        )
