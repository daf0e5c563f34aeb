"""A member in memory with the real rules of administration, for tests of the API and of the commands."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from san_target.admin.balance import BalanceAction, BalanceDecision, BalanceReport, Load, MovedSession
from san_target.admin.drain import MemberDrain, StayingSession
from san_target.admin.service import (
    BlockRange,
    ChapUser,
    Counters,
    GroupStatus,
    Health,
    LostShare,
    MapEntry,
    Member,
    MemberRemoval,
    Migration,
    MigrationRequest,
    Pool,
    Portal,
    PortalPolicy,
    Session,
    SessionList,
    TraceSink,
    Volume,
    VolumeChanges,
    VolumeCounters,
    VolumeSpec,
)
from san_target.group.errors import Conflict, Invalid, NotFound
from san_target.peer.load_report import MemberLoad

INITIATOR = "iqn.1993-08.org.debian:01:host"


class FakeService:
    """Volumes and sessions live in dicts; secrets are kept apart, as a real member keeps them."""

    def __init__(self, name: str = "m1", admin: str = "127.0.0.1:3280") -> None:
        self.name = name
        self.admin = admin
        self.policy: PortalPolicy = "none"
        self.secrets: dict[str, list[ChapUser]] = {}
        self.sinks: dict[str, TraceSink] = {}
        self.failure: Exception | None = None
        self.unreachable: tuple[str, ...] = ()
        self.paused = False
        self.health_value = Health(status="ok")
        self.counters_value = Counters()
        self._volumes: dict[str, Volume] = {}
        self._sessions: dict[str, Session] = {}
        self._migrations: dict[str, Migration] = {}
        self.looks_left = 0

    def log_in(self, volume: str, initiator: str = INITIATOR, problem: str = "") -> Session:
        """What a login at a portal does."""
        number = len(self._sessions) + 1
        session = Session(
            id=f"{self.name}-{number}",
            initiator=initiator,
            isid="00023d000001",
            volume=volume,
            member=self.name,
            address=f"127.0.0.1:{50000 + number}",
            since="2026-01-31T12:00:00Z",
            iops=120.5,
            bytes_per_second=4096.0,
            owners={self.name: 1.0},
            problem=problem,
        )
        self._sessions[session.id] = session
        return session

    async def group_status(self) -> GroupStatus:
        self._fail()
        members = await self.members()
        return GroupStatus(
            id="8d6f0d4c",
            name="demo",
            state="ok",
            portal_group_tag=1,
            policy=self.policy,
            store="sqlite:///var/lib/san-target/store.db",
            members=members,
            volumes=len(self._volumes),
            sessions=len(self._sessions),
            size_bytes=sum(volume.size_bytes for volume in self._volumes.values()),
            allocated_bytes=0,
            capacity_bytes=members[0].pool.capacity_bytes,
            free_bytes=members[0].pool.free_bytes,
        )

    async def members(self) -> tuple[Member, ...]:
        self._fail()
        return (
            Member(
                name=self.name,
                state="active",
                incarnation=1,
                portals=("127.0.0.1:3260",),
                admin=self.admin,
                volumes=len(self._volumes),
                sessions=len(self._sessions),
                pool=Pool(directory="/pool", capacity_bytes=1 << 40, free_bytes=1 << 39),
            ),
        )

    async def member(self, name: str) -> Member:
        for member in await self.members():
            if member.name == name:
                return member
        raise NotFound(f"there is no member {name!r}")

    async def remove_member(self, name: str, force: bool) -> MemberRemoval:
        """The member "gone" holds something of "disk" and has ended."""
        if name != "gone":
            await self.member(name)
            raise Conflict(f"member {name!r} is running; stop it first, or drain it")
        if not force:
            raise Conflict(f"member {name!r} holds 4096 bytes of 'disk'; use --force")
        return MemberRemoval(name=name, lost=(LostShare(volume="disk", ranges=1, size_bytes=4096),))

    async def drain_member(self, name: str) -> MemberDrain:
        await self.member(name)
        self.looks_left = 1
        return await self.drain_status(name)

    async def drain_status(self, name: str) -> MemberDrain:
        """After one more look all is gone, but for sessions that cannot be moved."""
        await self.member(name)
        is_left, self.looks_left = self.looks_left > 0, self.looks_left - 1
        staying = tuple(
            StayingSession(id=one.id, initiator=one.initiator, volume=one.volume, reason="it holds RESERVE(6)")
            for one in self._sessions.values()
        )
        left = (LostShare(volume="disk", ranges=1, size_bytes=4096),) if is_left else ()
        return MemberDrain(name=name, state="draining", done=not left and not staying, left=left, sessions=staying)

    async def activate_member(self, name: str) -> Member:
        return await self.member(name)

    async def volumes(self) -> tuple[Volume, ...]:
        self._fail()
        return tuple(self._shown(volume) for _, volume in sorted(self._volumes.items()))

    async def volume(self, name: str) -> Volume:
        return self._shown(self._find(name))

    async def create_volume(self, spec: VolumeSpec) -> Volume:
        if spec.name in self._volumes:
            raise Conflict(f"volume {spec.name!r} exists")
        if spec.copies != 1:
            raise Invalid("this version keeps one copy")
        for member in spec.members:
            await self.member(member)
        self._check_size(spec.size_bytes, spec.block_size)
        values = msgspec.structs.asdict(spec) | _users(spec)
        values["members"] = spec.members or (self.name,)
        iqn = f"iqn.2026-01.example.san:{spec.name}"
        self.secrets[spec.name] = [*spec.chap, *([spec.mutual_chap] if spec.mutual_chap else [])]
        self._volumes[spec.name] = Volume(id=spec.name.encode().hex(), iqn=iqn, sessions=(), **values)
        return await self.volume(spec.name)

    async def change_volume(self, name: str, changes: VolumeChanges) -> Volume:
        volume = self._find(name)
        given = {key: value for key, value in msgspec.structs.asdict(changes).items() if value is not msgspec.UNSET}
        given |= {key: value for key, value in _users(changes).items() if key in given}
        if given.get("mutual_chap") and not given.get("chap", volume.chap):
            raise Invalid("mutual CHAP needs a CHAP user for the initiator too")
        self._volumes[name] = msgspec.structs.replace(volume, **given)
        return await self.volume(name)

    async def resize_volume(self, name: str, size_bytes: int, force: bool) -> Volume:
        volume = self._find(name)
        self._check_size(size_bytes, volume.block_size)
        if size_bytes < volume.size_bytes and not force:
            raise Conflict(f"volume {name!r} would lose data: give --force to make it smaller")
        self._volumes[name] = msgspec.structs.replace(volume, size_bytes=size_bytes)
        return await self.volume(name)

    async def delete_volume(self, name: str, force: bool) -> None:
        volume = self._shown(self._find(name))
        if volume.sessions and not force:
            raise Conflict(f"volume {name!r} has {len(volume.sessions)} sessions")
        for session in volume.sessions:
            del self._sessions[session.id]
        del self._volumes[name]

    async def volume_map(self, name: str, from_lba: int = 0) -> tuple[MapEntry, ...]:
        volume = self._find(name)
        if from_lba >= volume.size_bytes // volume.block_size:
            return ()
        return (MapEntry(start_lba=0, end_lba=volume.size_bytes // volume.block_size, owner=self.name, generation=7),)

    async def migrations(self) -> tuple[Migration, ...]:
        self._fail()
        return tuple(self._migrations.values())

    async def migration(self, migration_id: str) -> Migration:
        self._fail()
        if migration_id not in self._migrations:
            raise NotFound(f"there is no migration {migration_id!r}")
        return self._migrations[migration_id]

    async def start_migrations(self, request: MigrationRequest) -> tuple[Migration, ...]:
        volume = await self.volume(request.volume)
        if request.to == self.name:
            raise Conflict(f"member {request.to!r} owns all of that already")
        blocks = volume.size_bytes // volume.block_size
        made = Migration(
            id=f"g{len(self._migrations) + 1}",
            volume=request.volume,
            range=BlockRange(
                start_lba=0 if isinstance(request.start_lba, msgspec.UnsetType) else request.start_lba,
                end_lba=blocks if isinstance(request.end_lba, msgspec.UnsetType) else request.end_lba,
            ),
            source=self.name,
            destination=request.to,
            state="running",
            wanted="run",
            pieces_done=3,
            pieces_total=8,
            restarts=1,
            mirrored_writes=17,
            bytes_copied=3 << 22,
            limit_bytes_per_second=request.limit_bytes_per_second,
            bytes_per_second=50e6,
            eta_s=4.5,
            created="2026-01-31T12:00:00Z",
        )
        self._migrations[made.id] = made
        return (made,)

    async def pause_migration(self, migration_id: str) -> Migration:
        return await self._wish(migration_id, "pause", "paused")

    async def resume_migration(self, migration_id: str) -> Migration:
        return await self._wish(migration_id, "run", "running")

    async def cancel_migration(self, migration_id: str) -> Migration:
        return await self._wish(migration_id, "cancel", "cancelled")

    async def _wish(self, migration_id: str, wanted: str, state: str) -> Migration:
        found = await self.migration(migration_id)
        if found.state == "cancelled":
            raise Conflict(f"migration {migration_id} is cancelled already")
        self._migrations[migration_id] = msgspec.structs.replace(found, wanted=wanted, state=state)
        return self._migrations[migration_id]

    async def portals(self) -> tuple[Portal, ...]:
        self._fail()
        return (
            Portal(
                address="127.0.0.1:3260",
                advertised="127.0.0.1:3260",
                member=self.name,
                portal_group_tag=1,
                policy=self.policy,
                sessions=len(self._sessions),
            ),
            *(
                Portal(
                    address=f"{name}.example:3260",
                    advertised=f"{name}.example:3260",
                    member=name,
                    portal_group_tag=1,
                    policy=self.policy,
                    sessions=0,
                    state="unreachable",
                )
                for name in self.unreachable
            ),
        )

    async def set_portal_policy(self, policy: PortalPolicy) -> tuple[Portal, ...]:
        self.policy = policy
        return await self.portals()

    async def sessions(self) -> SessionList:
        self._fail()
        return SessionList(sessions=tuple(self._sessions.values()), unreachable=self.unreachable)

    async def drop_session(self, session_id: str) -> None:
        if self._sessions.pop(session_id, None) is None:
            raise NotFound(f"there is no session {session_id!r}")

    async def move_session(self, session_id: str, to: str) -> MovedSession:
        """To "m2" all may go; "busy" takes nobody."""
        if session_id not in self._sessions:
            raise NotFound(f"there is no session {session_id!r}")
        if to not in {"m2", "busy"}:
            raise NotFound(f"there is no member {to!r}")
        if to == "busy":
            raise Conflict(f"the session {session_id!r} is not moved: member busy does not take it")
        session = self._sessions.pop(session_id)
        self._sessions["m2-1"] = msgspec.structs.replace(session, id="m2-1", member=to)
        return MovedSession(id="m2-1", member=to, dropped=False, seconds=0.0123)

    def loads(self) -> tuple[Load, ...]:
        report = MemberLoad(self.name, 1, 7, len(self._sessions), 120.5, 4096.0, cpu_share=0.25, read_share=0.7)
        return (
            Load(member=self.name, state="fresh", age_s=0.5, is_own=True, report=report),
            Load(member="m9", state="missing"),
        )

    async def balance(self, action: Literal["explain", "plan", "run"]) -> BalanceReport:
        self._fail()
        decision = BalanceDecision(
            kind="move",
            taken=True,
            reason="90% of what it touches is at m2",
            volume="disk",
            source=self.name,
            destination="m2",
            efficiency_before=0.5,
            efficiency_after=0.75,
            gain_s=1.5,
            cost_s=0.1,
            session=f"{self.name}-1",
            initiator=INITIATOR,
        )
        data = msgspec.structs.replace(decision, kind="migrate", taken=False, session="", end_lba=2048)
        action_done = BalanceAction(time="2026-01-31T12:00:00Z", decision=decision, outcome="done")
        return BalanceReport(
            decider=self.name,
            state="paused" if self.paused else "active",
            reason="`balance resume` goes on" if self.paused else "",
            efficiency=0.5,
            members=2,
            reports=1,
            actions=(action_done,) if action == "run" else (),
            decisions=(decision, data),
        )

    async def pause_balancing(self, paused: bool) -> None:
        self.paused = paused

    def set_trace(self, session_id: str, sink: TraceSink | None) -> None:
        if sink is None:
            self.sinks.pop(session_id, None)
        elif session_id in self._sessions:
            self.sinks[session_id] = sink
        else:
            raise NotFound(f"there is no session {session_id!r}")

    def counters(self) -> Counters:
        volumes = tuple(VolumeCounters(volume=name, size_bytes=v.size_bytes) for name, v in self._volumes.items())
        return msgspec.structs.replace(self.counters_value, sessions=len(self._sessions), volumes=volumes)

    def health(self) -> Health:
        return self.health_value

    def _fail(self) -> None:
        if self.failure is not None:
            raise self.failure

    def _find(self, name: str) -> Volume:
        if name not in self._volumes:
            raise NotFound(f"there is no volume {name!r}")
        return self._volumes[name]

    def _shown(self, volume: Volume) -> Volume:
        sessions = tuple(session for session in self._sessions.values() if session.volume == volume.name)
        return msgspec.structs.replace(volume, sessions=sessions, unreachable=self.unreachable)

    def _check_size(self, size_bytes: int, block_size: int) -> None:
        if size_bytes % block_size:
            raise Invalid(f"size {size_bytes} is no multiple of the block size {block_size}")


def _users(given: VolumeSpec | VolumeChanges) -> dict[str, Any]:
    """The CHAP rules as they are shown: user names without secrets."""
    chap, mutual = given.chap, given.mutual_chap
    return {
        "chap": chap if chap is msgspec.UNSET else tuple(user.user for user in chap),
        "mutual_chap": mutual.user if isinstance(mutual, ChapUser) else mutual,
    }
