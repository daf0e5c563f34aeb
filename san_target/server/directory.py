"""The targets of this member, as login and discovery see them (`session.target.Directory`)."""

from collections.abc import Callable, Iterable

from san_target.server.config import parse_address, split_address
from san_target.session.target import Access, Target

TSIH_MAX = 0xFFFF
_WILDCARDS = frozenset({"0.0.0.0", "::"})


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
        """Every address of this member. A portal on all interfaces is told with the host that was asked."""
        host = asked_at.rpartition(":")[0]
        addresses = []
        for address in self.told():
            bound_host, port = parse_address(address)
            addresses.append(f"{host}:{port}" if bound_host in _WILDCARDS else address)
        return list(dict.fromkeys(addresses))


def _is_at(bound: str, address: str) -> bool:
    ours, theirs = split_address(bound), split_address(address)
    return ours is not None and theirs is not None and ours[1] == theirs[1] and ours[0] in (*_WILDCARDS, theirs[0])


class TargetDirectory:
    """Targets by name. tsih_in_use: whether a session handle belongs to a session of this member."""

    def __init__(self, discovery: Access, tsih_in_use: Callable[[int], bool]) -> None:
        self.portals = Portals(())
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

    def visible_to(self, initiator_name: str) -> list[Target]:
        return [self._targets[iqn] for iqn in sorted(self._targets) if self._targets[iqn].access.admits(initiator_name)]

    def portals_of(self, target: Target, asked_at: str) -> list[tuple[str, int]]:
        """The portal that was asked; all of them for multipath, since other hosts would see one disk several times."""
        if target.iqn in self._multipath:
            return [(address, target.portal_group_tag) for address in self.portals.all_for(asked_at)]
        return [(self.portals.told_for(asked_at), target.portal_group_tag)]

    async def redirection(self, target: Target, initiator_name: str, isid: bytes) -> str | None:
        """Everything that this member serves is served here: a volume has its blocks at one member."""
        return None

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
