"""Every (state, service action) pair: what becomes of it, and who is owed what."""

from dataclasses import dataclass
from types import MappingProxyType

import pytest

from san_target.scsi import sense
from san_target.scsi.reservation_rules import (
    ALL_REGISTRANTS_TYPES,
    REGISTRANTS_ONLY_TYPES,
    REGISTRATIONS_MAX,
    SHARED_TYPES,
    Conflict,
    Port,
    Request,
    ServiceAction,
    State,
    Transition,
    Type,
    apply,
)
from san_target.scsi.sense import CheckCondition

A, B, C = Port("a", "t"), Port("b", "t"), Port("c", "t")
KEYS = {A: 0xA, B: 0xB, C: 0xC}


def state(*registered: Port, holder: Port | None = None, kind: Type | None = None) -> State:
    return State(7, MappingProxyType({port: KEYS[port] for port in registered}), holder, kind)


@dataclass(frozen=True)
class Situation:
    """A state as its sender A finds it: whether A is registered, and whether it holds the reservation."""

    name: str
    state: State
    registered: bool
    holder: bool


def situations() -> list[Situation]:
    found = [
        Situation("nothing", state(), False, False),
        Situation("others registered", state(B), False, False),
        Situation("registered", state(A, B), True, False),
    ]
    for kind in Type:
        shared = kind in ALL_REGISTRANTS_TYPES
        found += [
            Situation(f"{kind.name}: stranger", state(B, C, holder=B, kind=kind), False, False),
            Situation(f"{kind.name}: registered", state(A, B, C, holder=B, kind=kind), True, shared),
            Situation(f"{kind.name}: holder", state(A, B, C, holder=A, kind=kind), True, True),
        ]
    return found


SITUATIONS = situations()
pair = pytest.mark.parametrize("situation", SITUATIONS, ids=lambda situation: situation.name)


def send(before: State, action: ServiceAction, **fields: object) -> Transition:
    return apply(before, Request(A, action, **fields))  # type: ignore[arg-type]


def told(transition: Transition, condition: sense.Condition) -> set[Port]:
    return {attention.port for attention in transition.attentions if attention.condition == condition}


@pair
def test_register_new_key(situation: Situation) -> None:
    before = situation.state
    key = KEYS[A] if situation.registered else 0
    after = send(before, ServiceAction.REGISTER, key=key, action_key=99, aptpl=True)
    assert after.state.registrations == {**before.registrations, A: 99}
    assert (after.state.holder, after.state.type) == (before.holder, before.type)
    assert after.state.generation == before.generation + 1
    assert after.state.aptpl
    assert after.attentions == ()


@pair
@pytest.mark.parametrize("action_key", [0, 99])
def test_register_with_a_wrong_key(situation: Situation, action_key: int) -> None:
    with pytest.raises(Conflict):
        send(situation.state, ServiceAction.REGISTER, key=5, action_key=action_key)


@pair
def test_register_and_ignore(situation: Situation) -> None:
    after = send(situation.state, ServiceAction.REGISTER_AND_IGNORE_EXISTING_KEY, key=5, action_key=99)
    assert after.state.registrations[A] == 99
    assert after.state.generation == situation.state.generation + 1
    assert (after.state.holder, after.state.type) == (situation.state.holder, situation.state.type)


@pair
@pytest.mark.parametrize("action", [ServiceAction.REGISTER, ServiceAction.REGISTER_AND_IGNORE_EXISTING_KEY])
def test_unregister(situation: Situation, action: ServiceAction) -> None:
    before = situation.state
    after = send(before, action, key=KEYS[A] if situation.registered else 0)
    assert A not in after.state.registrations
    if not situation.registered:
        assert after == Transition(before)
        return
    assert after.state.generation == before.generation + 1
    ends = before.holder == A and before.type not in ALL_REGISTRANTS_TYPES
    assert (after.state.type is None) == (ends or before.type is None)
    released = {B, C} if ends and before.type in REGISTRANTS_ONLY_TYPES else set()
    assert told(after, sense.RESERVATIONS_RELEASED) == released
    assert len(after.attentions) == len(released)


@pytest.mark.parametrize("kind", sorted(ALL_REGISTRANTS_TYPES))
def test_the_last_registrant_takes_the_reservation_along(kind: Type) -> None:
    after = send(state(A, holder=A, kind=kind), ServiceAction.REGISTER, key=KEYS[A])
    assert after.state.type is None
    assert after.state.holder is None
    assert after.attentions == ()


@pair
@pytest.mark.parametrize("kind", Type)
def test_reserve(situation: Situation, kind: Type) -> None:
    before = situation.state
    if not situation.registered or (before.type is not None and not (situation.holder and before.type is kind)):
        with pytest.raises(Conflict):
            send(before, ServiceAction.RESERVE, key=KEYS[A], type=kind)
        return
    after = send(before, ServiceAction.RESERVE, key=KEYS[A], type=kind)
    assert after.state.type is kind
    assert after.state.is_holder(A)
    assert after.state.generation == before.generation
    assert after.attentions == ()


@pair
@pytest.mark.parametrize("kind", Type)
def test_release(situation: Situation, kind: Type) -> None:
    before = situation.state
    if not situation.registered:
        with pytest.raises(Conflict):
            send(before, ServiceAction.RELEASE, key=KEYS[A], type=kind)
        return
    if situation.holder and before.type is not kind:
        with pytest.raises(CheckCondition) as caught:
            send(before, ServiceAction.RELEASE, key=KEYS[A], type=kind)
        assert caught.value.condition == sense.INVALID_RELEASE_OF_PERSISTENT_RESERVATION
        return
    after = send(before, ServiceAction.RELEASE, key=KEYS[A], type=kind)
    assert after.state.registrations == before.registrations
    assert after.state.generation == before.generation
    if not situation.holder:
        assert after == Transition(before)
        return
    assert after.state.type is None
    assert told(after, sense.RESERVATIONS_RELEASED) == ({B, C} if kind in SHARED_TYPES else set())


@pair
def test_clear(situation: Situation) -> None:
    before = situation.state
    if not situation.registered:
        with pytest.raises(Conflict):
            send(before, ServiceAction.CLEAR, key=KEYS[A])
        return
    after = send(before, ServiceAction.CLEAR, key=KEYS[A])
    assert after.state == State(generation=before.generation + 1)
    assert told(after, sense.RESERVATIONS_PREEMPTED) == set(before.registrations) - {A}
    assert after.preempted == frozenset()


@pair
@pytest.mark.parametrize("action", [ServiceAction.PREEMPT, ServiceAction.PREEMPT_AND_ABORT])
@pytest.mark.parametrize("victim", [B, C, A])
def test_preempt_by_key(situation: Situation, action: ServiceAction, victim: Port) -> None:
    before = situation.state
    new = Type.EXCLUSIVE_ACCESS_REGISTRANTS_ONLY
    if not situation.registered or victim not in before.registrations:
        with pytest.raises(Conflict):
            send(before, action, key=KEYS[A], action_key=KEYS[victim], type=new)
        return
    after = send(before, action, key=KEYS[A], action_key=KEYS[victim], type=new)
    assert after.state.generation == before.generation + 1
    takes_over = before.type is not None and before.type not in ALL_REGISTRANTS_TYPES and before.holder == victim
    assert told(after, sense.REGISTRATIONS_PREEMPTED) == {victim} - {A}
    assert after.preempted == {victim} - {A}
    if takes_over:
        assert (after.state.holder, after.state.type) == (A, new)
        assert A in after.state.registrations
        changed = before.type is not new
        assert told(after, sense.RESERVATIONS_RELEASED) == ({B, C} - {victim} if changed else set())
        return
    assert victim not in after.state.registrations
    assert after.state.type is before.type
    assert told(after, sense.RESERVATIONS_RELEASED) == set()
    assert after.state.holder != victim or after.state.holder is None


@pair
def test_preempt_everybody(situation: Situation) -> None:
    before = situation.state
    new = Type.WRITE_EXCLUSIVE
    if not situation.registered:
        with pytest.raises(Conflict):
            send(before, ServiceAction.PREEMPT, key=KEYS[A], type=new)
        return
    if before.type not in ALL_REGISTRANTS_TYPES:
        with pytest.raises(CheckCondition) as caught:
            send(before, ServiceAction.PREEMPT, key=KEYS[A], type=new)
        assert caught.value.condition == sense.INVALID_FIELD_IN_PARAMETER_LIST
        return
    after = send(before, ServiceAction.PREEMPT, key=KEYS[A], type=new)
    assert after.state.registrations == {A: KEYS[A]}
    assert (after.state.holder, after.state.type) == (A, new)
    assert told(after, sense.REGISTRATIONS_PREEMPTED) == {B, C} == after.preempted


@pair
@pytest.mark.parametrize("destination", [B, Port("new", "t")])
@pytest.mark.parametrize("unregister", [False, True])
def test_register_and_move(situation: Situation, destination: Port, unregister: bool) -> None:
    before = situation.state
    fields = {"key": KEYS[A], "action_key": 99, "destination": destination, "unregister": unregister}
    if situation.registered and before.type is None:
        with pytest.raises(CheckCondition) as caught:
            send(before, ServiceAction.REGISTER_AND_MOVE, **fields)
        assert caught.value.condition == sense.INVALID_FIELD_IN_CDB
        return
    if before.holder != A or before.type in ALL_REGISTRANTS_TYPES:
        with pytest.raises(Conflict):
            send(before, ServiceAction.REGISTER_AND_MOVE, **fields)
        return
    after = send(before, ServiceAction.REGISTER_AND_MOVE, **fields)
    assert (after.state.holder, after.state.type) == (destination, before.type)
    assert after.state.registrations[destination] == 99
    assert (A in after.state.registrations) != unregister
    assert after.state.generation == before.generation + 1
    assert after.attentions == ()


@pytest.mark.parametrize(
    "fields", [{"action_key": 0, "destination": B}, {"action_key": 9, "destination": A}, {"action_key": 9}]
)
def test_register_and_move_to_nowhere(fields: dict[str, object]) -> None:
    before = state(A, B, holder=A, kind=Type.WRITE_EXCLUSIVE)
    with pytest.raises(CheckCondition) as caught:
        send(before, ServiceAction.REGISTER_AND_MOVE, key=KEYS[A], **fields)
    assert caught.value.condition == sense.INVALID_FIELD_IN_PARAMETER_LIST


@pair
def test_specify_initiator_ports(situation: Situation) -> None:
    before = situation.state
    new = Port("new", "t")
    fields = {"action_key": 99, "specify_initiator_ports": True, "also": (new,)}
    if situation.registered:
        with pytest.raises(CheckCondition) as caught:
            send(before, ServiceAction.REGISTER, key=KEYS[A], **fields)
        assert caught.value.condition == sense.INVALID_FIELD_IN_CDB
        return
    after = send(before, ServiceAction.REGISTER, **fields)
    assert after.state.registrations == {**before.registrations, A: 99, new: 99}
    assert after.state.generation == before.generation + 1


@pytest.mark.parametrize("also", [(B,), (C, C)])
def test_specify_initiator_ports_all_or_nothing(also: tuple[Port, ...]) -> None:
    before = state(B)
    with pytest.raises(CheckCondition) as caught:
        send(before, ServiceAction.REGISTER, action_key=9, specify_initiator_ports=True, also=also)
    assert caught.value.condition == sense.INVALID_FIELD_IN_PARAMETER_LIST


def test_specify_initiator_ports_only_with_register() -> None:
    with pytest.raises(CheckCondition):
        send(state(), ServiceAction.REGISTER_AND_IGNORE_EXISTING_KEY, action_key=9, specify_initiator_ports=True)


@pytest.mark.parametrize(("scope", "kind"), [(1, 1), (0, 0), (0, 2), (0, 4), (0, 9), (0, 15)])
def test_reserve_with_a_scope_or_type_that_does_not_exist(scope: int, kind: int) -> None:
    with pytest.raises(CheckCondition) as caught:
        send(state(A), ServiceAction.RESERVE, key=KEYS[A], scope=scope, type=kind)
    assert caught.value.condition == sense.INVALID_FIELD_IN_CDB


def test_equal_keys_are_preempted_together() -> None:
    before = State(0, MappingProxyType({A: 1, B: 2, C: 2}), B, Type.WRITE_EXCLUSIVE)
    after = send(before, ServiceAction.PREEMPT, key=1, action_key=2, type=Type.WRITE_EXCLUSIVE)
    assert after.state.registrations == {A: 1}
    assert told(after, sense.REGISTRATIONS_PREEMPTED) == {B, C}


def test_preempt_removes_the_senders_own_registration_only_where_no_reservation_is_taken() -> None:
    before = State(0, MappingProxyType({A: 1, B: 1}), None, None)
    after = send(before, ServiceAction.PREEMPT, key=1, action_key=1, type=1)
    assert after.state.registrations == {}
    assert told(after, sense.REGISTRATIONS_PREEMPTED) == {B}


def test_generation_wraps() -> None:
    before = State((1 << 32) - 1)
    assert send(before, ServiceAction.REGISTER, action_key=1).state.generation == 0


def test_as_many_registrations_as_there_is_room_for() -> None:
    full = {Port(f"p{index}", "t"): 1 for index in range(REGISTRATIONS_MAX)}
    with pytest.raises(CheckCondition) as caught:
        send(State(registrations=MappingProxyType(full)), ServiceAction.REGISTER, action_key=1)
    assert caught.value.condition == sense.INSUFFICIENT_REGISTRATION_RESOURCES
