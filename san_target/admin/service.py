"""What the administration asks of a member, and the values that go over the HTTP API (their fields are its JSON keys).

`MemberService` is implemented by the member; the API, the web page and the metrics know nothing else of it.
Sizes and rates are in bytes, LBAs in logical blocks, times in seconds or as UTC text ("2026-01-31T12:00:00Z").
Secrets go in (`ChapUser`), never out: every answer carries user names only.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Literal, Protocol, TypeAlias

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from san_target.admin.balance import BalanceReport, Load, MovedSession
from san_target.admin.migrations import BlockRange as BlockRange
from san_target.admin.migrations import Migration as Migration

if TYPE_CHECKING:
    from san_target.admin.drain import MemberDrain

# "(?!\n)" because Python's "$" also matches before a final newline.
NAME_PATTERN = r"^[a-z0-9]([a-z0-9.-]{0,62}[a-z0-9])?$(?!\n)"
# RFC 7143 4.2.7: type designators iqn, eui and naa.
INITIATOR_NAME_PATTERN = (
    r"^(iqn\.[0-9]{4}-[0-9]{2}\.[^\s,]+|eui\.[0-9A-Fa-f]{16}|naa\.([0-9A-Fa-f]{16}|[0-9A-Fa-f]{32}))$(?!\n)"
)

Name: TypeAlias = Annotated[str, Meta(pattern=NAME_PATTERN, description="lower-case letters, digits, '-' and '.'")]
InitiatorName: TypeAlias = Annotated[str, Meta(pattern=INITIATOR_NAME_PATTERN, max_length=223)]
SizeBytes: TypeAlias = Annotated[int, Meta(gt=0, le=1 << 62)]
BlockSize: TypeAlias = Literal[512, 4096]
PortalPolicy: TypeAlias = Literal["round-robin", "least-loaded", "adaptive", "none"]

MAP_ENTRIES_MAX = 1000
"""Of one answer, so that a large map does not hold up the member."""

TraceSink: TypeAlias = Callable[[str, bytes], None]
"""Called with ("received" | "sent", the 48-byte basic header segment) for each PDU of a session."""


class Request(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A body sent to the API. Unknown keys are refused, so that a misspelt option is never silently ignored."""


class ChapUser(Request, kw_only=True, frozen=True):
    """A CHAP user with its secret; RFC 7143 9.2.1 asks for at least 96 bits."""

    user: Annotated[str, Meta(min_length=1, max_length=255)]
    secret: Annotated[str, Meta(min_length=12, max_length=128)]

    def __repr__(self) -> str:
        return f"ChapUser(user={self.user!r}, secret=...)"


class VolumeSpec(Request, kw_only=True, frozen=True):
    """A volume to create. No `members` = spread over all by their free space; no `allow` = every initiator."""

    name: Name
    size_bytes: SizeBytes
    block_size: BlockSize = 512
    copies: Literal[1, 2] = 1
    members: tuple[str, ...] = ()
    allow: tuple[InitiatorName, ...] = ()
    chap: tuple[ChapUser, ...] = ()
    mutual_chap: ChapUser | None = None
    write_through: bool = False
    read_only: bool = False
    removable: bool = False
    multipath: bool = False


class VolumeChanges(Request, kw_only=True, frozen=True):
    """Changes of a volume; what is not given stays. Empty `allow` or `chap`, null `mutual_chap`: the rule goes."""

    allow: tuple[InitiatorName, ...] | UnsetType = UNSET
    chap: tuple[ChapUser, ...] | UnsetType = UNSET
    mutual_chap: ChapUser | UnsetType | None = UNSET
    write_through: bool | UnsetType = UNSET
    read_only: bool | UnsetType = UNSET
    removable: bool | UnsetType = UNSET
    multipath: bool | UnsetType = UNSET


class Resize(Request, kw_only=True, frozen=True):
    """A new size. Making a volume smaller destroys what lies beyond it, so that needs `force`."""

    size_bytes: SizeBytes
    force: bool = False


class PortalChanges(Request, kw_only=True, frozen=True):
    """Changes of the portal group."""

    policy: PortalPolicy


class MigrationRequest(Request, kw_only=True, frozen=True):
    """Move what others than the member `to` own of a volume, or of its blocks [start_lba, end_lba), to that member.

    The range begins and ends at multiples of 1 MiB, or at the end of the volume. limit_bytes_per_second: 0 = none.
    """

    volume: str
    to: str
    start_lba: Annotated[int, Meta(ge=0)] | UnsetType = UNSET
    end_lba: Annotated[int, Meta(gt=0)] | UnsetType = UNSET
    limit_bytes_per_second: Annotated[int, Meta(ge=0, le=1 << 50)] = 0


class MoveRequest(Request, kw_only=True, frozen=True):
    """Move a session to the member `to`."""

    to: Name


class BalanceChanges(Request, kw_only=True, frozen=True):
    """paused: nothing is moved by itself any more, in the whole group; false: again."""

    paused: bool


class BalanceRun(Request, kw_only=True, frozen=True):
    """Look now; what is decided is done, unless `dry_run`."""

    dry_run: bool = False


class TraceRequest(Request, kw_only=True, frozen=True):
    """Turn the PDU trace of a session on for `seconds`; it ends by itself."""

    seconds: Annotated[float, Meta(gt=0, le=3600)] = 60.0


class Session(Struct, kw_only=True, frozen=True):
    """A normal session. id: unique in the group. isid: 12 hex digits. since: UTC text.

    iops and bytes_per_second are means over the last few seconds; owners: share of its I/O by owning member, sum 1
    (empty without I/O). problem: what is wrong about it, for the operator.
    """

    id: str
    initiator: str
    isid: str
    volume: str
    member: str
    address: str
    since: str
    iops: float = 0.0
    bytes_per_second: float = 0.0
    owners: dict[str, float] = {}
    user: str = ""
    header_digest: bool = False
    data_digest: bool = False
    commands: int = 0
    commands_in_flight: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    problem: str = ""


class SessionList(Struct, kw_only=True, frozen=True):
    """The sessions of all members; unreachable: those that did not answer, whose sessions are missing."""

    sessions: tuple[Session, ...]
    unreachable: tuple[str, ...] = ()


class Volume(Struct, kw_only=True, frozen=True):
    """A volume. chap: user names; mutual_chap: user name or null. state: ready | not-ready | failed | deleting.

    reason says why a state is not "ready", or what else is wrong. allocated_bytes: pool space taken. wwid: as hosts see
    it ("naa.6..."). unreachable: members that did not say which sessions they have.
    """

    id: str
    name: str
    iqn: str
    size_bytes: int
    block_size: int
    members: tuple[str, ...]
    sessions: tuple[Session, ...]
    unreachable: tuple[str, ...] = ()
    wwid: str = ""
    copies: int = 1
    allow: tuple[str, ...] = ()
    chap: tuple[str, ...] = ()
    mutual_chap: str | None = None
    write_through: bool = False
    read_only: bool = False
    removable: bool = False
    multipath: bool = False
    state: Literal["ready", "not-ready", "failed", "deleting"] = "ready"
    reason: str = ""
    allocated_bytes: int = 0


class MapEntry(Struct, kw_only=True, frozen=True):
    """One range of a partition map, in logical blocks; end_lba is exclusive."""

    start_lba: int
    end_lba: int
    owner: str
    copies: tuple[str, ...] = ()
    joining: str | None = None
    generation: int


class Pool(Struct, kw_only=True, frozen=True):
    """A member's disk space. allocated_bytes: by volumes. state low: under the soft threshold."""

    directory: str
    capacity_bytes: int
    free_bytes: int
    allocated_bytes: int = 0
    state: Literal["ok", "low", "full", "failed"] = "ok"
    reason: str = ""


class Member(Struct, kw_only=True, frozen=True):
    """A member. since: when this incarnation began to serve. volumes: those it holds blocks of.

    state: active | starting | stopping | draining | unreachable (its lease has ended) | removing | removed. What
    another member does, and what its volumes take of its pool, is known to that member alone; its version and the space
    of its pool are as it told last.
    """

    name: str
    state: Literal["active", "starting", "stopping", "draining", "unreachable", "removing", "removed"]
    incarnation: int
    portals: tuple[str, ...]
    admin: str
    peer: str = ""
    version: str = ""
    pid: int = 0
    since: str = ""
    volumes: int = 0
    sessions: int = 0
    iops: float = 0.0
    bytes_per_second: float = 0.0
    pool: Pool
    reason: str = ""


class LostShare(Struct, kw_only=True, frozen=True):
    """What is lost of a volume with a member that was given up."""

    volume: str
    ranges: int
    size_bytes: int


class MemberRemoval(Struct, kw_only=True, frozen=True):
    """A member is out of the group. lost: what only that member held, by volume; reading it ends in MEDIUM ERROR."""

    name: str
    lost: tuple[LostShare, ...] = ()


class GroupStatus(Struct, kw_only=True, frozen=True):
    """The group at a glance. store: its URL without credentials. state: ok | degraded, with the reasons."""

    id: str
    name: str
    state: Literal["ok", "degraded"]
    reasons: tuple[str, ...] = ()
    portal_group_tag: int
    policy: PortalPolicy
    store: str
    members: tuple[Member, ...]
    volumes: int
    sessions: int
    size_bytes: int
    allocated_bytes: int
    capacity_bytes: int
    free_bytes: int


class Portal(Struct, kw_only=True, frozen=True):
    """A portal. address: as bound; advertised: as told to initiators. policy: of the whole portal group.

    state unreachable: its member did not answer; address is the one advertised then, and sessions 0.
    """

    address: str
    advertised: str
    member: str
    portal_group_tag: int
    policy: PortalPolicy
    sessions: int
    state: Literal["active", "unreachable"] = "active"


class VolumeCounters(Struct, kw_only=True, frozen=True):
    """Since the member's start. commands: all; errors: commands that ended with CHECK CONDITION or worse."""

    volume: str
    commands: int = 0
    read_commands: int = 0
    write_commands: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    errors: int = 0
    sessions: int = 0
    size_bytes: int = 0
    allocated_bytes: int = 0


class Counters(Struct, kw_only=True, frozen=True):
    """Since the member's start, over all volumes, also deleted ones. sessions, connections and pool: as of now.

    sessions_moved: by this member to others; sessions_not_moved: that could not be; sessions_disobeyed: that did not go
    when they were asked to, so that their connection was closed.
    reinstatements: live sessions that another login of their initiator port ended; shared_initiator_ports: those that
    several machines use now, which end each other's sessions.
    """

    commands: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    errors: int = 0
    sessions: int = 0
    connections: int = 0
    connections_accepted: int = 0
    logins: int = 0
    login_failures: int = 0
    redirections: int = 0
    reinstatements: int = 0
    shared_initiator_ports: int = 0
    rejects: int = 0
    digest_errors: int = 0
    task_management: int = 0
    migrations: int = 0
    migrated_bytes: int = 0
    migration_restarts: int = 0
    mirrored_writes: int = 0
    pool_capacity_bytes: int = 0
    pool_free_bytes: int = 0
    sessions_moved: int = 0
    sessions_not_moved: int = 0
    sessions_disobeyed: int = 0
    volumes: tuple[VolumeCounters, ...] = ()


class Health(Struct, kw_only=True, frozen=True):
    """ok: new sessions are served and the store answers. degraded: serving, with reasons. The others do not serve."""

    status: Literal["ok", "degraded", "starting", "stopping", "failed"]
    reasons: tuple[str, ...] = ()


class MemberService(Protocol):
    """A member, as its administration sees it. All calls come from the member's own event loop.

    Refusals are `san_target.group.errors`: NotFound, Conflict, Invalid. A store that cannot be reached raises
    `san_target.metadata.store.StoreError`.
    """

    async def group_status(self) -> GroupStatus: ...

    async def members(self) -> tuple[Member, ...]: ...

    async def member(self, name: str) -> Member: ...

    async def remove_member(self, name: str, force: bool) -> MemberRemoval:
        """For good. Conflict: it runs, or holds blocks and not `force`, which gives them up. NotFound."""
        ...

    async def drain_member(self, name: str) -> "MemberDrain":
        """It gives its sessions and blocks to others from now on. Conflict: nobody could take them."""
        ...

    async def drain_status(self, name: str) -> "MemberDrain": ...

    async def activate_member(self, name: str) -> Member:
        """The end of a drain."""
        ...

    async def volumes(self) -> tuple[Volume, ...]:
        """By name."""
        ...

    async def volume(self, name: str) -> Volume: ...

    async def create_volume(self, spec: VolumeSpec) -> Volume:
        """Serving when this returns. Invalid: size no multiple of the block size, more copies than this version or
        group can keep, mutual_chap without chap or with the same secret. Conflict: name taken; NotFound: a member."""
        ...

    async def change_volume(self, name: str, changes: VolumeChanges) -> Volume:
        """Durable and in force for new logins and commands when this returns; live sessions stay."""
        ...

    async def resize_volume(self, name: str, size_bytes: int, force: bool) -> Volume:
        """Initiators get a unit attention. Conflict: smaller, not `force`; Invalid: no multiple of the block size."""
        ...

    async def delete_volume(self, name: str, force: bool) -> None:
        """Conflict: sessions are logged in and not `force` (which ends them)."""
        ...

    async def volume_map(self, name: str, from_lba: int = 0) -> tuple[MapEntry, ...]:
        """Sorted and gap-free, at most MAP_ENTRIES_MAX from the range that `from_lba` belongs to; empty beyond the end.

        Conflict: the store's ranges are no map.
        """
        ...

    async def migrations(self) -> tuple[Migration, ...]:
        """Those under way, and the last ones that ended; the oldest first."""
        ...

    async def migration(self, migration_id: str) -> Migration: ...

    async def start_migrations(self, request: MigrationRequest) -> tuple[Migration, ...]:
        """One for each member that owns some of it. NotFound: volume or member; Invalid: the range; Conflict: the
        member owns all of it, does not run or is draining, or a part is being moved already."""
        ...

    async def pause_migration(self, migration_id: str) -> Migration: ...

    async def resume_migration(self, migration_id: str) -> Migration: ...

    async def cancel_migration(self, migration_id: str) -> Migration:
        """What was moved stays where it is. Conflict: it has ended."""
        ...

    async def portals(self) -> tuple[Portal, ...]:
        """Of all members, by member."""
        ...

    async def set_portal_policy(self, policy: PortalPolicy) -> tuple[Portal, ...]: ...

    async def sessions(self) -> SessionList: ...

    async def drop_session(self, session_id: str) -> None:
        """Close its connections; the initiator may log in again. NotFound: no such session; Conflict: its member does
        not answer."""
        ...

    async def move_session(self, session_id: str, to: str) -> MovedSession:
        """Ask its initiator to go to the member `to`, which has accepted it. NotFound: session or member. Conflict: it
        cannot be moved, or did not arrive there; says why."""
        ...

    def loads(self) -> tuple[Load, ...]:
        """What all members told of their load last, by name."""
        ...

    async def balance(self, action: Literal["explain", "plan", "run"]) -> BalanceReport:
        """As the member that decides sees it. explain: what it decided last; plan: a look now; run: and what it decides
        then is done, whatever the policy. Conflict: nobody decides."""
        ...

    async def pause_balancing(self, paused: bool) -> None:
        """For the whole group: nothing is moved by itself, or again."""
        ...

    def set_trace(self, session_id: str, sink: TraceSink | None) -> None:
        """Call `sink` for every PDU of a session of this member, or stop with None. NotFound (never for None)."""
        ...

    def counters(self) -> Counters: ...

    def health(self) -> Health: ...


def to_json(value: object) -> bytes:
    """A value of this module as the API sends it."""
    return msgspec.json.encode(value)
