"""How a copy that was begun ends with an error: COPY ABORTED, with the segment and the failed side (SPC-4 5.17.7)."""

import struct

from san_target.scsi.command import BUSY, CHECK_CONDITION, RESERVATION_CONFLICT, Outcome
from san_target.scsi.sense import (
    COPY_TARGET_DEVICE_NOT_REACHABLE,
    SPACE_ALLOCATION_FAILED,
    UNRECOVERED_READ_ERROR,
    WRITE_ERROR,
    WRITE_PROTECTED,
    CheckCondition,
    Condition,
)
from san_target.volume.device import MediumError, OutOfSpace, VolumeError, WriteProtected

UNREACHABLE_COPY_TARGET = Condition(0xA, 0x08, 0x04)
THIRD_PARTY_DEVICE_FAILURE = Condition(0xA, 0x0D, 0x01)
UNEXPECTED_INEXACT_SEGMENT = Condition(0xA, 0x26, 0x0A)

SOURCE, DESTINATION = 1, 2


class CopyAborted(Exception):
    """field_byte: what is wrong, as an offset into the segment descriptor. side, status, sense: the CSCD that failed
    (SOURCE or DESTINATION; 0 = neither) and how it answered."""

    def __init__(
        self,
        condition: Condition,
        *,
        field_byte: int | None = None,
        side: int = 0,
        status: int = 0,
        sense: bytes = b"",
    ) -> None:
        super().__init__(f"{condition.key:x}/{condition.asc:02x}/{condition.ascq:02x}")
        self.condition = condition
        self.field_byte = field_byte
        self.side = side
        self.status = status
        self.sense = sense

    def outcome(self, segment: int, descriptor_format: bool) -> Outcome:
        """segment: number of the segment descriptor that was being processed."""
        build = _descriptor_sense if descriptor_format else _fixed_sense
        return Outcome(CHECK_CONDITION, sense=build(self, segment))


def refused(side: int, error: CheckCondition, condition: Condition = THIRD_PARTY_DEVICE_FAILURE) -> CopyAborted:
    """A CSCD ended its part with CHECK CONDITION."""
    return CopyAborted(condition, side=side, status=CHECK_CONDITION, sense=error.sense(False))


def conflicted(side: int) -> CopyAborted:
    return CopyAborted(THIRD_PARTY_DEVICE_FAILURE, side=side, status=RESERVATION_CONFLICT)


def unreachable(field_byte: int) -> CopyAborted:
    return CopyAborted(COPY_TARGET_DEVICE_NOT_REACHABLE, field_byte=field_byte)


def failed(side: int, error: VolumeError) -> CopyAborted:
    """What the environment did to one side, as that side would have answered a READ or WRITE."""
    if isinstance(error, OutOfSpace):
        return refused(side, CheckCondition(SPACE_ALLOCATION_FAILED))
    if isinstance(error, WriteProtected):
        return refused(side, CheckCondition(WRITE_PROTECTED))
    if isinstance(error, MediumError):
        condition = WRITE_ERROR if error.writing else UNRECOVERED_READ_ERROR
        return refused(side, CheckCondition(condition, information=error.lba))
    return CopyAborted(THIRD_PARTY_DEVICE_FAILURE, side=side, status=BUSY)


def _segment_pointer(error: CopyAborted) -> bytes:
    # SPC-4 4.5.2.4 (segment pointer): SKSV and SD; the pointer counts from the start of the segment descriptor.
    return b"" if error.field_byte is None else struct.pack(">BH", 0x80 | 0x20, error.field_byte)


def _fixed_sense(error: CopyAborted, segment: int) -> bytes:
    # SPC-4 5.17.7: COMMAND-SPECIFIC INFORMATION holds where the source's and the destination's status byte and sense
    # data begin in this sense data (0 = none), and the segment number.
    area = bytes([error.status]) + error.sense if error.side else b""
    at_source, at_destination = (18 if error.side == side else 0 for side in (SOURCE, DESTINATION))
    head = struct.pack(
        ">BxB4xBBBHBBx3s",
        0x70,
        error.condition.key,
        10 + len(area),
        at_source,
        at_destination,
        segment,
        error.condition.asc,
        error.condition.ascq,
        _segment_pointer(error).ljust(3, b"\0"),
    )
    return head + area


def _descriptor_sense(error: CopyAborted, segment: int) -> bytes:
    # SPC-4 4.5.2: descriptors 01h (command specific: the segment), 02h (sense key specific), 0Ch (forwarded sense).
    descriptors = struct.pack(">BBxx6xH", 0x01, 0x0A, segment)
    pointer = _segment_pointer(error)
    if pointer:
        descriptors += struct.pack(">BBxx3sx", 0x02, 0x06, pointer)
    if error.side:
        descriptors += struct.pack(">BBBB", 0x0C, 2 + len(error.sense), error.side, error.status) + error.sense
    condition = error.condition
    return bytes([0x72, condition.key, condition.asc, condition.ascq, 0, 0, 0, len(descriptors)]) + descriptors
