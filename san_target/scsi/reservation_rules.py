"""The rules of persistent reservations, as pure functions from one state to the next (SPC-4 5.13).

Nothing here waits, stores or tells anybody: a transition says what the state becomes, who is owed which unit attention
and whose commands a PREEMPT AND ABORT must end. `reservations.py` makes the change durable first and carries it out
then. The functions raise `Conflict` (RESERVATION CONFLICT status) or `CheckCondition`; the state is then unchanged.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from types import MappingProxyType
from typing import NamedTuple

from san_target.scsi.operation import Access
from san_target.scsi.sense import (
    INSUFFICIENT_REGISTRATION_RESOURCES,
    INVALID_RELEASE_OF_PERSISTENT_RESERVATION,
    REGISTRATIONS_PREEMPTED,
    RESERVATIONS_PREEMPTED,
    RESERVATIONS_RELEASED,
    CheckCondition,
    Condition,
    invalid_field_in_cdb,
    invalid_field_in_parameter_list,
)

REGISTRATIONS_MAX = 1024
GENERATION_MODULUS = 1 << 32
LOGICAL_UNIT_SCOPE = 0


class Port(NamedTuple):
    """An I_T nexus by its names: registrations belong to names, since they outlive sessions (SPC-4 5.13.7)."""

    initiator: str
    target: str


class Type(IntEnum):
    """The TYPE field (SPC-4 6.15.3)."""

    WRITE_EXCLUSIVE = 1
    EXCLUSIVE_ACCESS = 3
    WRITE_EXCLUSIVE_REGISTRANTS_ONLY = 5
    EXCLUSIVE_ACCESS_REGISTRANTS_ONLY = 6
    WRITE_EXCLUSIVE_ALL_REGISTRANTS = 7
    EXCLUSIVE_ACCESS_ALL_REGISTRANTS = 8


WRITE_EXCLUSIVE_TYPES = frozenset(
    {Type.WRITE_EXCLUSIVE, Type.WRITE_EXCLUSIVE_REGISTRANTS_ONLY, Type.WRITE_EXCLUSIVE_ALL_REGISTRANTS}
)
REGISTRANTS_ONLY_TYPES = frozenset({Type.WRITE_EXCLUSIVE_REGISTRANTS_ONLY, Type.EXCLUSIVE_ACCESS_REGISTRANTS_ONLY})
ALL_REGISTRANTS_TYPES = frozenset({Type.WRITE_EXCLUSIVE_ALL_REGISTRANTS, Type.EXCLUSIVE_ACCESS_ALL_REGISTRANTS})
# The types that give every registered nexus the access of the holder.
SHARED_TYPES = REGISTRANTS_ONLY_TYPES | ALL_REGISTRANTS_TYPES


class ServiceAction(IntEnum):
    """Service actions of PERSISTENT RESERVE OUT (SPC-4 6.16.2)."""

    REGISTER = 0
    RESERVE = 1
    RELEASE = 2
    CLEAR = 3
    PREEMPT = 4
    PREEMPT_AND_ABORT = 5
    REGISTER_AND_IGNORE_EXISTING_KEY = 6
    REGISTER_AND_MOVE = 7


class Conflict(Exception):
    """The command ends with RESERVATION CONFLICT."""


@dataclass(frozen=True, slots=True)
class State:
    """registrations: reservation key per nexus, oldest first. holder and type are both None or both set.

    With an all registrants type every registered nexus is a holder; `holder` then is any one of them.
    """

    generation: int = 0
    registrations: Mapping[Port, int] = field(default_factory=lambda: MappingProxyType({}))
    holder: Port | None = None
    type: Type | None = None
    aptpl: bool = False

    def is_holder(self, port: Port) -> bool:
        """SPC-4 5.13.10."""
        if self.type in ALL_REGISTRANTS_TYPES:
            return port in self.registrations
        return self.holder is not None and port == self.holder

    def conflicts(self, port: Port, access: Access) -> bool:
        """Whether a command of this nexus meets a reservation of others (SPC-4 5.13, allowed commands)."""
        if self.type is None or self.is_holder(port):
            return False
        if self.type in SHARED_TYPES and port in self.registrations:
            return False
        if access is Access.WRITE:
            return True
        return access is Access.READ and self.type not in WRITE_EXCLUSIVE_TYPES


@dataclass(frozen=True, slots=True)
class Request:
    """A PERSISTENT RESERVE OUT command. also: the SPEC_I_PT nexuses; destination, unregister: REGISTER AND MOVE's."""

    port: Port
    action: ServiceAction
    key: int = 0
    action_key: int = 0
    scope: int = LOGICAL_UNIT_SCOPE
    type: int = 0
    aptpl: bool = False
    specify_initiator_ports: bool = False
    also: tuple[Port, ...] = ()
    destination: Port | None = None
    unregister: bool = False


class Attention(NamedTuple):
    port: Port
    condition: Condition


@dataclass(frozen=True, slots=True)
class Transition:
    """preempted: nexuses other than the sender's that lost their registration to a PREEMPT.

    Their commands under way must have ended (PREEMPT) or be aborted (PREEMPT AND ABORT) before the answer.
    """

    state: State
    attentions: tuple[Attention, ...] = ()
    preempted: frozenset[Port] = frozenset()


def apply(state: State, request: Request) -> Transition:
    """The next state. Raises Conflict or CheckCondition."""
    return _ACTIONS[request.action](state, request)


def _register(state: State, request: Request) -> Transition:
    # SPC-4 5.13.7, register behaviour of REGISTER.
    registered = state.registrations.get(request.port)
    if request.key != (registered or 0):
        raise Conflict
    if request.specify_initiator_ports and (registered is not None or request.action_key == 0):
        raise invalid_field_in_cdb(1)
    if registered is not None:
        return _change_key(state, request)
    if request.action_key == 0:
        return Transition(state)
    for index, port in enumerate(request.also):
        # All of the nexuses are registered or none (5.13.7); one that is registered already cannot be.
        if port in state.registrations or port in request.also[:index]:
            raise invalid_field_in_parameter_list(28)
    added = dict.fromkeys((request.port, *request.also), request.action_key)
    return Transition(_registered(state, added, request.aptpl))


def _register_and_ignore(state: State, request: Request) -> Transition:
    # SPC-4 5.13.7: the RESERVATION KEY field is not looked at.
    if request.specify_initiator_ports:
        raise invalid_field_in_parameter_list(20, 3)
    if request.port in state.registrations:
        return _change_key(state, request)
    if request.action_key == 0:
        return Transition(state)
    return Transition(_registered(state, {request.port: request.action_key}, request.aptpl))


def _change_key(state: State, request: Request) -> Transition:
    if request.action_key != 0:
        return Transition(_registered(state, {request.port: request.action_key}, request.aptpl))
    left = _without(state, {request.port})
    attentions: tuple[Attention, ...] = ()
    if left.type is None and state.type in REGISTRANTS_ONLY_TYPES:
        # SPC-4 5.13.11.3; an all registrants type only goes with its last registration: nobody is left to be told.
        attentions = _attentions(left.registrations, RESERVATIONS_RELEASED)
    return Transition(replace(_next_generation(left), aptpl=request.aptpl), attentions)


def _reserve(state: State, request: Request) -> Transition:
    # SPC-4 5.13.9.
    kind = _type_of(request)
    _require_key(state, request)
    if state.type is not None:
        if state.is_holder(request.port) and state.type is kind:
            return Transition(state)
        raise Conflict
    return Transition(replace(state, holder=request.port, type=kind))


def _release(state: State, request: Request) -> Transition:
    # SPC-4 5.13.11.2. Without a reservation, or from a nexus that does not hold it, it is no error and no change.
    _require_key(state, request)
    if state.type is None or not state.is_holder(request.port):
        return Transition(state)
    if request.scope != LOGICAL_UNIT_SCOPE or request.type != state.type:
        raise CheckCondition(INVALID_RELEASE_OF_PERSISTENT_RESERVATION)
    attentions: tuple[Attention, ...] = ()
    if state.type in SHARED_TYPES:
        attentions = _attentions(_others(state, request.port), RESERVATIONS_RELEASED)
    return Transition(replace(state, holder=None, type=None), attentions)


def _clear(state: State, request: Request) -> Transition:
    # SPC-4 5.13.11.6. The activation of APTPL stays as it was set last; with no registration it keeps nothing.
    _require_key(state, request)
    attentions = _attentions(_others(state, request.port), RESERVATIONS_PREEMPTED)
    return Transition(_next_generation(State(generation=state.generation, aptpl=state.aptpl)), attentions)


def _preempt(state: State, request: Request) -> Transition:
    # SPC-4 5.13.11.4, preempting actions.
    _require_key(state, request)
    if request.action_key == 0 and state.type not in ALL_REGISTRANTS_TYPES:
        raise invalid_field_in_parameter_list(8)
    if request.action_key == 0:
        return _preempt_reservation(state, request, _others(state, request.port))
    matching = [port for port, key in state.registrations.items() if key == request.action_key]
    if not matching:
        raise Conflict
    if state.type in ALL_REGISTRANTS_TYPES or state.holder not in matching:
        return _remove_registrations(state, request, matching)
    return _preempt_reservation(state, request, [port for port in matching if port != request.port])


def _preempt_reservation(state: State, request: Request, losers: list[Port]) -> Transition:
    # SPC-4 5.13.11.4.3. The sender keeps its registration, also where it preempts itself to change the type.
    kind = _type_of(request)
    left = _without(state, set(losers))
    attentions = _attentions(losers, REGISTRATIONS_PREEMPTED)
    if kind is not state.type:
        attentions += _attentions(_others(left, request.port), RESERVATIONS_RELEASED)
    after = _next_generation(replace(left, holder=request.port, type=kind))
    return Transition(after, attentions, frozenset(losers))


def _remove_registrations(state: State, request: Request, losers: list[Port]) -> Transition:
    # SPC-4 5.13.11.4.4: scope and type are not looked at; the sender's own registration goes too if its key is meant.
    after = _next_generation(_without(state, set(losers)))
    others = [port for port in losers if port != request.port]
    return Transition(after, _attentions(others, REGISTRATIONS_PREEMPTED), frozenset(others))


def _register_and_move(state: State, request: Request) -> Transition:
    # SPC-4 5.13.8; the reservation keeps scope and type.
    _require_key(state, request)
    if state.type is None:
        raise invalid_field_in_cdb(1, 4)
    if not state.is_holder(request.port) or state.type in ALL_REGISTRANTS_TYPES:
        raise Conflict
    if request.action_key == 0:
        raise invalid_field_in_parameter_list(8)
    if request.destination is None or request.destination == request.port:
        raise invalid_field_in_parameter_list(24)
    moved = replace(
        _registered(state, {request.destination: request.action_key}, request.aptpl), holder=request.destination
    )
    return Transition(_without(moved, {request.port}) if request.unregister else moved)


_ACTIONS: dict[ServiceAction, Callable[[State, Request], Transition]] = {
    ServiceAction.REGISTER: _register,
    ServiceAction.RESERVE: _reserve,
    ServiceAction.RELEASE: _release,
    ServiceAction.CLEAR: _clear,
    ServiceAction.PREEMPT: _preempt,
    ServiceAction.PREEMPT_AND_ABORT: _preempt,
    ServiceAction.REGISTER_AND_IGNORE_EXISTING_KEY: _register_and_ignore,
    ServiceAction.REGISTER_AND_MOVE: _register_and_move,
}


def _require_key(state: State, request: Request) -> None:
    """SPC-4 6.16.2: a registered nexus that gives its own key."""
    if state.registrations.get(request.port) != request.key:
        raise Conflict


def _type_of(request: Request) -> Type:
    if request.scope != LOGICAL_UNIT_SCOPE:
        raise invalid_field_in_cdb(2, 7)
    try:
        return Type(request.type)
    except ValueError:
        raise invalid_field_in_cdb(2, 3) from None


def _next_generation(state: State) -> State:
    # SPC-4 6.15.2: counted by every successful service action but RESERVE and RELEASE; wraps.
    return replace(state, generation=(state.generation + 1) % GENERATION_MODULUS)


def _registered(state: State, added: Mapping[Port, int], aptpl: bool) -> State:
    registrations = {**state.registrations, **added}
    if len(registrations) > REGISTRATIONS_MAX:
        raise CheckCondition(INSUFFICIENT_REGISTRATION_RESOURCES)
    return _next_generation(replace(state, registrations=MappingProxyType(registrations), aptpl=aptpl))


def _without(state: State, ports: set[Port]) -> State:
    """The state after these nexuses lost their registration; a reservation goes with its (last) holder."""
    registrations = {port: key for port, key in state.registrations.items() if port not in ports}
    holder, kind = state.holder, state.type
    if holder in ports:
        holder = next(iter(registrations), None) if kind in ALL_REGISTRANTS_TYPES else None
        kind = None if holder is None else kind
    return replace(state, registrations=MappingProxyType(registrations), holder=holder, type=kind)


def _others(state: State, port: Port) -> list[Port]:
    return [other for other in state.registrations if other != port]


def _attentions(ports: "list[Port] | Mapping[Port, int]", condition: Condition) -> tuple[Attention, ...]:
    return tuple(Attention(port, condition) for port in ports)
