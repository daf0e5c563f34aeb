"""A logical unit: a volume as hosts see it, with everything that stands between a nexus and the medium.

The order of judgement of a command (SPC-4 5.9, SAM-5 5.14, SBC-4 4.10): operation code, unit attention, reservation
conflict, not ready; then the command's own handler checks its fields, write protection and range, in that order.

Invariant kept here: `may_read` and `may_write` of every attached nexus are recomputed (`refresh`, `refresh_all`) at
each change of what they depend on, since the hot path asks nothing else.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from san_target.metadata.schema import ReservationsRecord, UnitEventRecord
from san_target.scsi import mode, sense
from san_target.scsi.absent_unit import execute_without_unit as execute_without_unit
from san_target.scsi.command import BUSY, GOOD, OUTCOME_GOOD, RESERVATION_CONFLICT, TASK_ABORTED, Command, Outcome
from san_target.scsi.copy import CopyManager
from san_target.scsi.hot import decode_read_write
from san_target.scsi.limits import Limits
from san_target.scsi.operation import Access, Operation, Operations
from san_target.scsi.reservation_rules import Port
from san_target.scsi.reservations import Reservations
from san_target.scsi.sense import CheckCondition, Condition, invalid_field_in_cdb
from san_target.scsi.shared_state import SharedState, event_of, names_of, port_of
from san_target.scsi.table import operations_for
from san_target.volume.device import MediumError, NotAtomic, OutOfSpace, Unavailable, VolumeError, WriteProtected
from san_target.volume.origin import ORIGIN, Origin, Overtaken

if TYPE_CHECKING:
    from san_target.scsi.identity import Identity
    from san_target.scsi.mode import ModeParameters
    from san_target.scsi.nexus import Nexus
    from san_target.scsi.services import Services
    from san_target.volume.device import BlockDevice, Done, Resume

# Initiator ports whose next session owes I_T NEXUS LOSS rather than POWER ON; the oldest is forgotten first.
KNOWN_PORTS_MAX: Final = 1024

# How long a command waits for a change of reservations that another member knows already, and how often it looks.
EPOCH_PATIENCE_S: Final = 5.0
EPOCH_POLL_S: Final = 0.005

_NACA: Final = 0x04
_SERVICE_ACTION: Final = 0x1F
_RESET_ASC: Final = 0x29
TEST_UNIT_READY: Final = 0x00


class SanitizeProgress(Protocol):
    """A SANITIZE that has not completed: how much is done (0.0 .. 1.0), or that it failed (SBC-4 4.11.3)."""

    @property
    def progress(self) -> float: ...

    @property
    def failed(self) -> bool: ...


class LogicalUnit:
    """device: the blocks. identity: the names. nexuses: the sessions attached now, in the order they came.

    parameters   the mode parameters in force (WCE, D_SENSE, SWP)
    limits       what one command may ask for (VPD page B0h)
    operations   the commands this unit supports
    preventing   nexuses that prevent medium removal
    sanitizing   a SANITIZE under way or failed, else None; whoever sets it calls `refresh_all`
    shared       the part of the state that all members have
    drop_sessions  ends all sessions of this member (set by `session`)
    abort_tasks  awaited with preempted nexuses: ends their commands here (set by `session`; None = there are none)
    """

    def __init__(
        self,
        device: "BlockDevice",
        identity: "Identity",
        *,
        services: "Services",
        read_only: bool = False,
        removable: bool = False,
        write_through: bool = False,
    ) -> None:
        self.device = device
        self.identity = identity
        self.services = services
        self.read_only = read_only
        self.removable = removable
        self.write_through = write_through
        self.block_size = device.block_size
        self.limits = Limits.of(device.block_size, device.atomic_blocks_max)
        self.operations: Operations = operations_for(self.limits.atomic_blocks)
        self._with_service_action = frozenset(key[0] for key in self.operations if key[1] is not None)
        self.parameters: ModeParameters = mode.defaults(write_through)
        self.nexuses: dict[Nexus, None] = {}
        self.preventing: set[Nexus] = set()
        self.stopped = False
        self.ejected = False
        self.sanitizing: SanitizeProgress | None = None
        self.abort_tasks: Callable[[list[Nexus]], Awaitable[None]] | None = None
        self.drop_sessions: Callable[[], None] | None = None
        self._own_drop = 0
        self._known_ports: OrderedDict[tuple[str, str], None] = OrderedDict()
        self.reservations = Reservations(self)
        self.shared = SharedState(self)
        self.copies = CopyManager()

    # --- sessions -----------------------------------------------------------------------------------------------------

    def attach(self, nexus: "Nexus", moved: bool = False) -> None:
        """A session began. It owes a unit attention, unless it only moved here from another member (SAM-5 5.14.6)."""
        self.nexuses[nexus] = None
        port = (nexus.initiator_port, nexus.target_port)
        seen_before = port in self._known_ports
        self._known_ports[port] = None
        self._known_ports.move_to_end(port)
        if len(self._known_ports) > KNOWN_PORTS_MAX:
            self._known_ports.popitem(last=False)
        if not moved:
            self.attention(nexus, sense.I_T_NEXUS_LOSS if seen_before else sense.POWER_ON_RESET)
        self.refresh(nexus)

    def detach(self, nexus: "Nexus") -> None:
        """A session ended: from now on nothing of its nexus is executed."""
        nexus.fenced = True
        self._forget(nexus)
        self.nexuses.pop(nexus, None)
        self.refresh(nexus)

    def nexus_lost(self, nexus: "Nexus") -> None:
        """I_T NEXUS RESET: the session goes on as if it were new (SAM-5 6.3.4)."""
        self._forget(nexus)
        self.attention(nexus, sense.I_T_NEXUS_LOSS)

    def _forget(self, nexus: "Nexus") -> None:
        self.preventing.discard(nexus)
        self.copies.forget(nexus)
        self.reservations.forget(nexus)

    # --- unit attentions ----------------------------------------------------------------------------------------------

    def attention(self, nexus: "Nexus", condition: Condition) -> None:
        """Owe this nexus a unit attention. One of a kind is enough; a reset makes all older ones pointless."""
        entry = (condition.asc, condition.ascq)
        if condition.asc == _RESET_ASC:
            nexus.attentions.clear()
        if entry not in nexus.attentions:
            nexus.attentions.append(entry)
        self.refresh(nexus)

    def establish(self, condition: Condition, other_than: "Nexus | None" = None) -> None:
        """Owe every nexus but one a unit attention."""
        for nexus in self.nexuses:
            if nexus is not other_than:
                self.attention(nexus, condition)

    def commands_cleared(self, nexuses: "Iterable[Nexus]") -> None:
        for nexus in nexuses:
            self.attention(nexus, sense.COMMANDS_CLEARED)

    def capacity_changed(self) -> None:
        self.establish(sense.CAPACITY_CHANGED)

    def _take_attention(self, nexus: "Nexus") -> CheckCondition:
        asc, ascq = nexus.attentions.popleft()
        self.refresh(nexus)
        return CheckCondition(Condition(sense.UNIT_ATTENTION, asc, ascq))

    def take_sense(self, nexus: "Nexus") -> CheckCondition:
        """What REQUEST SENSE reports; a unit attention is cleared by it (SPC-4 6.39)."""
        if nexus.attentions:
            return self._take_attention(nexus)
        return self._sanitize_condition() or self._not_ready() or CheckCondition(sense.NO_SENSE)

    # --- state --------------------------------------------------------------------------------------------------------

    def refresh(self, nexus: "Nexus") -> None:
        """Recompute what the hot path asks of this nexus."""
        parameters = self.parameters
        ready = not (
            (self.reservations.bind_to_lease and not self.services.may_serve())
            or nexus.fenced
            or nexus.attentions
            or self.stopped
            or self.ejected
            or self.sanitizing is not None
        ) and (nexus in self.nexuses)
        nexus.d_sense = parameters.descriptor_sense
        nexus.may_read = ready and self.reservations.may_read(nexus)
        nexus.may_write = (
            ready
            and parameters.write_cache_enabled  # else every write must be durable, which takes time
            and self.write_protection() is None
            and self.reservations.may_write(nexus)
        )

    def refresh_all(self) -> None:
        for nexus in self.nexuses:
            self.refresh(nexus)

    async def reset_everywhere(self, asc_ascq: tuple[int, int] = (0x29, 0x03), drop: bool = False) -> bool:
        """Logical unit reset, at all members; drop: all sessions at others end too, the caller ends those here, once
        it has answered. False: it may not have reached all."""

        def reset(record: ReservationsRecord) -> ReservationsRecord:
            event = event_of(record, UnitEventRecord(everyone=asc_ascq, reset=True, clear=True, drop=drop))
            self._own_drop = event.number if drop else self._own_drop
            # RESERVE(6) ends; persistent reservations do not (SPC-4 5.13.1).
            return msgspec.structs.replace(record, reserved_by=None, reserved_at="", mode=None, last=event)

        if (await self.shared.change(reset)).status == GOOD:
            return True
        # The store is away. A host that resets is in trouble already, so it is not made to wait for that; where there
        # are other members that may not have heard of it, it is told that the function failed.
        self.reset(asc_ascq)
        return self.services.is_alone()

    async def clear_everywhere(self, by: "Nexus") -> bool:
        """CLEAR TASK SET at all other members; False: it may not have reached all."""

        def cleared(record: ReservationsRecord) -> ReservationsRecord:
            event = UnitEventRecord(
                everyone=(sense.COMMANDS_CLEARED.asc, sense.COMMANDS_CLEARED.ascq),
                except_port=names_of(port_of(by)),
                clear=True,
            )
            return msgspec.structs.replace(record, last=event_of(record, event))

        return self.services.is_alone() or (await self.shared.change(cleared)).status == GOOD

    def adopt(self, record: ReservationsRecord) -> None:
        """A state of the volume is in force from now on. ValueError: it makes no sense."""
        self.reservations.adopt(record)
        if record.mode != self.shared.record.mode:
            self.parameters = (
                mode.defaults(self.write_through) if record.mode is None else mode.ModeParameters(*record.mode)
            )

    async def end_commands(self, event: UnitEventRecord) -> None:
        """What has to end here because of an event has ended."""
        if event.clear and self.abort_tasks is not None:
            await self.abort_tasks(list(self.nexuses))
        elif event.preempted:
            await self.reservations.end_commands((Port(*port) for port in event.preempted), event.abort)
        if event.drop and event.number != self._own_drop and self.drop_sessions is not None:
            self.drop_sessions()

    def reset(self, asc_ascq: tuple[int, int] = (0x29, 0x03)) -> None:
        """What a logical unit reset does here: every nexus owes a unit attention, also the one that asked for it (SAM-5
        6.3.3)."""
        self.copies.reset()
        self.preventing.clear()
        self.parameters = mode.defaults(self.write_through)
        self.stopped = False
        self.establish(Condition(sense.UNIT_ATTENTION, *asc_ascq))
        self.refresh_all()

    def change_parameters(self, parameters: "ModeParameters") -> None:
        self.parameters = parameters
        self.refresh_all()

    def set_medium(self, stopped: bool, ejected: bool) -> None:
        self.stopped, self.ejected = stopped, ejected
        self.refresh_all()

    def write_protection(self) -> Condition | None:
        """Why nothing may be written, or None."""
        if self.read_only:
            return sense.WRITE_PROTECTED
        return sense.SOFTWARE_WRITE_PROTECTED if self.parameters.write_protected else None

    def require_writable(self) -> None:
        """For handlers of commands that change the medium: after their field checks, before the range."""
        condition = self.write_protection()
        if condition is not None:
            raise CheckCondition(condition)

    def durable(self, force_unit_access: bool) -> bool:
        """Whether a write must be on stable storage before it is answered."""
        return force_unit_access or not self.parameters.write_cache_enabled

    # --- commands -----------------------------------------------------------------------------------------------------

    def data_out_length(self, cdb: bytes) -> int:
        """Data-Out bytes that the CDB calls for; 0 also for one that no limit allows, which fails without data."""
        operation = self._find(cdb)
        if operation is None or operation.data_out is None:
            return 0
        length = operation.data_out(cdb, self.block_size)
        return length if length <= self.limits.transfer * self.block_size else 0

    def execute_now(self, command: Command) -> Outcome | None:
        """The outcome of whatever needs no waiting; None: the caller awaits `execute(command)`."""
        try:
            operation = self._judge(command)
            if isinstance(operation, Outcome):
                return operation
            return operation.now(self, command) if operation.now is not None else None
        except (CheckCondition, VolumeError) as error:
            return self._failure(error, command.nexus)

    def start(self, command: Command, done: "Done") -> bool:
        """Begin a plain READ or WRITE of blocks that another member owns, without a task. False: nothing was begun.

        The command has been judged, and nothing stands between its nexus and the medium. `done`: see `volume.device`.
        """
        decoded = decode_read_write(command.cdb)
        if decoded is None:
            return False
        lba, blocks, writes, force_unit_access = decoded
        if force_unit_access or not blocks or lba + blocks > self.device.blocks:
            return False
        epoch = self.shared.epoch
        if not writes:
            return command.nexus.may_read and self.device.start_read(lba, blocks, command.heard_s, epoch, done)
        data = memoryview(command.data_out)
        if not command.nexus.may_write or data.nbytes != blocks * self.block_size:
            return False
        return self.device.start_write(lba, data, command.heard_s, epoch, done)

    async def resume(self, command: Command, resume: "Resume") -> Outcome:
        """What becomes of a command that was begun with `start` and is to be gone on with."""
        begun = ORIGIN.set(self._origin(command))
        try:
            data = await resume()
        except (CheckCondition, VolumeError) as error:
            return self._failure(error, command.nexus)
        finally:
            ORIGIN.reset(begun)
        return Outcome(data_in=data) if data else OUTCOME_GOOD

    async def execute(self, command: Command) -> Outcome:
        """The outcome, however long it takes. Judged anew, since the state may have changed since `execute_now`."""
        try:
            operation = self._judge(command)
            if isinstance(operation, Outcome):
                return operation
            if operation.later is not None:
                begun = ORIGIN.set(self._origin(command))
                try:
                    return await operation.later(self, command)
                finally:
                    ORIGIN.reset(begun)
            assert operation.now is not None, operation.name
            outcome = operation.now(self, command)
            assert outcome is not None, operation.name
            return outcome
        except (CheckCondition, VolumeError) as error:
            return self._failure(error, command.nexus)

    def _origin(self, command: Command) -> Origin:
        """What the command was judged by, for whoever carries a part of it out somewhere else."""

        async def judge_again(epoch: int) -> int:
            deadline_s = self.services.now() + EPOCH_PATIENCE_S
            while self.shared.epoch < epoch:
                if self.services.now() > deadline_s:
                    raise Overtaken(f"the state of epoch {epoch} has not arrived here")
                await self.services.sleep(EPOCH_POLL_S)
            try:
                refused = self._judge(command)
            except CheckCondition as error:
                raise Overtaken("", error.outcome(command.nexus.d_sense)) from error
            if isinstance(refused, Outcome):
                raise Overtaken("", refused)
            return self.shared.epoch

        async def hear_again() -> float:
            if command.hear_again is None:
                raise Overtaken("its initiator cannot be asked")
            heard_s = await command.hear_again()
            if command.nexus.fenced:
                raise Overtaken("its session has ended", Outcome(TASK_ABORTED))
            return heard_s

        return Origin(
            self.identity.volume_id,
            self.shared.epoch,
            command.heard_s,
            judge_again,
            hear_again,
            lambda: not (command.aborted or command.nexus.fenced),
        )

    def _judge(self, command: Command) -> Operation | Outcome:
        """The operation to run, or the status that refuses it. Raises CheckCondition."""
        nexus, cdb = command.nexus, command.cdb
        if nexus.fenced:
            return Outcome(TASK_ABORTED)
        operation = self._find(cdb)
        if operation is None:
            if cdb[0] in self._with_service_action:
                raise invalid_field_in_cdb(1, 4)
            raise CheckCondition(sense.INVALID_OPERATION_CODE)
        if nexus.attentions and not operation.with_attention:
            raise self._take_attention(nexus)
        needs_lease = operation.access is not Access.ALWAYS and cdb[0] != TEST_UNIT_READY
        if needs_lease and self.reservations.bind_to_lease and not self.services.may_serve():
            # Others may have let somebody else in meanwhile: this member does not know any more who may do what [17].
            return Outcome(BUSY)
        access = operation.access if operation.access_of is None else operation.access_of(cdb)
        if self.reservations.conflict(nexus, access):
            return Outcome(RESERVATION_CONFLICT)
        self._require_ready(operation)
        control = len(operation.usage) - 1
        if cdb[control] & _NACA:  # NORMACA = 0 (SAM-5 5.2)
            raise invalid_field_in_cdb(control, 2)
        return operation

    def _find(self, cdb: bytes) -> Operation | None:
        return self.operations.get((cdb[0], None)) or self.operations.get((cdb[0], cdb[1] & _SERVICE_ACTION))

    def _require_ready(self, operation: Operation) -> None:
        if self.sanitizing is not None and not operation.during_sanitize:
            condition = self._sanitize_condition()
            if condition is not None:
                raise condition
        if (self.stopped or self.ejected) and not operation.while_stopped:
            condition = self._not_ready()
            if condition is not None:
                raise condition

    def _sanitize_condition(self) -> CheckCondition | None:
        sanitizing = self.sanitizing
        if sanitizing is None:
            return None
        if sanitizing.failed:
            return CheckCondition(sense.SANITIZE_COMMAND_FAILED)
        return CheckCondition(sense.NOT_READY_SANITIZE_IN_PROGRESS, progress=sanitizing.progress)

    def _not_ready(self) -> CheckCondition | None:
        if self.ejected:
            return CheckCondition(sense.MEDIUM_NOT_PRESENT_TRAY_OPEN)
        if self.stopped:
            return CheckCondition(sense.NOT_READY_INITIALIZING_COMMAND_REQUIRED)
        return None

    def _failure(self, error: CheckCondition | VolumeError, nexus: "Nexus") -> Outcome:
        """What the environment or the initiator did, as SAM and SBC say it."""
        match error:
            case CheckCondition():
                checked = error
            case OutOfSpace():
                checked = CheckCondition(sense.SPACE_ALLOCATION_FAILED)
            case MediumError():
                condition = sense.WRITE_ERROR if error.writing else sense.UNRECOVERED_READ_ERROR
                checked = CheckCondition(condition, information=error.lba)
            case NotAtomic():
                # The range reaches over the end of one owner's blocks. An error that hosts do not repeat for ever.
                checked = invalid_field_in_cdb(2)
            case WriteProtected():
                checked = CheckCondition(sense.WRITE_PROTECTED)
            case Overtaken(outcome=Outcome() as outcome):
                return outcome
            case Unavailable():
                return Outcome(BUSY)
            case _:
                raise error
        return checked.outcome(nexus.d_sense)
