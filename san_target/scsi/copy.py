"""EXTENDED COPY (LID1): blocks copied inside a volume and between volumes, without the host (SPC-4 5.17, 6.4).

The copy manager acts for the nexus that sent the command, and for nobody else:

- it reaches another volume only where the same initiator is logged in there as well, authenticated the same way, so
  that a copy can never read or write what the initiator could not;
- reservations of both volumes are judged as if that nexus read and wrote, before each slice; a write under way is known
  to the destination's reservations, so that a PREEMPT there is answered only after it ended.

A copy goes on in slices and stops at the next one when its command is aborted or a nexus is fenced.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from san_target.scsi import copy_sense
from san_target.scsi.command import BUSY, CHECK_CONDITION, GOOD, OUTCOME_GOOD, TASK_ABORTED, Outcome
from san_target.scsi.copy_descriptors import SEGMENT_BYTES_MAX, CopyRequest, Cscd, Segment, parse
from san_target.scsi.copy_sense import DESTINATION, SOURCE, CopyAborted
from san_target.scsi.operation import Access, Operation, Operations
from san_target.scsi.sense import (
    COPY_ABORTED,
    LBA_OUT_OF_RANGE,
    NOT_READY_SANITIZE_IN_PROGRESS,
    PARAMETER_LIST_LENGTH_ERROR,
    CheckCondition,
    Condition,
    invalid_field_in_parameter_list,
)
from san_target.scsi.shared_state import port_of
from san_target.volume.device import VolumeError

if TYPE_CHECKING:
    from san_target.scsi.command import Command
    from san_target.scsi.logical_unit import LogicalUnit
    from san_target.scsi.nexus import Nexus

EXTENDED_COPY = 0x83
# SPC-4 6.4.5: the CSCD descriptor ID that means the unit which processes the command.
THIS_UNIT = 0xFFFF
CONCURRENT_COPIES_MAX = 16
SLICE_BYTES = 1 << 20

OPERATION_IN_PROGRESS = Condition(0x5, 0x00, 0x16)


class Status(IntEnum):
    """COPY MANAGER STATUS of RECEIVE COPY STATUS (LID1)."""

    IN_PROGRESS = 0
    COMPLETED = 1
    COMPLETED_WITH_ERRORS = 2


@dataclass(slots=True)
class CopyOperation:
    """What RECEIVE COPY RESULTS tells of a copy. command_status, sense: how the EXTENDED COPY ended, if it failed."""

    hold: bool
    status: Status = Status.IN_PROGRESS
    segments_processed: int = 0
    bytes_written: int = 0
    command_status: int = GOOD
    sense: bytes = b""


class CopyManager:
    """The copies of one logical unit, by nexus and list identifier (SPC-4 5.17.4.2).

    The result of a copy is kept until its list identifier is used again, the nexus ends or the unit is reset; at most
    256 per nexus, since a list identifier is a byte.
    """

    __slots__ = ("_operations", "_running")

    def __init__(self) -> None:
        self._operations: dict[Nexus, dict[int, CopyOperation]] = {}
        self._running = 0

    def begin(self, nexus: "Nexus", list_id: int | None, hold: bool) -> CopyOperation | None:
        """None when as many copies run as this unit takes. Raises CheckCondition for a list identifier in use."""
        of_nexus = self._operations.setdefault(nexus, {})
        if list_id is not None and list_id in of_nexus and of_nexus[list_id].status is Status.IN_PROGRESS:
            raise CheckCondition(OPERATION_IN_PROGRESS)
        if self._running >= CONCURRENT_COPIES_MAX:
            return None
        self._running += 1
        operation = CopyOperation(hold)
        if list_id is not None:
            of_nexus[list_id] = operation
        return operation

    def end(self, nexus: "Nexus", list_id: int | None, operation: CopyOperation, outcome: Outcome | None) -> None:
        """outcome None: the command did not come to an answer."""
        self._running -= 1
        good = outcome is not None and outcome.status == GOOD
        operation.status = Status.COMPLETED if good else Status.COMPLETED_WITH_ERRORS
        operation.command_status = TASK_ABORTED if outcome is None else outcome.status
        operation.sense = b"" if outcome is None else outcome.sense
        of_nexus = self._operations.get(nexus, {})
        if list_id is not None and not operation.hold and of_nexus.get(list_id) is operation:
            del of_nexus[list_id]

    def find(self, nexus: "Nexus", list_id: int) -> CopyOperation | None:
        return self._operations.get(nexus, {}).get(list_id)

    def forget(self, nexus: "Nexus") -> None:
        self._operations.pop(nexus, None)

    def reset(self) -> None:
        self._operations.clear()


class Side(NamedTuple):
    """One end of a segment: a unit, and the nexus there in whose name it is used."""

    unit: "LogicalUnit"
    nexus: "Nexus"


class Plan(NamedTuple):
    """A segment that was found possible: `length` bytes from source_lba of one unit to destination_lba of the other."""

    source: Side
    destination: Side
    source_lba: int
    destination_lba: int
    length: int


class _Stopped(Exception):
    """The command was aborted or its nexus fenced: its outcome is dropped."""


def parameter_list_length(cdb: bytes, _block_size: int = 0) -> int:
    return int.from_bytes(cdb[10:14], "big")


async def _extended_copy(unit: "LogicalUnit", command: "Command") -> Outcome:
    length = parameter_list_length(command.cdb)
    if length == 0:
        return OUTCOME_GOOD
    data = bytes(memoryview(command.data_out)[:length])
    if len(data) < length:
        raise CheckCondition(PARAMETER_LIST_LENGTH_ERROR)
    request = parse(data)
    operation = unit.copies.begin(command.nexus, request.list_id, request.hold)
    if operation is None:
        return Outcome(BUSY)
    outcome: Outcome | None = None
    try:
        outcome = await _copy_segments(unit, command, request, operation)
    except _Stopped:
        return Outcome(TASK_ABORTED)
    except CheckCondition as error:
        outcome = error.outcome(command.nexus.d_sense)
        raise
    finally:
        unit.copies.end(command.nexus, request.list_id, operation, outcome)
    return outcome


async def _copy_segments(
    unit: "LogicalUnit", command: "Command", request: CopyRequest, operation: CopyOperation
) -> Outcome:
    for number, segment in enumerate(request.segments):
        try:
            await _copy(command, _plan(unit, command, request.cscds, segment), operation)
        except CopyAborted as aborted:
            return aborted.outcome(number, command.nexus.d_sense)
        operation.segments_processed = number + 1
    return OUTCOME_GOOD


def _plan(unit: "LogicalUnit", command: "Command", cscds: tuple[Cscd, ...], segment: Segment) -> Plan:
    """Everything that can be checked of a segment before its first block moves. Raises CopyAborted, CheckCondition."""
    source = _side(unit, command, cscds, segment.source, 4)
    destination = _side(unit, command, cscds, segment.destination, 6)
    counted = destination if segment.count_is_of_destination else source
    length = segment.blocks * counted.unit.block_size
    if length > SEGMENT_BYTES_MAX:
        raise invalid_field_in_parameter_list(segment.offset + 10)
    _require_exact(cscds, segment, length, source, destination)
    _require_range(source, SOURCE, segment.source_lba, length, 12)
    _require_range(destination, DESTINATION, segment.destination_lba, length, 20)
    return Plan(source, destination, segment.source_lba, segment.destination_lba, length)


def _side(unit: "LogicalUnit", command: "Command", cscds: tuple[Cscd, ...], index: int, field_byte: int) -> Side:
    if index == THIS_UNIT:
        return Side(unit, command.nexus)
    if index >= len(cscds):
        raise CopyAborted(copy_sense.UNREACHABLE_COPY_TARGET, field_byte=field_byte)
    cscd = cscds[index]
    found = unit.services.unit_of(cscd.designator)
    nexus = None if found is None else _nexus_at(found, unit, command.nexus)
    if found is None or nexus is None:
        raise copy_sense.unreachable(field_byte)
    if cscd.block_size not in (0, found.block_size):
        raise invalid_field_in_parameter_list(cscd.offset + 29)
    return Side(found, nexus)


def _nexus_at(found: "LogicalUnit", unit: "LogicalUnit", nexus: "Nexus") -> "Nexus | None":
    """The nexus that the sender has with the unit found: its own there, best the one with the same ISID."""
    if found is unit:
        return nexus
    candidates = [
        other
        for other in found.nexuses
        if other.initiator_name == nexus.initiator_name and other.user == nexus.user and not other.fenced
    ]
    return min(candidates, key=lambda other: other.isid != nexus.isid, default=None)


def _require_exact(cscds: tuple[Cscd, ...], segment: Segment, length: int, source: Side, destination: Side) -> None:
    # SPC-4 6.4 (PAD and CAT): what does not end with a block is stripped or padded if PAD says so. Keeping the rest for
    # the next segment (CAT) is not offered.
    inexact = [
        (side, index)
        for side, index in ((source, segment.source), (destination, segment.destination))
        if length % side.unit.block_size
    ]
    for _, index in inexact:
        if segment.concatenate or index == THIS_UNIT or not cscds[index].pad:
            raise CopyAborted(copy_sense.UNEXPECTED_INEXACT_SEGMENT)


def _require_range(side: Side, which: int, lba: int, length: int, field_byte: int) -> None:
    blocks = -(-length // side.unit.block_size)
    capacity = side.unit.device.blocks
    if lba > capacity or blocks > capacity - lba:
        error = CheckCondition(LBA_OUT_OF_RANGE, information=max(lba, capacity))
        raise CopyAborted(
            COPY_ABORTED, field_byte=field_byte, side=which, status=CHECK_CONDITION, sense=error.sense(False)
        )


def _slices(plan: Plan) -> Iterator[tuple[int, int]]:
    """(byte offset, bytes) parts; from the end where the destination overlaps blocks still to be read."""
    starts = range(0, plan.length, SLICE_BYTES)
    gap = (plan.destination_lba - plan.source_lba) * plan.source.unit.block_size
    backwards = plan.source.unit is plan.destination.unit and 0 < gap < plan.length
    for start in reversed(starts) if backwards else starts:
        yield start, min(SLICE_BYTES, plan.length - start)


async def _copy(command: "Command", plan: Plan, operation: CopyOperation) -> None:
    for offset, length in _slices(plan):
        data = await _read(command, plan, offset, length)
        await _write(command, plan, offset, data)
        operation.bytes_written += length


async def _read(command: "Command", plan: Plan, offset: int, length: int) -> memoryview:
    unit = plan.source.unit
    _require_access(command, plan.source, SOURCE, Access.READ)
    try:
        data = await unit.device.read(plan.source_lba + offset // unit.block_size, -(-length // unit.block_size))
    except VolumeError as error:
        raise copy_sense.failed(SOURCE, error) from error
    return memoryview(data)[:length]


async def _write(command: "Command", plan: Plan, offset: int, data: memoryview) -> None:
    unit = plan.destination.unit
    _require_access(command, plan.destination, DESTINATION, Access.WRITE)
    try:
        unit.require_writable()
    except CheckCondition as error:
        raise copy_sense.refused(DESTINATION, error) from error
    missing = -len(data) % unit.block_size
    padded = bytes(data) + bytes(missing) if missing else data
    try:
        with unit.reservations.guest_write(port_of(plan.destination.nexus)):
            await unit.device.write(
                plan.destination_lba + offset // unit.block_size, padded, durable=unit.durable(False)
            )
    except VolumeError as error:
        raise copy_sense.failed(DESTINATION, error) from error


def _require_access(command: "Command", side: Side, which: int, access: Access) -> None:
    if command.aborted or command.nexus.fenced:
        raise _Stopped
    if side.nexus.fenced:
        raise copy_sense.unreachable(4 if which == SOURCE else 6)
    if side.unit.reservations.conflict(side.nexus, access):
        raise copy_sense.conflicted(which)
    if side.unit.sanitizing is not None:
        raise copy_sense.refused(which, CheckCondition(NOT_READY_SANITIZE_IN_PROGRESS))


EXTENDED_COPY_OPERATIONS: Operations = {
    (EXTENDED_COPY, 0x00): Operation(
        "EXTENDED COPY (LID1)",
        bytes([EXTENDED_COPY, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0]),
        later=_extended_copy,
        data_out=parameter_list_length,
        access=Access.WRITE,
        writes_medium=True,
    ),
}
