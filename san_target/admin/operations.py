"""The operations of the REST API as one table: routes, OpenAPI document and tests are made from it.

A handler is a small function of the context and the decoded request; refusals are `san_target.group.errors`.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from san_target.admin.balance import BalanceReport, Load, MovedSession
from san_target.admin.drain import MemberDrain
from san_target.admin.service import (
    BalanceChanges,
    BalanceRun,
    GroupStatus,
    MapEntry,
    Member,
    MemberRemoval,
    MemberService,
    Migration,
    MigrationRequest,
    MoveRequest,
    Portal,
    PortalChanges,
    Resize,
    Session,
    TraceRequest,
    Volume,
    VolumeChanges,
    VolumeSpec,
)
from san_target.admin.trace import Trace, Tracer
from san_target.group.errors import Invalid, NotFound

UNREACHABLE_HEADER = "San-Target-Unreachable"


@dataclass(frozen=True, slots=True)
class Call:
    """One decoded request. path: path parameters; query: query parameters; body: a struct, or None.

    headers: to be sent with the answer.
    """

    service: MemberService
    tracer: Tracer
    path: Mapping[str, str]
    query: Mapping[str, str]
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)

    def note_unreachable(self, members: Iterable[str]) -> None:
        """Tell beside the answer whose part of it is missing."""
        names = ", ".join(dict.fromkeys(members))
        if names:
            self.headers[UNREACHABLE_HEADER] = names

    def flag(self, name: str) -> bool:
        """A query parameter "true" or "false" (absent: false). Invalid: anything else."""
        value = self.query.get(name, "false")
        if value not in {"true", "false"}:
            raise Invalid(f"{name}: expected true or false")
        return value == "true"

    def number(self, name: str) -> int:
        """A query parameter that is a count (absent: 0). Invalid: anything else."""
        value = self.query.get(name, "0")
        if not (value.isascii() and value.isdigit() and len(value) <= 18):
            raise Invalid(f"{name}: expected a count")
        return int(value)


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path. answer: type of the JSON answer, None = no content; query: name -> JSON type."""

    method: str
    path: str
    name: str
    summary: str
    handler: Callable[[Call], Awaitable[Any]]
    answer: Any = None
    body: Any = None
    status: int = 200
    query: Mapping[str, str] | None = None
    failures: tuple[int, ...] = ()


async def group_status(call: Call) -> GroupStatus:
    return await call.service.group_status()


async def list_members(call: Call) -> tuple[Member, ...]:
    return await call.service.members()


async def show_member(call: Call) -> Member:
    return await call.service.member(call.path["name"])


async def remove_member(call: Call) -> MemberRemoval:
    return await call.service.remove_member(call.path["name"], call.flag("force"))


async def drain_member(call: Call) -> MemberDrain:
    return await call.service.drain_member(call.path["name"])


async def drain_status(call: Call) -> MemberDrain:
    return await call.service.drain_status(call.path["name"])


async def activate_member(call: Call) -> Member:
    return await call.service.activate_member(call.path["name"])


async def list_volumes(call: Call) -> tuple[Volume, ...]:
    volumes = await call.service.volumes()
    call.note_unreachable(name for volume in volumes for name in volume.unreachable)
    return volumes


async def show_volume(call: Call) -> Volume:
    volume = await call.service.volume(call.path["name"])
    call.note_unreachable(volume.unreachable)
    return volume


async def create_volume(call: Call) -> Volume:
    return await call.service.create_volume(call.body)


async def change_volume(call: Call) -> Volume:
    return await call.service.change_volume(call.path["name"], call.body)


async def resize_volume(call: Call) -> Volume:
    return await call.service.resize_volume(call.path["name"], call.body.size_bytes, call.body.force)


async def delete_volume(call: Call) -> None:
    await call.service.delete_volume(call.path["name"], call.flag("force"))


async def volume_map(call: Call) -> tuple[MapEntry, ...]:
    return await call.service.volume_map(call.path["name"], call.number("from"))


async def list_migrations(call: Call) -> tuple[Migration, ...]:
    return await call.service.migrations()


async def start_migrations(call: Call) -> tuple[Migration, ...]:
    return await call.service.start_migrations(call.body)


async def show_migration(call: Call) -> Migration:
    return await call.service.migration(call.path["id"])


async def pause_migration(call: Call) -> Migration:
    return await call.service.pause_migration(call.path["id"])


async def resume_migration(call: Call) -> Migration:
    return await call.service.resume_migration(call.path["id"])


async def cancel_migration(call: Call) -> Migration:
    return await call.service.cancel_migration(call.path["id"])


async def list_portals(call: Call) -> tuple[Portal, ...]:
    portals = await call.service.portals()
    call.note_unreachable(portal.member for portal in portals if portal.state == "unreachable")
    return portals


async def show_portal(call: Call) -> Portal:
    wanted = call.path["address"]
    for portal in await call.service.portals():
        if wanted in {portal.address, portal.advertised}:
            return portal
    raise NotFound(f"there is no portal {wanted!r}")


async def change_portals(call: Call) -> tuple[Portal, ...]:
    portals = await call.service.set_portal_policy(call.body.policy)
    call.note_unreachable(portal.member for portal in portals if portal.state == "unreachable")
    return portals


async def list_sessions(call: Call) -> tuple[Session, ...]:
    listed = await call.service.sessions()
    call.note_unreachable(listed.unreachable)
    return listed.sessions


async def show_session(call: Call) -> Session:
    wanted = call.path["id"]
    listed = await call.service.sessions()
    for session in listed.sessions:
        if session.id == wanted:
            return session
    silent = f" at a member that answers ({', '.join(listed.unreachable)} does not)" if listed.unreachable else ""
    raise NotFound(f"there is no session {wanted!r}{silent}")


async def drop_session(call: Call) -> None:
    await call.service.drop_session(call.path["id"])


async def move_session(call: Call) -> MovedSession:
    return await call.service.move_session(call.path["id"], call.body.to)


async def show_loads(call: Call) -> tuple[Load, ...]:
    return call.service.loads()


async def show_balance(call: Call) -> BalanceReport:
    return await call.service.balance("explain")


async def change_balance(call: Call) -> BalanceReport:
    await call.service.pause_balancing(call.body.paused)
    return await call.service.balance("explain")


async def run_balance(call: Call) -> BalanceReport:
    return await call.service.balance("plan" if call.body.dry_run else "run")


async def start_trace(call: Call) -> Trace:
    return call.tracer.start(call.path["id"], call.body.seconds)


async def read_trace(call: Call) -> Trace:
    return call.tracer.read(call.path["id"], call.number("after"))


async def stop_trace(call: Call) -> None:
    call.tracer.stop(call.path["id"])


FORCE = {"force": "boolean"}
AFTER = {"after": "integer"}
FROM = {"from": "integer"}

OPERATIONS: tuple[Operation, ...] = (
    Operation("GET", "/group", "group_status", "The group at a glance", group_status, GroupStatus),
    Operation("GET", "/members", "list_members", "All members", list_members, tuple[Member, ...]),
    Operation("GET", "/members/{name}", "show_member", "One member", show_member, Member, failures=(404,)),
    Operation(
        "DELETE",
        "/members/{name}",
        "remove_member",
        "Take a member out of the group for good; `force` gives up what it holds",
        remove_member,
        MemberRemoval,
        query=FORCE,
        failures=(404, 409),
    ),
    Operation(
        "POST",
        "/members/{name}/drain",
        "drain_member",
        "Let a member give all its sessions and blocks to others",
        drain_member,
        MemberDrain,
        failures=(404, 409),
    ),
    Operation(
        "GET",
        "/members/{name}/drain",
        "drain_status",
        "What is left at a member that is being drained",
        drain_status,
        MemberDrain,
        failures=(404,),
    ),
    Operation(
        "POST",
        "/members/{name}/activate",
        "activate_member",
        "End a drain: the member takes sessions and blocks again",
        activate_member,
        Member,
        failures=(404, 409),
    ),
    Operation("GET", "/volumes", "list_volumes", "All volumes, by name", list_volumes, tuple[Volume, ...]),
    Operation(
        "POST",
        "/volumes",
        "create_volume",
        "Create a volume; it serves when this returns",
        create_volume,
        Volume,
        VolumeSpec,
        201,
        failures=(404, 409),
    ),
    Operation("GET", "/volumes/{name}", "show_volume", "One volume", show_volume, Volume, failures=(404,)),
    Operation(
        "PATCH",
        "/volumes/{name}",
        "change_volume",
        "Change a volume's access rules and flags; what is not given stays",
        change_volume,
        Volume,
        VolumeChanges,
        failures=(404, 409),
    ),
    Operation(
        "DELETE",
        "/volumes/{name}",
        "delete_volume",
        "Delete a volume and its data; `force` ends its sessions first",
        delete_volume,
        status=204,
        query=FORCE,
        failures=(404, 409),
    ),
    Operation(
        "POST",
        "/volumes/{name}/resize",
        "resize_volume",
        "Change a volume's size; smaller needs `force` and destroys what lies beyond",
        resize_volume,
        Volume,
        Resize,
        failures=(404, 409),
    ),
    Operation(
        "GET",
        "/volumes/{name}/map",
        "volume_map",
        "The partition map: sorted, gap-free ranges and who holds them, a page at a time from the LBA `from`",
        volume_map,
        tuple[MapEntry, ...],
        query=FROM,
        failures=(404, 409),
    ),
    Operation(
        "GET",
        "/migrations",
        "list_migrations",
        "Migrations under way, and the last ones that ended",
        list_migrations,
        tuple[Migration, ...],
    ),
    Operation(
        "POST",
        "/migrations",
        "start_migrations",
        "Move a volume, or a range of it, to a member: one migration for each member that owns some of it",
        start_migrations,
        tuple[Migration, ...],
        MigrationRequest,
        201,
        failures=(404, 409),
    ),
    Operation("GET", "/migrations/{id}", "show_migration", "One migration", show_migration, Migration, failures=(404,)),
    Operation(
        "POST",
        "/migrations/{id}/pause",
        "pause_migration",
        "Stop after, or in the midst of, the present piece; what was moved stays",
        pause_migration,
        Migration,
        failures=(404, 409),
    ),
    Operation(
        "POST",
        "/migrations/{id}/resume",
        "resume_migration",
        "Go on with a paused migration",
        resume_migration,
        Migration,
        failures=(404, 409),
    ),
    Operation(
        "POST",
        "/migrations/{id}/cancel",
        "cancel_migration",
        "End a migration; what was moved stays where it is",
        cancel_migration,
        Migration,
        failures=(404, 409),
    ),
    Operation("GET", "/portals", "list_portals", "All portals", list_portals, tuple[Portal, ...]),
    Operation(
        "PATCH",
        "/portals",
        "change_portals",
        "Set the redirection policy of the portal group",
        change_portals,
        tuple[Portal, ...],
        PortalChanges,
    ),
    Operation("GET", "/portals/{address}", "show_portal", "One portal", show_portal, Portal, failures=(404,)),
    Operation("GET", "/sessions", "list_sessions", "All sessions", list_sessions, tuple[Session, ...]),
    Operation("GET", "/sessions/{id}", "show_session", "One session", show_session, Session, failures=(404,)),
    Operation(
        "DELETE",
        "/sessions/{id}",
        "drop_session",
        "Close a session's connections; its initiator may log in again",
        drop_session,
        status=204,
        failures=(404, 409),
    ),
    Operation(
        "POST",
        "/sessions/{id}/move",
        "move_session",
        "Ask a session's initiator to go on at another member, without an error; answered when it is there",
        move_session,
        MovedSession,
        MoveRequest,
        failures=(404, 409),
    ),
    Operation("GET", "/load", "show_loads", "The last load report of each member", show_loads, tuple[Load, ...]),
    Operation(
        "GET",
        "/balance",
        "show_balance",
        "Who decides what is moved, what was decided last and why, and what was done",
        show_balance,
        BalanceReport,
        failures=(409,),
    ),
    Operation(
        "PATCH",
        "/balance",
        "change_balance",
        "Pause balancing in the whole group, or go on",
        change_balance,
        BalanceReport,
        BalanceChanges,
        failures=(409,),
    ),
    Operation(
        "POST",
        "/balance/run",
        "run_balance",
        "Decide now, and do it unless it is a dry run; whatever the policy of the portal group",
        run_balance,
        BalanceReport,
        BalanceRun,
        failures=(409,),
    ),
    Operation(
        "POST",
        "/sessions/{id}/trace",
        "start_trace",
        "Trace the PDUs of a session for some seconds, into a bounded ring",
        start_trace,
        Trace,
        TraceRequest,
        201,
        failures=(404, 409),
    ),
    Operation(
        "GET",
        "/sessions/{id}/trace",
        "read_trace",
        "The traced PDUs with a number greater than `after`, a page at a time",
        read_trace,
        Trace,
        query=AFTER,
        failures=(404,),
    ),
    Operation(
        "DELETE",
        "/sessions/{id}/trace",
        "stop_trace",
        "End a trace; what it holds stays readable for a while",
        stop_trace,
        status=204,
        failures=(404,),
    ),
)
