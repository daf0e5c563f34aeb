"""What a login needs to know of targets: names, portals, who may log in, and where to send an initiator instead.

`server/member.py` fills these in; `session` only asks.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from san_target.scsi.logical_unit import LogicalUnit
    from san_target.session.session import Session


@dataclass(slots=True, frozen=True)
class Credentials:
    """A CHAP user name and its secret."""

    user: str
    secret: bytes


@dataclass(slots=True)
class Access:
    """Who may log in. No `allowed` names = every initiator name; no `chap` = no authentication asked.

    `chap` authenticates the initiator to the target, `mutual_chap` the target to the initiator (only beside `chap`).
    """

    allowed: frozenset[str] = frozenset()
    chap: tuple[Credentials, ...] = ()
    mutual_chap: Credentials | None = None

    def admits(self, initiator_name: str) -> bool:
        return not self.allowed or initiator_name in self.allowed


@dataclass(slots=True)
class Target:
    """One iSCSI target: one volume as LUN 0. `sessions` is keyed by (initiator name, ISID): RFC 7143 6.3.5."""

    iqn: str
    alias: str
    portal_group_tag: int
    unit: "LogicalUnit"
    access: Access
    ready: bool = True
    sessions: "dict[tuple[str, bytes], Session]" = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Moved:
    """What has to be kept of a nexus that goes from one member to another.

    attentions: unit attentions (ASC, ASCQ) that it is still owed. epoch, blocks: of the unit when it left.
    """

    attentions: tuple[tuple[int, int], ...]
    epoch: int
    blocks: int


class Directory(Protocol):
    """The targets of this member, as login and discovery see them."""

    def find(self, iqn: str) -> Target | None: ...

    async def look_up(self, iqn: str) -> Target | None:
        """A target that `find` does not know yet: one that was made through another member a moment ago.

        Its absence is a final answer to an initiator, so whoever knows for sure is asked.
        """
        ...

    def visible_to(self, initiator_name: str) -> list[Target]:
        """Targets whose access rule admits this initiator name, by IQN."""
        ...

    def portals_of(self, target: Target, asked_at: str) -> list[tuple[str, int]]:
        """(TargetAddress without tag, portal group tag) pairs for SendTargets; asked_at is the "host:port" reached."""
        ...

    async def place(self, target: Target, initiator_name: str, isid: bytes, asked_at: str) -> str | None:
        """Where this login is to be served: the "host:port" to send it to, or None for here.

        Asked once in the login of a normal session, before authentication, for a target that is ready and an initiator
        that is allowed; asked_at is the "host:port" reached. Whoever is sent away must be expected where he is sent.
        """
        ...

    async def succeed(self, target: Target, initiator_name: str, isid: bytes, address: str) -> str:
        """Before a session begins: returns when nothing that this initiator began at another member can still happen.

        Why the login has to be tried again, or "". address: where it comes from, "host:port".
        """
        ...

    def arrived(self, target: Target, initiator_name: str, isid: bytes) -> Moved | None:
        """After `succeed`: how this nexus left the member at which it was until now, which asked it to come here. None:
        it begins anew."""
        ...

    def reinstated(self, old: "Session", by_address: str, now_s: float) -> None:
        """A live session is ended by another login of its initiator port, which came from "host:port"."""
        ...

    def discovery_access(self) -> Access:
        """The access rule of discovery sessions."""
        ...

    def new_tsih(self) -> int:
        """A session handle unused on this member, 1..65535."""
        ...
