"""The part of a logical unit's state that is the volume's, not the member's: reservations, mode parameters, resets.

It is one record in the store, and every change is made the same way, at whichever member its command came to: the
next record is computed from the present one, stored if nobody else was faster, taken over here as everywhere, and the
command is answered when every member has taken it over and nothing that the old state allowed is under way [29-31].

Invariants kept here:

- durable before effect, and before any answer;
- one change at a time at this member, in the order the commands came; among members the store decides;
- what has to end because of a change (commands of preempted nexuses, all commands at a reset) has ended at this member
  before `settled` returns for it;
- GOOD means that every member goes by the state: also for a command that finds it as it wants it, since whoever made it
  so may not have reached all members. A command that was carried out and ended BUSY for that reason is not carried out
  once more when its initiator repeats it, as long as nothing else has changed: it is answered when all know.

The *epoch* of a state is the store revision of its record; 0: nothing was ever stored.
"""

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import msgspec

from san_target.metadata.schema import AttentionRecord, ReservationsRecord, UnitEventRecord
from san_target.scsi.command import BUSY, OUTCOME_GOOD, TASK_ABORTED, Outcome
from san_target.scsi.reservation_rules import Port
from san_target.scsi.sense import RESERVATIONS_PREEMPTED, UNIT_ATTENTION, Condition
from san_target.volume.device import Unavailable, VolumeError

if TYPE_CHECKING:
    from san_target.scsi.command import Command
    from san_target.scsi.logical_unit import LogicalUnit
    from san_target.scsi.nexus import Nexus

POLL_S: Final = 0.002
"""How often a command that waits for its turn, or for others, looks again. Changes are rare, and commits slow."""
PATIENCE_S: Final = 10.0
ATTEMPTS: Final = 16

Compute = Callable[[ReservationsRecord], "ReservationsRecord | Outcome"]
"""The next record, the same one for no change, or how the command ends instead. May raise CheckCondition."""


Repeated = tuple[Port, bytes, bytes]
"""What tells a command that is sent again: nexus, CDB and data."""


class Outdated(Unavailable):
    """Somebody else has changed the record: nothing was stored."""


def port_of(nexus: "Nexus") -> Port:
    return Port(nexus.initiator_port, nexus.target_port)


def _repeated(command: "Command") -> Repeated:
    return port_of(command.nexus), bytes(command.cdb), bytes(command.data_out)


def names_of(port: Port) -> tuple[str, str]:
    """As a record has it."""
    return port.initiator, port.target


def event_of(record: ReservationsRecord, event: UnitEventRecord) -> UnitEventRecord:
    """The event with the number that is its turn after `record`."""
    return msgspec.structs.replace(event, number=1 if record.last is None else record.last.number + 1)


class SharedState:
    """record, epoch: as taken over here. What they mean is told to the unit by `adopt`."""

    def __init__(self, unit: "LogicalUnit") -> None:
        self._unit = unit
        self._queue: deque[object] = deque()
        self._unsettled: set[int] = set()
        self._known_to_all = 0  # up to this epoch, as far as is known here
        self._unanswered: tuple[Repeated, int] | None = None  # what made which epoch, before that was known to all
        self.record = ReservationsRecord(generation=0)
        self.epoch = 0

    # --- changes made here --------------------------------------------------------------------------------------------

    async def change(self, compute: Compute, command: "Command | None" = None) -> Outcome:
        """Carry out one change. CheckCondition. BUSY: the store, or a member that has to know, cannot be reached."""
        turn = object()
        self._queue.append(turn)
        try:
            while self._queue[0] is not turn:
                await self._unit.services.sleep(POLL_S)
            return await self._change_now(compute, command)
        finally:
            self._queue.remove(turn)

    async def _change_now(self, compute: Compute, command: "Command | None") -> Outcome:
        for _ in range(ATTEMPTS):
            if command is not None and (command.aborted or command.nexus.fenced):
                return Outcome(TASK_ABORTED)
            base = self.epoch
            if command is not None and self._unanswered == (_repeated(command), base):
                return await self._make_known(base)
            following = compute(self.record)
            if isinstance(following, Outcome):
                return following
            if following is self.record:
                return await self._make_known(base)
            try:
                await self._unit.services.before_change(_keeps_out(following) and not _keeps_out(self.record))
                if self.epoch != base:
                    continue
                epoch = await self._unit.services.save_reservations(following, base)
            except Outdated:
                if not await self._newer_than(base):
                    return Outcome(BUSY)
                continue
            except VolumeError:
                # Nothing changed here, and the initiator may simply try again: BUSY says so. HARDWARE ERROR would make
                # hosts fail the disk for a store that is away for seconds. Whether the store took the record may be
                # unknown: then it comes by the watch, as a change of somebody else does.
                return Outcome(BUSY)
            if command is not None:
                self._unanswered = _repeated(command), epoch
            return await self._spread(following, epoch)
        return Outcome(BUSY)

    async def _newer_than(self, epoch: int) -> bool:
        deadline_s = self._unit.services.now() + PATIENCE_S
        while self.epoch <= epoch:
            if self._unit.services.now() > deadline_s:
                return False
            await self._unit.services.sleep(POLL_S)
        return True

    async def _spread(self, record: ReservationsRecord, epoch: int) -> Outcome:
        if epoch > self.epoch:
            event = self._adopt(record, epoch)
            await self._settle(epoch, event)
        return await self._make_known(epoch)

    async def _make_known(self, epoch: int) -> Outcome:
        """GOOD when this state, or a later one, is in force everywhere."""
        await self.settled(epoch)
        if epoch > self._known_to_all:
            try:
                await self._unit.services.everyone_has(epoch)
            except VolumeError:
                return Outcome(BUSY)
            self._known_to_all = max(self._known_to_all, epoch)
        self._unanswered = None
        return OUTCOME_GOOD

    # --- changes made anywhere ----------------------------------------------------------------------------------------

    def load(self, record: ReservationsRecord, epoch: int, power_lost: bool = True) -> None:
        """Take over what the store holds, before the first command. ValueError: it makes no sense.

        power_lost: nobody served the unit in between (the only member restarted, or all did). Then registrations
        without APTPL are gone (SPC-4 5.13.6), as are RESERVE(6) and the mode parameters; a member that comes to a
        running group passes False. PRGENERATION goes on counting, since other members may have answered with it.
        """
        if power_lost:
            kept = record if record.aptpl else ReservationsRecord(generation=record.generation, last=record.last)
            record = msgspec.structs.replace(kept, reserved_by=None, reserved_at="", mode=None)
        self._unit.adopt(record)
        self.record, self.epoch = record, epoch
        self._unanswered = None
        self._unit.refresh_all()

    def take_over(self, record: ReservationsRecord, epoch: int) -> None:
        """What the store's watch says. ValueError: the record makes no sense."""
        if epoch > self.epoch:
            self._unit.services.spawn(self._settle(epoch, self._adopt(record, epoch)))

    async def settled(self, epoch: int) -> None:
        """Return when the state of this epoch, or a later one, is in force here, and what it ends has ended."""
        while self.epoch < epoch or any(each <= epoch for each in self._unsettled):
            await self._unit.services.sleep(POLL_S)

    def _adopt(self, record: ReservationsRecord, epoch: int) -> UnitEventRecord | None:
        """From here on nothing is judged by the old state. The event that made the new one, if that is new."""
        before = self.record.last
        self._unit.adopt(record)
        self.record, self.epoch = record, epoch
        event = record.last
        self._unsettled.add(epoch)
        if event is None or (before is not None and event.number <= before.number):
            self._unit.refresh_all()
            return None
        if before is not None and event.number > before.number + 1:
            # The watch has passed over events: what they owed to whom is not known any more.
            self._unit.establish(RESERVATIONS_PREEMPTED)
        self._owe(event)
        self._unit.refresh_all()
        return event

    def _owe(self, event: UnitEventRecord) -> None:
        unit = self._unit
        if event.reset:
            unit.reset(event.everyone or (0x29, 0x03))
        nexuses = {port_of(nexus): nexus for nexus in unit.nexuses}
        if event.everyone is not None and not event.reset:
            condition = Condition(UNIT_ATTENTION, *event.everyone)
            for port, nexus in nexuses.items():
                if event.except_port is None or port != Port(*event.except_port):
                    unit.attention(nexus, condition)
        for owed in event.attentions:
            # A nexus without a session is owed nothing here: its next login begins with a unit attention anyway.
            nexus_owed = nexuses.get(Port(owed.initiator_port, owed.target_port))
            if nexus_owed is not None:
                unit.attention(nexus_owed, Condition(UNIT_ATTENTION, owed.asc, owed.ascq))

    async def _settle(self, epoch: int, event: UnitEventRecord | None) -> None:
        """Wait until nothing that the old state allowed can still happen (SPC-4 5.13.11.5 for PREEMPT AND ABORT)."""
        try:
            if event is not None:
                await self._unit.end_commands(event)
        finally:
            self._unsettled.discard(epoch)


def attention_record(port: Port, condition: Condition) -> AttentionRecord:
    return AttentionRecord(port.initiator, port.target, condition.asc, condition.ascq)


def _keeps_out(record: ReservationsRecord) -> bool:
    return bool(record.registrations) or record.reserved_by is not None
