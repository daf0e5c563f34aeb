"""Sessions and portals of the whole group: what this member tells of its own, and asks of the others.

Each member answers for itself. One that does not answer in time is named, and its part is missing: an administration
that waits for a dead member could not be used to find out about it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeVar

import msgspec

from san_target.admin import service as values
from san_target.group.errors import Conflict, NotFound
from san_target.peer.messages import (
    Dropped,
    DropSession,
    Message,
    PortalInfo,
    PortalsReply,
    PortalsRequest,
    SessionInfo,
    SessionsReply,
    SessionsRequest,
)
from san_target.server.other_members import NoAnswer

if TYPE_CHECKING:
    from san_target.server.other_members import Handlers, OtherMembers

T = TypeVar("T")
M = TypeVar("M", bound=Message)

ANSWER_S: Final = 2.0
LISTING_S: Final = 10.0
# A control answer may have 64 KiB.
PAGE_BYTES: Final = 30_000
PROBLEMS_MAX: Final = 32
PROBLEM_CHARACTERS_MAX: Final = 512


class Entry(NamedTuple):
    """A session by its handle (TSIH); show: as the administration sees it, worked out when it is wanted."""

    handle: int
    show: Callable[[], values.Session]


class Own(Protocol):
    """What this member tells of itself."""

    def entries(self) -> Iterable[Entry]:
        """Its sessions of targets."""
        ...

    def problems(self) -> Mapping[str, Sequence[str]]:
        """What is wrong about sessions, by volume."""
        ...

    def portals(self) -> Sequence[PortalInfo]: ...

    def drop(self, session_id: str) -> bool:
        """End a session; False: there is none of this id."""
        ...


@dataclass(slots=True)
class Gathered:
    """What the members said. missing: those that did not answer, by name.

    problems: what is wrong about sessions, by volume; also where none is logged in at the moment.
    """

    sessions: list[values.Session]
    problems: dict[str, list[str]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    def add_problems(self, problems: Mapping[str, Iterable[str]]) -> None:
        """Each once: where two machines quarrel over sessions at two members, both tell of it."""
        for volume, texts in problems.items():
            known = self.problems.setdefault(volume, [])
            known += [text for text in texts if text not in known]


class OtherPortals(NamedTuple):
    """The portals of another member. answered: False = as they were told last."""

    member: str
    portals: Sequence[PortalInfo]
    answered: bool


class GroupSessions:
    """others: None while this member is alone."""

    def __init__(self, name: str, own: Own, others: "OtherMembers | None" = None) -> None:
        self._name = name
        self._own = own
        self._others = others

    # For the administration -------------------------------------------------------------------------------------------

    async def all(self) -> Gathered:
        """Every session, by member and session handle."""
        gathered = Gathered([entry.show() for entry in self._entries()])
        gathered.add_problems(self._own.problems())
        members = self._other_names()
        answers = await asyncio.gather(*(_or_none(self._of(name)) for name in members))
        for name, answer in zip(members, answers, strict=True):
            if answer is None:
                gathered.missing.append(name)
                continue
            gathered.sessions += answer.sessions
            gathered.add_problems(answer.problems)
        gathered.sessions.sort(key=lambda session: session.member)  # stable: handles stay in order
        return gathered

    async def drop(self, session_id: str) -> None:
        """Wherever it is. NotFound; Conflict: its member does not answer."""
        member = self.elsewhere(session_id)
        if member:
            try:
                found = (await self._ask(member, DropSession(session_id), Dropped)).found
            except NoAnswer as error:
                raise Conflict(f"the session {session_id!r} cannot be dropped: {error}") from None
        else:
            found = self._own.drop(session_id)
        if not found:
            raise NotFound(f"there is no session {session_id!r}; `session list` shows all")

    def elsewhere(self, session_id: str) -> str:
        """The other member that gave a session this id; "" for none."""
        member = session_id.rpartition("-")[0]
        return member if member in self._other_names() else ""

    async def other_portals(self) -> list[OtherPortals]:
        """Those of all other members."""
        members = [] if self._others is None else self._others.all()
        answers = await asyncio.gather(
            *(_or_none(self._ask(one.name, PortalsRequest(), PortalsReply)) for one in members)
        )
        return [
            OtherPortals(one.name, [PortalInfo(told, told) for told in one.portals], answered=False)
            if answer is None
            else OtherPortals(one.name, answer.portals, answered=True)
            for one, answer in zip(members, answers, strict=True)
        ]

    async def _of(self, member: str) -> Gathered:
        """All pages of another member. NoAnswer: also where it stops answering half-way."""
        gathered, after = Gathered([]), -1
        try:
            async with asyncio.timeout(LISTING_S):
                while after:
                    page = await self._ask(member, SessionsRequest(max(after, 0)), SessionsReply)
                    gathered.sessions += (
                        msgspec.convert(one, values.Session, from_attributes=True) for one in page.sessions
                    )
                    gathered.add_problems(page.problems)
                    after = page.next if page.next > after else 0
        except TimeoutError:
            raise NoAnswer(f"member {member} does not come to the end of its sessions") from None
        return gathered

    async def _ask(self, member: str, message: Message, kind: type[M]) -> M:
        if self._others is None:
            raise NoAnswer(f"there is no member {member}")
        return await self._others.ask(member, message, kind, ANSWER_S)

    def _other_names(self) -> list[str]:
        return [] if self._others is None else [one.name for one in self._others.all()]

    def _entries(self) -> list[Entry]:
        return sorted(self._own.entries(), key=lambda entry: entry.handle)

    # What others ask --------------------------------------------------------------------------------------------------

    def handlers(self) -> "Handlers":
        return {
            SessionsRequest: self.page,
            DropSession: lambda request: Dropped(self._own.drop(request.session_id)),
            PortalsRequest: lambda _: PortalsReply(tuple(self._own.portals())),
        }

    def page(self, request: SessionsRequest) -> SessionsReply:
        """As many sessions as fit into one answer; problems come with the last."""
        rows: list[SessionInfo] = []
        size_bytes = last = 0
        for handle, show in self._entries():
            if handle <= request.after:
                continue
            row = msgspec.convert(show(), SessionInfo, from_attributes=True)
            size_bytes += len(msgspec.msgpack.encode(row))
            if rows and size_bytes > PAGE_BYTES:
                return SessionsReply(tuple(rows), last)
            rows.append(row)
            last = handle
        return SessionsReply(tuple(rows), 0, _some(self._own.problems()))


def _some(problems: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """As many as an answer has room for; who has more is told enough by these."""
    told: dict[str, list[str]] = {}
    every = ((volume, text) for volume, texts in problems.items() for text in texts)
    for (volume, text), _ in zip(every, range(PROBLEMS_MAX), strict=False):
        told.setdefault(volume, []).append(text[:PROBLEM_CHARACTERS_MAX])
    return {volume: tuple(texts) for volume, texts in told.items()}


async def _or_none(answer: Awaitable[T]) -> T | None:
    try:
        return await answer
    except NoAnswer:
        return None
