"""The targets of this member, as login and discovery see them (`session.target.Directory`)."""

from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Protocol

import structlog

from san_target.group.portal_addresses import WILDCARDS, own_portals, split_address
from san_target.server.portal import LOG_LINES_PER_S, LogBudget
from san_target.session.reinstatements import Reinstatements
from san_target.session.target import Access, Moved, Target

if TYPE_CHECKING:
    from san_target.session.session import Session

log = structlog.get_logger()

TSIH_MAX = 0xFFFF


class Portals:
    """The addresses of one member: as bound, and as initiators reach them.

    advertised is empty (told as asked), has one entry (for all portals), or one for each of `bound`.
    """

    def __init__(self, bound: tuple[str, ...], advertised: tuple[str, ...] = ()) -> None:
        self.bound = bound
        self.advertised = advertised * len(bound) if len(advertised) == 1 else advertised

    def told(self) -> tuple[str, ...]:
        """The addresses to tell others, each once."""
        return tuple(dict.fromkeys(self.advertised or self.bound))

    def pairs(self) -> list[tuple[str, str]]:
        """(bound, advertised) addresses, the same twice where nothing else is advertised."""
        return list(zip(self.bound, self.advertised or self.bound, strict=True))

    def bound_for(self, asked_at: str) -> str:
        """The portal that an initiator reached; asked_at is the local end of its connection."""
        return next((bound for bound in self.bound if _is_at(bound, asked_at)), asked_at)

    def told_for(self, asked_at: str) -> str:
        """What to tell an initiator that reached this member at `asked_at`."""
        if not self.advertised:
            return asked_at
        return dict(self.pairs()).get(self.bound_for(asked_at), self.advertised[0])

    def all_for(self, asked_at: str) -> list[str]:
        """Every address of this member that an initiator which reached it at `asked_at` can use."""
        return own_portals(self.told(), self.told_for(asked_at))


def _is_at(bound: str, address: str) -> bool:
    ours, theirs = split_address(bound), split_address(address)
    return ours is not None and theirs is not None and ours[1] == theirs[1] and ours[0] in (*WILDCARDS, theirs[0])


class PortalGroup(Protocol):
    """The other members, as logins and discovery through this one need them."""

    async def place(self, target: Target, initiator_name: str, isid: bytes, asked_at: str) -> str | None:
        """See `session.target.Directory.place`."""
        ...

    def other_portals(self, asked_at: str) -> list[str]:
        """The portals of all other members that serve, for an initiator that reached this one at `asked_at`."""
        ...


class Predecessors(Protocol):
    """What initiators that log in here began at other members."""

    async def succeed(self, volume_id: str, initiator_name: str, isid: bytes, address: str) -> str:
        """See `session.target.Directory.succeed`."""
        ...

    def arrived(self, volume_id: str, initiator_name: str, isid: bytes) -> Moved | None:
        """See `session.target.Directory.arrived`."""
        ...


class TargetDirectory:
    """Targets by name. tsih_in_use: whether a session handle belongs to a session of this member.

    group: None while this member is alone: then everything is served here. Addresses given to it are as told.
    began: called with each session of a target that begins.
    ask_store: returns when this member knows of a target of that name, if the store has one.
    """

    def __init__(self, discovery: Access, tsih_in_use: Callable[[int], bool]) -> None:
        self.portals = Portals(())
        self.group: PortalGroup | None = None
        self.succession: Predecessors | None = None
        self.began: Callable[[Session], None] | None = None
        self.ask_store: Callable[[str], Awaitable[None]] | None = None
        self.reinstatements = Reinstatements()
        self._log_budget = LogBudget(LOG_LINES_PER_S)
        self._discovery = discovery
        self._tsih_in_use = tsih_in_use
        self._handed_out = 0
        self._targets: dict[str, Target] = {}
        self._multipath: set[str] = set()

    def put(self, target: Target, multipath: bool) -> None:
        self._targets[target.iqn] = target
        (self._multipath.add if multipath else self._multipath.discard)(target.iqn)

    def remove(self, target: Target) -> None:
        """Harmless if another has its name by now: one made right after this one was deleted elsewhere."""
        if self._targets.get(target.iqn) is target:
            del self._targets[target.iqn]
            self._multipath.discard(target.iqn)

    def all(self) -> Iterable[Target]:
        return self._targets.values()

    def find(self, iqn: str) -> Target | None:
        return self._targets.get(iqn)

    async def look_up(self, iqn: str) -> Target | None:
        if self.ask_store is not None:
            await self.ask_store(iqn)
        return self.find(iqn)

    def visible_to(self, initiator_name: str) -> list[Target]:
        return [self._targets[iqn] for iqn in sorted(self._targets) if self._targets[iqn].access.admits(initiator_name)]

    def is_multipath(self, target: Target) -> bool:
        return target.iqn in self._multipath

    def portals_of(self, target: Target, asked_at: str) -> list[tuple[str, int]]:
        """The portal that was asked; for multipath those of all members, where other hosts would see several disks."""
        addresses = [self.portals.told_for(asked_at)]
        if self.is_multipath(target):
            others = self.group.other_portals(addresses[0]) if self.group is not None else []
            addresses = list(dict.fromkeys([*self.portals.all_for(asked_at), *others]))
        return [(address, target.portal_group_tag) for address in addresses]

    async def place(self, target: Target, initiator_name: str, isid: bytes, asked_at: str) -> str | None:
        """A path of a multipath volume stays what the host's multipathing takes it for."""
        if self.group is None or self.is_multipath(target):
            return None
        return await self.group.place(target, initiator_name, isid, self.portals.told_for(asked_at))

    async def succeed(self, target: Target, initiator_name: str, isid: bytes, address: str) -> str:
        if self.succession is None:
            return ""
        return await self.succession.succeed(target.unit.identity.volume_id, initiator_name, isid, address)

    def arrived(self, target: Target, initiator_name: str, isid: bytes) -> Moved | None:
        session = target.sessions.get((initiator_name, isid))
        if session is not None and self.began is not None:
            self.began(session)
        if self.succession is None:
            return None
        return self.succession.arrived(target.unit.identity.volume_id, initiator_name, isid)

    def reinstated(self, old: "Session", by_address: str, now_s: float) -> None:
        """Also to be called where the other login is at another member."""
        if old.target is None:
            return
        quarrel = self.reinstatements.note(old.target.iqn, old.initiator_name, old.isid, old.address, by_address, now_s)
        if quarrel is not None and self._log_budget.grants(now_s):
            log.warning("two machines use one initiator port", target=quarrel.target, reason=str(quarrel))

    def discovery_access(self) -> Access:
        return self._discovery

    def new_tsih(self) -> int:
        """The next handle in turn, so that one that just ended is not soon mistaken for a new one."""
        for _ in range(TSIH_MAX):
            self._handed_out += 1
            tsih = (self._handed_out - 1) % TSIH_MAX + 1
            if self._handed_out <= TSIH_MAX or not self._tsih_in_use(tsih):
                return tsih
        raise AssertionError("more sessions than session handles")
