"""Who is at the two ends of a link. Pure."""

from typing import NamedTuple, Protocol


class OwnIdentity(NamedTuple):
    """One life of this member in its group. secret: the group's, known to its members only."""

    group_id: str
    secret: bytes
    name: str
    incarnation: int


class MemberAddress(Protocol):
    """A member as the membership view shows it. peer: "host:port", "" = it has no peer port."""

    @property
    def name(self) -> str: ...

    @property
    def incarnation(self) -> int: ...

    @property
    def peer(self) -> str: ...


class PeerIdentity:
    """The requester at the other end of one connection. lost: nothing of it may begin any more."""

    __slots__ = ("address", "incarnation", "lost", "name")

    def __init__(self, name: str, incarnation: int, address: str) -> None:
        self.name = name
        self.incarnation = incarnation
        self.address = address
        self.lost = False

    def __repr__(self) -> str:
        return f"PeerIdentity({self.name!r}, incarnation={self.incarnation}, address={self.address!r})"
