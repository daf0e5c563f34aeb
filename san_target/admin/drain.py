"""What is left at a member that is being drained, as it goes over the HTTP API."""

from typing import Literal

from msgspec import Struct

from san_target.admin.service import LostShare


class StayingSession(Struct, kw_only=True, frozen=True):
    """A session at the member. reason: why it was not moved when that was looked at last; "" = it will be."""

    id: str
    initiator: str
    volume: str
    reason: str = ""


class MemberDrain(Struct, kw_only=True, frozen=True):
    """state: draining, or what the member is instead. left: what it holds, by volume; migrating: migrations from it
    that have not ended. done: nothing is left, and nobody is logged in."""

    name: str
    state: Literal["active", "starting", "stopping", "draining", "unreachable", "removing", "removed"]
    done: bool
    left: tuple[LostShare, ...] = ()
    migrating: tuple[str, ...] = ()
    sessions: tuple[StayingSession, ...] = ()
