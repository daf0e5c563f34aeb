"""What the administration asks of this member (`admin.service.MemberService`), answered from its live parts."""

from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Literal, get_args

from san_target.admin import service as values
from san_target.admin.balance import BalanceReport, Load, MovedSession
from san_target.admin.drain import MemberDrain
from san_target.admin.service import TraceSink
from san_target.group.errors import Conflict
from san_target.group.group_record import set_portal_policy
from san_target.group.membership import ACTIVE, DRAINING
from san_target.group.removal import Removal
from san_target.group.volume_size import shown_blocks, shown_bytes
from san_target.group.volumes import DELETING
from san_target.server.drain_service import Drains
from san_target.server.group_sessions import OtherPortals
from san_target.server.last_known import OLD, LastKnown
from san_target.server.migration_service import ShownMigrations
from san_target.server.shown_members import ShownMembers, pool_state
from san_target.server.volume_requests import VolumeRequests
from san_target.session.session import Counters
from san_target.volume.partition_map import PartitionMapError

if TYPE_CHECKING:
    from san_target.metadata.schema import VolumeRecord
    from san_target.server.export import Export
    from san_target.server.group_sessions import Gathered
    from san_target.server.member import Member

VolumeState = Literal["ready", "not-ready", "failed", "deleting"]
POLICIES: dict[str, values.PortalPolicy] = {policy: policy for policy in get_args(values.PortalPolicy)}
FLUSH_FAILED = (
    "the disk could not write what was acknowledged: check it, restore what is lost, then start this member again"
)


class Service:
    """The member as its administration sees it."""

    def __init__(self, member: "Member") -> None:
        self._member = member
        self._last_known = LastKnown(member)
        self._members = ShownMembers(member, self._last_known)
        self._requests = VolumeRequests(member)
        self._migrations = ShownMigrations(member)
        self._drains = Drains(member)

    # Group and members ------------------------------------------------------------------------------------------------

    async def group_status(self) -> values.GroupStatus:
        group = self._member.exports.group
        reasons = self._reasons()
        members, old = await self._members.all(reasons)
        volumes, old_too = await self._last_known.volumes()
        if old or old_too:
            known = self._member.exports.store_problem in reasons
            reasons += [OLD] if known else [self._last_known.problem, OLD]
        gathered = await self._member.group_sessions.all()
        told = [f"volume {volume}: {one}" for volume, problems in gathered.problems.items() for one in problems]
        reasons += [one for one in told if one not in reasons]
        reasons += [f"member {one.name} is {one.state}" for one in members if one.state in ("unreachable", "removing")]
        return values.GroupStatus(
            id=group.id,
            name=group.name,
            state="degraded" if reasons else "ok",
            reasons=tuple(reasons),
            portal_group_tag=group.portal_group_tag,
            policy=_policy(group.portal_policy),
            store=self._member.config.store_url,
            members=members,
            volumes=len(volumes),
            sessions=len(gathered.sessions),
            size_bytes=sum(record.size_bytes for record in volumes),
            allocated_bytes=sum(member.pool.allocated_bytes for member in members),
            capacity_bytes=sum(member.pool.capacity_bytes for member in members),
            free_bytes=sum(member.pool.free_bytes for member in members),
        )

    async def members(self) -> tuple[values.Member, ...]:
        return (await self._members.all(self._reasons()))[0]

    async def member(self, name: str) -> values.Member:
        return await self._members.one(name, self._reasons())

    async def remove_member(self, name: str, force: bool) -> values.MemberRemoval:
        member = self._member
        removal = Removal(
            member.store, member.volumes, member.name, member.environment.sleep, member.environment.lease_ttl_s
        )
        report = await removal.remove(name, force)
        lost = tuple(
            values.LostShare(volume=one.volume, ranges=one.ranges, size_bytes=one.bytes) for one in report.lost
        )
        return values.MemberRemoval(name=name, lost=lost)

    async def drain_member(self, name: str) -> MemberDrain:
        await self._drains.set_state(name, DRAINING)
        return await self.drain_status(name)

    async def activate_member(self, name: str) -> values.Member:
        await self._drains.set_state(name, ACTIVE)
        return await self.member(name)

    async def drain_status(self, name: str) -> MemberDrain:
        return await self._drains.status(name, await self.member(name))

    # Volumes ----------------------------------------------------------------------------------------------------------

    async def volumes(self) -> tuple[values.Volume, ...]:
        gathered = await self._member.group_sessions.all()
        sessions: dict[str, list[values.Session]] = {}
        for session in gathered.sessions:
            sessions.setdefault(session.volume, []).append(session)
        records, old = await self._last_known.volumes()
        return tuple(self._volume(record, sessions.get(record.name, ()), gathered, old) for record in records)

    async def volume(self, name: str) -> values.Volume:
        record, old = await self._last_known.volume(name)
        gathered = await self._member.group_sessions.all()
        return self._volume(record, [one for one in gathered.sessions if one.volume == name], gathered, old)

    async def create_volume(self, spec: values.VolumeSpec) -> values.Volume:
        await self._requests.create(spec)
        return await self.volume(spec.name)

    async def change_volume(self, name: str, changes: values.VolumeChanges) -> values.Volume:
        await self._requests.change(name, changes)
        return await self.volume(name)

    async def resize_volume(self, name: str, size_bytes: int, force: bool) -> values.Volume:
        await self._requests.resize(name, size_bytes, force)
        return await self.volume(name)

    async def delete_volume(self, name: str, force: bool) -> None:
        if not force:
            await self._check_unused(name)
        await self._requests.delete(name, force)

    async def _check_unused(self, name: str) -> None:
        """Conflict: sessions are logged in somewhere, or may be."""
        volume = await self.volume(name)
        if volume.state == "deleting":
            return  # it is asked for once more
        elsewhere = sorted({session.member for session in volume.sessions} - {self._member.name})
        if elsewhere:
            raise Conflict(
                f"sessions are logged in to the volume {name!r} at member {', '.join(elsewhere)}; "
                "log out first, or use --force"
            )
        if volume.unreachable:
            raise Conflict(
                f"member {', '.join(volume.unreachable)} does not say whether sessions are logged in to the volume "
                f"{name!r}; use --force if you know"
            )

    async def volume_map(self, name: str, from_lba: int = 0) -> tuple[values.MapEntry, ...]:
        record, _old = await self._last_known.volume(name)
        stored_map = self._member.exports.stored_map(record.id)
        if stored_map is None or record.state == DELETING or from_lba >= shown_blocks(record):
            return ()
        try:
            snapshot = stored_map.snapshot(shown_blocks(record))
        except PartitionMapError as error:
            raise Conflict(str(error)) from None
        return tuple(
            values.MapEntry(
                start_lba=start,
                end_lba=end,
                owner=placement.owner,
                copies=placement.copies,
                joining=placement.joining or None,
                generation=placement.generation,
            )
            for start, end, placement in islice(snapshot.ranges(from_lba), values.MAP_ENTRIES_MAX)
        )

    def _volume(
        self, record: "VolumeRecord", sessions: Sequence[values.Session], gathered: "Gathered", old: str
    ) -> values.Volume:
        export = self._member.exports.by_id.get(record.id)
        state, reason = volume_state(record, export)
        problems = gathered.problems.get(record.name, ())
        return values.Volume(
            id=record.id,
            name=record.name,
            iqn=record.iqn,
            size_bytes=shown_bytes(record),
            block_size=record.block_size,
            members=self._holders(record),
            sessions=tuple(sessions),
            unreachable=tuple(gathered.missing),
            wwid=f"naa.{export.identity.naa.hex()}" if export else "",
            copies=record.copies,
            allow=record.allow,
            chap=tuple(user.user for user in record.chap),
            mutual_chap=None if record.mutual_chap is None else record.mutual_chap.user,
            write_through=record.write_through,
            read_only=record.read_only,
            removable=record.removable,
            multipath=record.multipath,
            state=state,
            reason="; ".join(filter(None, (reason, *problems, old))),
            allocated_bytes=export.allocated_bytes() if export else 0,
        )

    def _holders(self, record: "VolumeRecord") -> tuple[str, ...]:
        """The members that have blocks of it, by name; of one that is being deleted: that had."""
        export, stored_map = self._member.exports.by_id.get(record.id), self._member.exports.stored_map(record.id)
        try:
            if stored_map is not None:
                return tuple(sorted(stored_map.whole().holders))
        except PartitionMapError:
            pass
        snapshot = None if export is None else export.snapshot
        return record.members if snapshot is None else tuple(sorted(snapshot.holders))

    # Migrations -------------------------------------------------------------------------------------------------------

    async def migrations(self) -> tuple[values.Migration, ...]:
        return await self._migrations.all()

    async def migration(self, migration_id: str) -> values.Migration:
        return await self._migrations.one(migration_id)

    async def start_migrations(self, request: values.MigrationRequest) -> tuple[values.Migration, ...]:
        return await self._migrations.start(request)

    async def pause_migration(self, migration_id: str) -> values.Migration:
        return await self._migrations.pause(migration_id)

    async def resume_migration(self, migration_id: str) -> values.Migration:
        return await self._migrations.resume(migration_id)

    async def cancel_migration(self, migration_id: str) -> values.Migration:
        return await self._migrations.cancel(migration_id)

    # Portals ----------------------------------------------------------------------------------------------------------

    async def portals(self) -> tuple[values.Portal, ...]:
        """By member, in the order of its configuration."""
        member, group = self._member, self._member.exports.group
        mine = OtherPortals(member.name, member.local_sessions.portals(), answered=True)
        everyone = sorted([mine, *await member.group_sessions.other_portals()], key=lambda one: one.member)
        return tuple(
            values.Portal(
                address=portal.address,
                advertised=portal.advertised,
                member=one.member,
                portal_group_tag=group.portal_group_tag,
                policy=_policy(group.portal_policy),
                sessions=portal.sessions,
                state="active" if one.answered else "unreachable",
            )
            for one in everyone
            for portal in one.portals
        )

    async def set_portal_policy(self, policy: values.PortalPolicy) -> tuple[values.Portal, ...]:
        self._member.exports.group = await set_portal_policy(self._member.store, policy)
        return await self.portals()

    # Sessions ---------------------------------------------------------------------------------------------------------

    async def sessions(self) -> values.SessionList:
        gathered = await self._member.group_sessions.all()
        return values.SessionList(sessions=tuple(gathered.sessions), unreachable=tuple(gathered.missing))

    async def drop_session(self, session_id: str) -> None:
        await self._member.group_sessions.drop(session_id)

    async def move_session(self, session_id: str, to: str) -> MovedSession:
        return await self._member.balancing.move_session(session_id, to)

    def loads(self) -> tuple[Load, ...]:
        return self._member.balancing.loads()

    async def balance(self, action: Literal["explain", "plan", "run"]) -> BalanceReport:
        return await self._member.balancing.balance(action)

    async def pause_balancing(self, paused: bool) -> None:
        await self._member.balancing.balancer.set_paused(paused)

    def set_trace(self, session_id: str, sink: TraceSink | None) -> None:
        if sink is None:
            session = self._member.local_sessions.find(session_id)
            if session is None:
                return
            connection = session.connection
            connection.trace = None
        else:
            connection = self._member.local_sessions.get(session_id).connection
            told = sink

            def trace(direction: str, header: bytes) -> None:
                told("received" if direction == "in" else "sent", bytes(header))

            connection.trace = trace
        connection.refresh_hot()

    # Counters and health ----------------------------------------------------------------------------------------------

    def counters(self) -> values.Counters:
        member = self._member
        exports, portal, migrations = member.exports, member.portal_server, member.life.migrations
        totals = {export.record.name: export.sessions.total() for export in exports.by_id.values()}
        counted = [exports.ended, *totals.values()]
        capacity_bytes, free_bytes = member.pool.space()
        return values.Counters(
            commands=sum(one.commands for one in counted),
            read_bytes=sum(one.bytes_read for one in counted),
            written_bytes=sum(one.bytes_written for one in counted),
            errors=sum(one.errors for one in counted),
            sessions=self._member.local_sessions.count(),
            connections=len(portal.connections),
            connections_accepted=portal.accepted,
            logins=portal.counters.logins,
            login_failures=portal.counters.login_failures,
            rejects=portal.counters.rejects,
            redirections=portal.counters.redirections,
            reinstatements=member.directory.reinstatements.count,
            shared_initiator_ports=len(member.directory.reinstatements.quarrels(member.environment.now_s())),
            digest_errors=portal.counters.digest_errors,
            task_management=portal.counters.task_management,
            sessions_moved=member.balancing.moves.moved,
            sessions_not_moved=member.balancing.moves.failed,
            sessions_disobeyed=member.balancing.moves.disobeyed,
            migrations=migrations.working,
            migrated_bytes=migrations.totals.bytes_copied,
            migration_restarts=migrations.totals.restarts,
            mirrored_writes=migrations.totals.mirrored_writes,
            pool_capacity_bytes=capacity_bytes,
            pool_free_bytes=free_bytes,
            volumes=tuple(_volume_counters(export, totals[export.record.name]) for export in exports.by_id.values()),
        )

    def health(self) -> values.Health:
        state = self._member.state
        if state == "starting":
            return values.Health(status="starting")
        if state == "stopping":
            return values.Health(status="stopping")
        reasons = self._reasons()
        return values.Health(status="degraded" if reasons else "ok", reasons=tuple(reasons))

    def _reasons(self) -> list[str]:
        """What is not as it should be, though the member serves."""
        member = self._member
        reasons = [*member.problems.values()]
        if member.exports.store_problem and member.exports.store_problem not in reasons:
            reasons.append(member.exports.store_problem)
        for export in member.exports.by_id.values():
            state, reason = volume_state(export.record, export)
            if reason:
                reasons.append(f"volume {export.record.name} is {state}: {reason}")
        for volume, problems in member.local_sessions.problems().items():
            reasons += [f"volume {volume}: {problem}" for problem in problems]
        reason = pool_state(*member.pool.space())[1]
        return [*reasons, reason] if reason else reasons


def volume_state(record: "VolumeRecord", export: "Export | None") -> tuple[VolumeState, str]:
    """(state, reason); a ready volume can have a reason too: a change that could not be carried out."""
    if record.state == DELETING:
        return "deleting", "its data is being removed"
    if export is None:
        return "not-ready", "this member has not taken it over yet"
    if export.failed:
        return "failed", FLUSH_FAILED
    if not export.is_served:
        return "not-ready", export.reason
    return "ready", export.trouble


def _volume_counters(export: "Export", total: Counters) -> values.VolumeCounters:
    return values.VolumeCounters(
        volume=export.record.name,
        commands=total.commands,
        read_commands=total.reads,
        write_commands=total.writes,
        read_bytes=total.bytes_read,
        written_bytes=total.bytes_written,
        errors=total.errors,
        sessions=len(export.sessions),
        size_bytes=export.record.size_bytes,
        allocated_bytes=export.allocated_bytes(),
    )


def _policy(text: str) -> values.PortalPolicy:
    policy = POLICIES.get(text)
    if policy is None:
        raise Conflict(f"the portal policy {text!r} in the store is not known to this version; set another")
    return policy
