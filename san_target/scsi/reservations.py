"""Who may use a logical unit: persistent reservations (SPC-4 5.13) and RESERVE(6)/RELEASE(6) (SPC-2 5.5).

Judged here, by the state in force; changed through `shared_state`, which makes a change durable, and known to every
member, before it is answered. After each change the nexuses' `may_read` / `may_write` flags are computed anew before
anything else can run.
"""

from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import msgspec

from san_target.metadata.schema import RegistrationRecord, ReservationsRecord, UnitEventRecord
from san_target.scsi import reservation_rules as rules
from san_target.scsi.command import BUSY, RESERVATION_CONFLICT, Outcome
from san_target.scsi.operation import Access
from san_target.scsi.reservation_rules import SHARED_TYPES, Port, Request, ServiceAction, State, Type
from san_target.scsi.shared_state import POLL_S, attention_record, event_of, names_of, port_of

if TYPE_CHECKING:
    from san_target.scsi.command import Command
    from san_target.scsi.logical_unit import LogicalUnit
    from san_target.scsi.nexus import Nexus

# Commands that RESERVE(6) of another nexus lets pass: by their row, or judged by their own handler.
_NEVER_JUDGED = frozenset({Access.ALWAYS, Access.RESERVE_6})
RELEASE_RETRY_S: Final = 1.0
RELEASE_PATIENCE_S: Final = 5.0
BINDING_S: Final = 60.0


class Reservations:
    """The reservations of one logical unit.

    reserved_by   the port that holds RESERVE(6), or None. It ends with the session or a reset (SPC-2 5.5.1)
    drain         awaited with the preempted nexuses of a PREEMPT: returns when none of their commands that were judged
                  by the old state can still touch the medium. None = the session has no such commands
    """

    __slots__ = ("_binding_until_s", "_giving_up", "_guest_writes", "_state", "_unit", "drain", "reserved_by")

    def __init__(self, unit: "LogicalUnit") -> None:
        self._unit = unit
        self._state = State()
        self._guest_writes: list[Port] = []
        self._giving_up: set[Port] = set()
        self.reserved_by: Port | None = None
        self._binding_until_s = float("-inf")
        self.drain: Callable[[list[Nexus]], Awaitable[None]] | None = None

    @property
    def state(self) -> State:
        return self._state

    @property
    def bind_to_lease(self) -> bool:
        """Whether somebody may be kept out: then a member that others cannot reach must not go by what it knows."""
        return (
            bool(self._state.registrations)
            or self.reserved_by is not None
            or self._unit.services.now() < self._binding_until_s
        )

    def bind_for_a_while(self) -> None:
        """Another member is about to keep somebody out; its change comes by the store, or it does not."""
        self._binding_until_s = self._unit.services.now() + BINDING_S

    def adopt(self, record: ReservationsRecord) -> None:
        """ValueError for a record that makes no sense."""
        self._state = state_of(record)
        self.reserved_by = None if record.reserved_by is None else Port(*record.reserved_by)

    # --- judging ------------------------------------------------------------------------------------------------------

    def conflict(self, nexus: "Nexus", access: Access) -> bool:
        """Whether a command of this kind, from this nexus, ends with RESERVATION CONFLICT now."""
        if access in _NEVER_JUDGED:
            return False
        if self.reserved_by is not None and self.reserved_by != port_of(nexus):
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
        port = port_of(nexus)
        return self.reserved_by == port or port in self._state.registrations

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

    async def reserve_6(self, nexus: "Nexus", command: "Command | None" = None) -> Outcome:
        """SPC-2 5.5.1, with the compatible handling of SPC-4 5.13.3 (CRH = 1 in REPORT CAPABILITIES)."""

        def reserved(record: ReservationsRecord) -> ReservationsRecord | Outcome:
            if self._state.registrations:
                return record if self._covered(nexus) else Outcome(RESERVATION_CONFLICT)
            if self.reserved_by is not None:
                return record if self.reserved_by == port_of(nexus) else Outcome(RESERVATION_CONFLICT)
            return msgspec.structs.replace(
                record,
                reserved_by=names_of(port_of(nexus)),
                reserved_at=self._unit.services.place(),
                last=event_of(record, UnitEventRecord()),
            )

        return await self._unit.shared.change(reserved, command)

    async def release_6(self, nexus: "Nexus", command: "Command | None" = None) -> Outcome:
        """A release by another nexus than the holder is GOOD and changes nothing (SPC-2 7.16)."""

        def released(record: ReservationsRecord) -> ReservationsRecord | Outcome:
            if self._state.registrations and not self._covered(nexus):
                return Outcome(RESERVATION_CONFLICT)
            return self._released(record, port_of(nexus))

        return await self._unit.shared.change(released, command)

    @staticmethod
    def _released(record: ReservationsRecord, port: Port) -> ReservationsRecord:
        if record.reserved_by != names_of(port):
            return record
        event = event_of(record, UnitEventRecord())
        return msgspec.structs.replace(record, reserved_by=None, reserved_at="", last=event)

    def _covered(self, nexus: "Nexus") -> bool:
        # SPC-4 5.13.3: then RESERVE(6) and RELEASE(6) are GOOD and change nothing.
        port = port_of(nexus)
        if port not in self._state.registrations:
            return False
        return self._state.is_holder(port) or self._state.type in SHARED_TYPES

    # --- life of nexuses ----------------------------------------------------------------------------------------------

    def forget(self, nexus: "Nexus") -> None:
        """The nexus is gone: RESERVE(6) ends with it, registrations stay (SPC-4 5.13.5)."""
        port = port_of(nexus)
        if self.reserved_by == port and port not in self._giving_up:
            self._giving_up.add(port)
            self._unit.services.spawn(self.give_up(port))

    def give_back(self, nexus: "Nexus", then: Callable[[], None]) -> None:
        """The nexus is about to go, and `then` says so: at once, or as soon as it is true."""
        self.forget(nexus)
        if port_of(nexus) not in self._giving_up:
            then()
            return

        async def wait() -> None:
            await self.given_up(nexus)
            then()

        self._unit.services.spawn(wait())

    async def given_up(self, nexus: "Nexus") -> bool:
        """Return when no member enforces a RESERVE(6) any more that ended with its nexus; False: that takes long.

        Whoever says that a nexus has ended says it after that: else the next host would still meet a conflict, or the
        same host, back at another member, would lose what it reserves there.
        """
        deadline_s = self._unit.services.now() + RELEASE_PATIENCE_S
        while port_of(nexus) in self._giving_up:
            if self._unit.services.now() > deadline_s:
                return False
            await self._unit.services.sleep(POLL_S)
        return True

    async def give_up(self, port: Port) -> None:
        """End a RESERVE(6) whose nexus is gone, however long the store is away."""
        try:
            while (await self._unit.shared.change(lambda record: self._released(record, port))).status == BUSY:
                await self._unit.services.sleep(RELEASE_RETRY_S)
        finally:
            self._giving_up.discard(port)

    # --- PERSISTENT RESERVE OUT ---------------------------------------------------------------------------------------

    async def change(self, command: "Command", request: Request) -> Outcome:
        """Carry out one PERSISTENT RESERVE OUT. Raises CheckCondition; waits for its turn and for the store."""

        def changed(record: ReservationsRecord) -> ReservationsRecord | Outcome:
            if self.reserved_by is not None:
                # SPC-2 5.5.1: the two kinds of reservation are not used together, not even by the same nexus.
                return Outcome(RESERVATION_CONFLICT)
            try:
                transition = rules.apply(self._state, request)
            except rules.Conflict:
                return Outcome(RESERVATION_CONFLICT)
            if transition.state == self._state:
                return record
            event = UnitEventRecord(
                attentions=tuple(attention_record(*attention) for attention in transition.attentions),
                preempted=tuple(names_of(port) for port in sorted(transition.preempted)),
                abort=request.action is ServiceAction.PREEMPT_AND_ABORT,
            )
            return record_of(transition.state, msgspec.structs.replace(record, last=event_of(record, event)))

        return await self._unit.shared.change(changed, command)

    async def end_commands(self, ports: Iterable[Port], abort: bool) -> None:
        """The commands of preempted nexuses that are here: aborted, or waited for."""
        wanted = set(ports)
        while any(port in wanted for port in self._guest_writes):
            await self._unit.services.sleep(POLL_S)
        preempted = [nexus for nexus in self._unit.nexuses if port_of(nexus) in wanted]
        if not preempted:
            return
        if abort and self._unit.abort_tasks is not None:
            await self._unit.abort_tasks(preempted)
        elif self.drain is not None:
            await self.drain(preempted)


def record_of(state: State, base: ReservationsRecord | None = None) -> ReservationsRecord:
    """The state in a record; what else there is comes from `base`."""
    registrations = tuple(
        RegistrationRecord(port.initiator, port.target, key) for port, key in state.registrations.items()
    )
    ports = list(state.registrations)
    return msgspec.structs.replace(
        base or ReservationsRecord(generation=0),
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
