"""Who may use a logical unit: persistent reservations (SPC-4 5.13) and RESERVE(6)/RELEASE(6) (SPC-2 5.5).

Invariants kept here:

- durable before effect: a persistent reservation changes in memory, and is answered, only after its record is stored;
- one change at a time, in the order the commands came: each is judged against the state its predecessor left;
- after each change the nexuses' `may_read` / `may_write` flags are computed anew before anything else can run;
- a PREEMPT is answered only after the commands of the preempted nexuses that had passed the old state have ended, so
  that a preempted initiator writes nothing after the answer.

In a group the state is the volume's, not the member's: every change goes to the store and raises `epoch`, requests
between members carry the epoch they were judged at, and a change is answered when each live member confirmed the epoch
or lost its lease. With one member the second half is empty; `changed` is the place where it will be awaited.
"""

from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING

from san_target.metadata.schema import RegistrationRecord, ReservationsRecord
from san_target.scsi import reservation_rules as rules
from san_target.scsi.command import BUSY, OUTCOME_GOOD, RESERVATION_CONFLICT, TASK_ABORTED, Outcome
from san_target.scsi.operation import Access
from san_target.scsi.reservation_rules import SHARED_TYPES, Port, Request, ServiceAction, State, Transition, Type
from san_target.volume.device import VolumeError

if TYPE_CHECKING:
    from san_target.scsi.command import Command
    from san_target.scsi.logical_unit import LogicalUnit
    from san_target.scsi.nexus import Nexus

# How often a command that waits for its turn looks again. Changes are rare and a store commit takes milliseconds.
TURN_POLL_S = 0.002

# Commands that RESERVE(6) of another nexus lets pass: by their row, or judged by their own handler.
_NEVER_JUDGED = frozenset({Access.ALWAYS, Access.RESERVE_6})


def port_of(nexus: "Nexus") -> Port:
    return Port(nexus.initiator_port, nexus.target_port)


class Reservations:
    """The reservations of one logical unit.

    reserved_by   the nexus that holds RESERVE(6), or None. It ends with the session or a reset (SPC-2 5.5.1)
    epoch         counts changes that may take access away from somebody; see the module's text
    drain         awaited with the preempted nexuses of a PREEMPT: returns when none of their commands that were judged
                  by the old state can still touch the medium. None = the session has no such commands
    """

    __slots__ = ("_guest_writes", "_queue", "_state", "_unit", "drain", "epoch", "reserved_by")

    def __init__(self, unit: "LogicalUnit") -> None:
        self._unit = unit
        self._state = State()
        self._queue: deque[Command] = deque()
        self._guest_writes: list[Port] = []
        self.reserved_by: Nexus | None = None
        self.epoch = 0
        self.drain: Callable[[list[Nexus]], Awaitable[None]] | None = None

    @property
    def state(self) -> State:
        return self._state

    # --- judging ------------------------------------------------------------------------------------------------------

    def conflict(self, nexus: "Nexus", access: Access) -> bool:
        """Whether a command of this kind, from this nexus, ends with RESERVATION CONFLICT now."""
        if access in _NEVER_JUDGED:
            return False
        if self.reserved_by is not None and self.reserved_by is not nexus:
            return True
        if self._state.type is None:
            return False
        return self._state.conflicts(port_of(nexus), access)

    def may_read(self, nexus: "Nexus") -> bool:
        return not self.conflict(nexus, Access.READ)

    def may_write(self, nexus: "Nexus") -> bool:
        return not self.conflict(nexus, Access.WRITE)

    def holds(self, nexus: "Nexus") -> bool:
        """Whether moving this session elsewhere would lose something: RESERVE(6) or a registration is this nexus's."""
        return self.reserved_by is nexus or port_of(nexus) in self._state.registrations

    @contextmanager
    def guest_write(self, port: Port) -> Iterator[None]:
        """Around a write that a copy of another unit's session makes in the name of this nexus, judged just before.

        The session knows such writes as tasks of the other unit, so a PREEMPT here would not wait for them otherwise.
        """
        self._guest_writes.append(port)
        try:
            yield
        finally:
            self._guest_writes.remove(port)

    # --- RESERVE(6), RELEASE(6) ---------------------------------------------------------------------------------------

    def reserve_6(self, nexus: "Nexus") -> Outcome:
        """SPC-2 5.5.1, with the compatible handling of SPC-4 5.13.3 (CRH = 1 in REPORT CAPABILITIES)."""
        if self._queue:
            # A PERSISTENT RESERVE OUT is being made durable: whether the two kinds meet is not known yet.
            return Outcome(BUSY)
        if self._state.registrations:
            return OUTCOME_GOOD if self._covered(nexus) else Outcome(RESERVATION_CONFLICT)
        if self.reserved_by is not None and self.reserved_by is not nexus:
            return Outcome(RESERVATION_CONFLICT)
        if self.reserved_by is None:
            self._set_reserved_by(nexus)
        return OUTCOME_GOOD

    def release_6(self, nexus: "Nexus") -> Outcome:
        """A release by another nexus than the holder is GOOD and changes nothing (SPC-2 7.16)."""
        if self._state.registrations and not self._covered(nexus):
            return Outcome(RESERVATION_CONFLICT)
        if self.reserved_by is nexus:
            self._set_reserved_by(None)
        return OUTCOME_GOOD

    def _covered(self, nexus: "Nexus") -> bool:
        # SPC-4 5.13.3: then RESERVE(6) and RELEASE(6) are GOOD and change nothing.
        port = port_of(nexus)
        if port not in self._state.registrations:
            return False
        return self._state.is_holder(port) or self._state.type in SHARED_TYPES

    def _set_reserved_by(self, nexus: "Nexus | None") -> None:
        self.reserved_by = nexus
        self.epoch += 1
        self._unit.refresh_all()

    # --- life of nexuses and of the unit ------------------------------------------------------------------------------

    def forget(self, nexus: "Nexus") -> None:
        """The nexus is gone: RESERVE(6) ends with it, registrations stay (SPC-4 5.13.5)."""
        if self.reserved_by is nexus:
            self._set_reserved_by(None)

    def reset(self) -> None:
        """Logical unit or target reset: RESERVE(6) ends; persistent reservations do not (SPC-4 5.13.1)."""
        if self.reserved_by is not None:
            self._set_reserved_by(None)

    def load(self, record: ReservationsRecord, power_lost: bool = True) -> None:
        """Take over what the store holds, before the first command.

        power_lost: nobody served the unit in between (the only member restarted, or all did). Then registrations
        without APTPL are gone (SPC-4 5.13.6); another member of a running group passes False and keeps them.
        PRGENERATION goes on counting, since other members may have answered with it.
        """
        if power_lost and not record.aptpl:
            self._state = State(generation=record.generation)
        else:
            self._state = state_of(record)
        self.epoch += 1
        self._unit.refresh_all()

    def record(self) -> ReservationsRecord:
        return record_of(self._state)

    # --- PERSISTENT RESERVE OUT ---------------------------------------------------------------------------------------

    async def change(self, command: "Command", request: Request) -> Outcome:
        """Carry out one PERSISTENT RESERVE OUT. Raises CheckCondition; waits for its turn and for the store."""
        self._queue.append(command)
        try:
            while self._queue[0] is not command:
                await self._unit.services.sleep(TURN_POLL_S)
            return await self._change_now(command, request)
        finally:
            self._queue.remove(command)

    async def _change_now(self, command: "Command", request: Request) -> Outcome:
        if command.aborted or command.nexus.fenced:
            return Outcome(TASK_ABORTED)
        if self.reserved_by is not None:
            # SPC-2 5.5.1: the two kinds of reservation are not used together, not even by the same nexus.
            return Outcome(RESERVATION_CONFLICT)
        try:
            transition = rules.apply(self._state, request)
        except rules.Conflict:
            return Outcome(RESERVATION_CONFLICT)
        if transition.state != self._state:
            try:
                await self._unit.services.save_reservations(record_of(transition.state))
            except VolumeError:
                # Nothing changed here, and the initiator may simply try again: BUSY says so. HARDWARE ERROR would make
                # hosts fail the disk for a store that is away for seconds. Whether the store took the record may be
                # unknown; each record is the whole state, so the next change puts the store right.
                return Outcome(BUSY)
            self._effect(transition)
        await self._settle(transition, request)
        return OUTCOME_GOOD

    def _effect(self, transition: Transition) -> None:
        self._state = transition.state
        self.epoch += 1
        nexuses = {port_of(nexus): nexus for nexus in self._unit.nexuses}
        for port, condition in transition.attentions:
            # A nexus without a session is owed nothing here: its next login begins with a unit attention anyway.
            if port in nexuses:
                self._unit.attention(nexuses[port], condition)
        self._unit.refresh_all()

    async def _settle(self, transition: Transition, request: Request) -> None:
        """Wait until nothing that the old state allowed can still happen (SPC-4 5.13.11.5 for PREEMPT AND ABORT)."""
        while any(port in transition.preempted for port in self._guest_writes):
            await self._unit.services.sleep(TURN_POLL_S)
        preempted = self._sessions_of(transition.preempted)
        if not preempted:
            return
        if request.action is ServiceAction.PREEMPT_AND_ABORT and self._unit.abort_tasks is not None:
            await self._unit.abort_tasks(preempted)
        elif self.drain is not None:
            await self.drain(preempted)

    def _sessions_of(self, ports: Iterable[Port]) -> "list[Nexus]":
        wanted = set(ports)
        return [nexus for nexus in self._unit.nexuses if port_of(nexus) in wanted]


def record_of(state: State) -> ReservationsRecord:
    registrations = tuple(
        RegistrationRecord(port.initiator, port.target, key) for port, key in state.registrations.items()
    )
    ports = list(state.registrations)
    return ReservationsRecord(
        generation=state.generation,
        registrations=registrations,
        holder=-1 if state.holder is None else ports.index(state.holder),
        type=0 if state.type is None else int(state.type),
        aptpl=state.aptpl,
    )


def state_of(record: ReservationsRecord) -> State:
    """Raises ValueError for a record that no state of ours can have written."""
    ports = [Port(item.initiator_port, item.target_port) for item in record.registrations]
    if (record.holder < 0) != (record.type == 0) or record.holder >= len(ports) or len(set(ports)) != len(ports):
        raise ValueError(f"reservations record is inconsistent: holder {record.holder}, type {record.type}")
    keys = {port: item.key for port, item in zip(ports, record.registrations, strict=True)}
    return State(
        generation=record.generation,
        registrations=MappingProxyType(keys),
        holder=None if record.holder < 0 else ports[record.holder],
        type=None if record.type == 0 else Type(record.type),
        aptpl=record.aptpl,
    )
