"""The members of the group, as one member sees them: records and leases, followed by the watch.

What is seen lags a moment behind the store. Where that matters (may a lease have ended?) the store is asked. Pure.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from san_target.group.membership import DRAINING, LEASES_PREFIX, MEMBERS_PREFIX, REMOVED, REMOVING
from san_target.metadata.schema import LeaseRecord, MemberRecord, decode
from san_target.metadata.store import Event, Item

State = Literal["active", "starting", "draining", "unreachable", "removing", "removed"]
Changed = Callable[[frozenset[str]], None]


@dataclass(frozen=True, slots=True)
class MemberView:
    """One member. alive: its present incarnation holds a lease. serving: it accepts logins, or did so when it was heard
    of last; one that ended in order does not. peer, portals, admin: "host:port"."""

    name: str
    incarnation: int
    peer: str
    portals: tuple[str, ...]
    admin: str
    alive: bool
    state: State
    pool_id: str = ""
    capacity_bytes: int = 0
    free_bytes: int = 0
    program: str = ""
    serving: bool = False


def view_of(record: MemberRecord, lease_incarnation: int | None) -> MemberView:
    """A member by its record and by the incarnation that its lease names (None: there is no lease)."""
    alive = lease_incarnation == record.incarnation and record.state != REMOVED
    return MemberView(
        name=record.name,
        incarnation=record.incarnation,
        peer=record.peer,
        portals=record.portals,
        admin=record.admin,
        alive=alive,
        state=_state(record, alive),
        pool_id=record.pool_id,
        capacity_bytes=record.capacity_bytes,
        free_bytes=record.free_bytes,
        program=record.program,
        serving=record.serving,
    )


def _state(record: MemberRecord, alive: bool) -> State:
    if record.state == REMOVED:
        return "removed"
    if record.state == REMOVING:
        return "removing"
    if not alive:
        return "unreachable"
    if not record.serving:
        return "starting"
    return "draining" if record.state == DRAINING else "active"


@dataclass(slots=True)
class _Facts:
    records: dict[str, MemberRecord] = field(default_factory=dict)
    leases: dict[str, int] = field(default_factory=dict)

    def put(self, key: str, item: Item | None) -> None:
        if key.startswith(MEMBERS_PREFIX):
            name = key.removeprefix(MEMBERS_PREFIX)
            if item is None:
                self.records.pop(name, None)
            else:
                self.records[name] = decode(MemberRecord, item.value, key)
        elif key.startswith(LEASES_PREFIX):
            name = key.removeprefix(LEASES_PREFIX)
            if item is None:
                self.leases.pop(name, None)
            else:
                self.leases[name] = decode(LeaseRecord, item.value, key).incarnation


class Members:
    """A consumer of `follower.StoreFollower` for the keys members/ and leases/."""

    KINDS = ("members", "leases")

    def __init__(self) -> None:
        self._facts = _Facts()
        self._read = _Facts()
        self._view: dict[str, MemberView] = {}
        self._callbacks: list[Changed] = []

    @property
    def view(self) -> Mapping[str, MemberView]:
        """All members by name, removed ones too; another mapping after each change."""
        return MappingProxyType(self._view)

    def alive(self) -> list[MemberView]:
        """Those whose lease holds, by name."""
        return [self._view[name] for name in sorted(self._view) if self._view[name].alive]

    def incarnation_of(self, name: str) -> int | None:
        """The present incarnation of a member; None: there is no such member (any more)."""
        member = self._view.get(name)
        return None if member is None or member.state == "removed" else member.incarnation

    def subscribe(self, callback: Changed) -> Callable[[], None]:
        """Call with the names of the members that changed, after each change. Returns what ends that."""
        self._callbacks.append(callback)
        return lambda: self._callbacks.remove(callback)

    # What the follower calls ------------------------------------------------------------------------------------------

    def begin(self) -> None:
        self._read = _Facts()

    def read(self, items: Iterable[Item]) -> None:
        for item in items:
            self._read.put(item.key, item)

    def complete(self, revision: int) -> None:
        self._facts, self._read = self._read, _Facts()
        self._update()

    def take(self, revision: int, events: Iterable[Event]) -> None:
        for event in events:
            self._facts.put(event.key, event.item)
        self._update()

    def _update(self) -> None:
        facts = self._facts
        view = {name: view_of(record, facts.leases.get(name)) for name, record in facts.records.items()}
        changed = frozenset(name for name in view.keys() | self._view.keys() if view.get(name) != self._view.get(name))
        if changed:
            self._view = view
            for callback in tuple(self._callbacks):
                callback(changed)
