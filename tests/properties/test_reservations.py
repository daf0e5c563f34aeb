"""Persistent reservations against a model that shares no code with them: random service actions from five nexuses.

The model keeps a table of rows, one per nexus, and answers by reading it, in the order SPC-4 tells the story. After
each step both must agree on status, keys, holders, type, generation, unit attentions and access.
"""

import struct
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from san_target.scsi.command import Command
from san_target.scsi.nexus import Nexus
from san_target.scsi.operation import Access
from san_target.scsi.shared_state import port_of
from tests.unit.scsi.state_support import Surroundings, login, make_unit

GOOD, CHECK, CONFLICT = 0x00, 0x02, 0x18
RESERVATIONS_CHANGED = 0x2A
NAMES = "abcde"
names = st.sampled_from(NAMES)
# Who acts: mostly somebody who is registered, since most of what a stranger sends is refused alike.
actors = st.integers(0, 19)
keys = st.sampled_from([1, 2, 3])
kinds = st.sampled_from([1, 3, 5, 6, 7, 8])
REGISTERED_MAY_ALL, ALL_HOLD, READS_FORBIDDEN = {5, 6, 7, 8}, {7, 8}, {3, 6, 8}


@dataclass
class Row:
    key: int = 0
    owed: list[int] = field(default_factory=list)


@dataclass
class Model:
    """kind 0 = not reserved; by = who reserved (of no meaning for the types that all registrants hold)."""

    rows: dict[str, Row] = field(default_factory=lambda: {name: Row() for name in NAMES})
    kind: int = 0
    by: str = ""
    generation: int = 0
    legacy: str = ""

    def registered(self) -> list[str]:
        return [name for name in NAMES if self.rows[name].key]

    def others(self, name: str) -> list[str]:
        return [other for other in self.registered() if other != name]

    def holds(self, name: str) -> bool:
        return bool(self.kind) and (bool(self.rows[name].key) if self.kind in ALL_HOLD else self.by == name)

    def owe(self, names: list[str], ascq: int) -> None:
        for name in names:
            if ascq not in self.rows[name].owed:
                self.rows[name].owed.append(ascq)

    def drop(self, name: str) -> None:
        held = self.holds(name)
        self.rows[name].key = 0
        if held and (self.kind not in ALL_HOLD or not self.registered()):
            self.kind = 0

    def register(self, name: str, new: int) -> int:
        if not new and not self.rows[name].key:
            return GOOD
        self.generation += 1
        if new:
            self.rows[name].key = new
            return GOOD
        ended = self.kind in (5, 6) and self.by == name
        self.drop(name)
        if ended:
            self.owe(self.registered(), 4)
        return GOOD

    def reserve(self, name: str, kind: int) -> int:
        if not self.kind:
            self.kind, self.by = kind, name
            return GOOD
        return GOOD if self.holds(name) and self.kind == kind else CONFLICT

    def release(self, name: str, kind: int) -> int:
        if not self.holds(name):
            return GOOD
        if kind != self.kind:
            return CHECK
        if kind > 4:
            self.owe(self.others(name), 4)
        self.kind = 0
        return GOOD

    def clear(self, name: str) -> int:
        self.owe(self.others(name), 3)
        for row in self.rows.values():
            row.key = 0
        self.kind = 0
        self.generation += 1
        return GOOD

    def preempt(self, name: str, victim_key: int, kind: int) -> int:
        if not victim_key and self.kind not in ALL_HOLD:
            return CHECK
        victims = [other for other in self.registered() if victim_key in (0, self.rows[other].key)]
        if not victims:
            return CONFLICT
        self.generation += 1
        takes = not victim_key or (bool(self.kind) and self.kind not in ALL_HOLD and self.by in victims)
        self.owe([other for other in victims if other != name], 5)
        if not takes:
            for other in victims:
                self.drop(other)
            return GOOD
        for other in victims:
            if other != name:
                self.rows[other].key = 0
        if kind != self.kind:
            self.owe(self.others(name), 4)
        self.kind, self.by = kind, name
        return GOOD

    def forbids(self, name: str, writes: bool) -> bool:
        if self.legacy:
            return self.legacy != name
        if not self.kind or self.holds(name) or (self.rows[name].key and self.kind in REGISTERED_MAY_ALL):
            return False
        return writes or self.kind in READS_FORBIDDEN


def at_once(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """What the coroutine returns; it must not wait (no event loop: thousands of them would take minutes)."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("the command waited")


class ReservationsMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.spawned: list[Coroutine[Any, Any, None]] = []
        surroundings = Surroundings()
        surroundings.spawn = self.spawned.append  # type: ignore[method-assign, assignment]
        self.unit = make_unit(surroundings)
        self.model = Model()
        self.nexuses: dict[str, Nexus] = {name: login(self.unit, f"iqn.2026-01.example:{name}") for name in NAMES}

    def actor(self, number: int) -> str:
        registered = self.model.registered()
        return registered[number % len(registered)] if registered and number < 16 else NAMES[number % len(NAMES)]

    @initialize(registered=st.lists(keys, min_size=2, max_size=5), kind=kinds | st.none())
    def begin(self, registered: list[int], kind: int | None) -> None:
        for name, key in zip(NAMES, registered, strict=False):
            self.register(name, 0, key)
        if kind is not None:
            self.reserve(0, kind, wrong=False)

    def out(self, name: str, action: int, key: int, action_key: int = 0, kind: int = 0) -> int:
        """The status of a PERSISTENT RESERVE OUT; unit attentions that come before it are compared and taken."""
        nexus, row = self.nexuses[name], self.model.rows[name]
        assert list(nexus.attentions) == [(RESERVATIONS_CHANGED, ascq) for ascq in row.owed]
        nexus.attentions.clear()
        self.unit.refresh(nexus)
        row.owed.clear()
        cdb = struct.pack(">BBB2xIx6x", 0x5F, action, kind, 24)
        return at_once(self.unit.execute(Command(nexus, cdb, struct.pack(">QQ8x", key, action_key)))).status

    def check(self, name: str, status: int, key: int, expect: "int | None") -> None:
        assert status == (CONFLICT if expect is None else expect), (name, key)

    def allowed(self, name: str, key: int) -> bool:
        return not self.model.legacy and bool(self.model.rows[name].key) and self.model.rows[name].key == key

    @rule(name=names, key=keys | st.just(0), new=keys | st.just(0))
    def register(self, name: str, key: int, new: int) -> None:
        status = self.out(name, 0, key, new)
        fits = not self.model.legacy and key == self.model.rows[name].key
        self.check(name, status, key, self.model.register(name, new) if fits else None)

    @rule(name=names, key=keys | st.just(0), new=keys | st.just(0))
    def register_and_ignore(self, name: str, key: int, new: int) -> None:
        status = self.out(name, 6, key, new)
        self.check(name, status, key, None if self.model.legacy else self.model.register(name, new))

    @rule(name=names, new=keys)
    def register_rightly(self, name: str, new: int) -> None:
        self.register(name, self.model.rows[name].key, new)

    @rule(number=actors, kind=kinds, wrong=st.booleans())
    def reserve(self, number: int, kind: int, wrong: bool) -> None:
        name = self.actor(number)
        key = self.model.rows[name].key + wrong
        status = self.out(name, 1, key, kind=kind)
        self.check(name, status, key, self.model.reserve(name, kind) if self.allowed(name, key) else None)

    @rule(number=actors, kind=kinds, same=st.booleans())
    def release(self, number: int, kind: int, same: bool) -> None:
        name = self.actor(number)
        key, kind = self.model.rows[name].key, (self.model.kind or kind) if same else kind
        status = self.out(name, 2, key, kind=kind)
        self.check(name, status, key, self.model.release(name, kind) if self.allowed(name, key) else None)

    @precondition(lambda self: len(self.model.registered()) >= 3)
    @rule(number=actors, wrong=st.booleans())
    def clear(self, number: int, wrong: bool) -> None:
        name = self.actor(number)
        key = self.model.rows[name].key + wrong
        status = self.out(name, 3, key)
        self.check(name, status, key, self.model.clear(name) if self.allowed(name, key) else None)

    @rule(number=actors, victim=keys | st.just(0), kind=kinds, action=st.sampled_from([4, 5]))
    def preempt(self, number: int, victim: int, kind: int, action: int) -> None:
        name = self.actor(number)
        key = self.model.rows[name].key
        status = self.out(name, action, key, victim, kind)
        self.check(name, status, key, self.model.preempt(name, victim, kind) if self.allowed(name, key) else None)

    @rule(name=names)
    def reserve_6(self, name: str) -> None:
        status = at_once(self.unit.reservations.reserve_6(self.nexuses[name])).status
        model = self.model
        if model.registered():
            covered = bool(model.rows[name].key) and (model.holds(name) or model.kind in REGISTERED_MAY_ALL)
            assert status == (GOOD if covered else CONFLICT)
        else:
            assert status == (GOOD if model.legacy in ("", name) else CONFLICT)
            model.legacy = model.legacy or name

    @precondition(lambda self: self.model.legacy)
    @rule(name=names, by_holder=st.booleans())
    def release_6(self, name: str, by_holder: bool) -> None:
        name = self.model.legacy if by_holder else name
        assert at_once(self.unit.reservations.release_6(self.nexuses[name])).status == GOOD
        self.model.legacy = "" if self.model.legacy == name else self.model.legacy

    @rule(name=names)
    def log_in_again(self, name: str) -> None:
        self.unit.detach(self.nexuses[name])
        while self.spawned:
            at_once(self.spawned.pop())
        self.nexuses[name] = login(self.unit, f"iqn.2026-01.example:{name}")
        self.model.rows[name].owed.clear()
        self.model.legacy = "" if self.model.legacy == name else self.model.legacy

    @invariant()
    def agree(self) -> None:
        state, model = self.unit.reservations.state, self.model
        assert (state.type or 0, state.generation) == (model.kind, model.generation)
        for name, nexus in self.nexuses.items():
            row, port = model.rows[name], port_of(nexus)
            assert state.registrations.get(port, 0) == row.key
            assert state.is_holder(port) == model.holds(name)
            assert list(nexus.attentions) == [(RESERVATIONS_CHANGED, ascq) for ascq in row.owed]
            for access, writes in ((Access.READ, False), (Access.WRITE, True)):
                assert self.unit.reservations.conflict(nexus, access) == model.forbids(name, writes)
            assert nexus.may_write == (not row.owed and not model.forbids(name, True))
            assert nexus.may_read == (not row.owed and not model.forbids(name, False))


TestReservations = ReservationsMachine.TestCase
TestReservations.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)
