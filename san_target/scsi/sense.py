"""Sense data: named conditions, and their fixed and descriptor formats (SPC-4 4.5).

A handler raises `CheckCondition` for whatever is wrong with a command; the logical unit turns it into an Outcome in the
format that its control mode page asks for (D_SENSE).
"""

import struct
from typing import NamedTuple

from san_target.scsi.command import CHECK_CONDITION, Outcome


class Condition(NamedTuple):
    """Sense key, additional sense code and qualifier (SPC-4 tables 48 and F.2)."""

    key: int
    asc: int
    ascq: int


UNIT_ATTENTION = 0x6

NO_SENSE = Condition(0x0, 0x00, 0x00)

NOT_READY_BECOMING_READY = Condition(0x2, 0x04, 0x01)
NOT_READY_INITIALIZING_COMMAND_REQUIRED = Condition(0x2, 0x04, 0x02)
NOT_READY_SANITIZE_IN_PROGRESS = Condition(0x2, 0x04, 0x1B)
MEDIUM_NOT_PRESENT_TRAY_OPEN = Condition(0x2, 0x3A, 0x02)

WRITE_ERROR = Condition(0x3, 0x0C, 0x00)
UNRECOVERED_READ_ERROR = Condition(0x3, 0x11, 0x00)
SANITIZE_COMMAND_FAILED = Condition(0x3, 0x31, 0x03)

INVALID_OPERATION_CODE = Condition(0x5, 0x20, 0x00)
PARAMETER_LIST_LENGTH_ERROR = Condition(0x5, 0x1A, 0x00)
LBA_OUT_OF_RANGE = Condition(0x5, 0x21, 0x00)
INVALID_FIELD_IN_CDB = Condition(0x5, 0x24, 0x00)
INVALID_FIELD_IN_COMMAND_INFORMATION_UNIT = Condition(0x5, 0x0E, 0x03)
LOGICAL_UNIT_NOT_SUPPORTED = Condition(0x5, 0x25, 0x00)
INVALID_FIELD_IN_PARAMETER_LIST = Condition(0x5, 0x26, 0x00)
INVALID_RELEASE_OF_PERSISTENT_RESERVATION = Condition(0x5, 0x26, 0x04)
TOO_MANY_TARGET_DESCRIPTORS = Condition(0x5, 0x26, 0x06)
UNSUPPORTED_TARGET_DESCRIPTOR_TYPE = Condition(0x5, 0x26, 0x07)
TOO_MANY_SEGMENT_DESCRIPTORS = Condition(0x5, 0x26, 0x08)
UNSUPPORTED_SEGMENT_DESCRIPTOR_TYPE = Condition(0x5, 0x26, 0x09)
SAVING_PARAMETERS_NOT_SUPPORTED = Condition(0x5, 0x39, 0x00)
MEDIUM_REMOVAL_PREVENTED = Condition(0x5, 0x53, 0x02)
INSUFFICIENT_REGISTRATION_RESOURCES = Condition(0x5, 0x55, 0x04)

NOT_READY_TO_READY_CHANGE = Condition(0x6, 0x28, 0x00)
POWER_ON_RESET = Condition(0x6, 0x29, 0x00)
BUS_DEVICE_RESET = Condition(0x6, 0x29, 0x03)
I_T_NEXUS_LOSS = Condition(0x6, 0x29, 0x07)
MODE_PARAMETERS_CHANGED = Condition(0x6, 0x2A, 0x01)
RESERVATIONS_PREEMPTED = Condition(0x6, 0x2A, 0x03)
RESERVATIONS_RELEASED = Condition(0x6, 0x2A, 0x04)
REGISTRATIONS_PREEMPTED = Condition(0x6, 0x2A, 0x05)
CAPACITY_CHANGED = Condition(0x6, 0x2A, 0x09)
COMMANDS_CLEARED = Condition(0x6, 0x2F, 0x00)

WRITE_PROTECTED = Condition(0x7, 0x27, 0x00)
SOFTWARE_WRITE_PROTECTED = Condition(0x7, 0x27, 0x02)
SPACE_ALLOCATION_FAILED = Condition(0x7, 0x27, 0x07)

COPY_ABORTED = Condition(0xA, 0x00, 0x00)
COPY_TARGET_DEVICE_NOT_REACHABLE = Condition(0xA, 0x0D, 0x02)

ABORTED_COMMAND = Condition(0xB, 0x00, 0x00)
TOO_LITTLE_WRITE_DATA = Condition(0xB, 0x0C, 0x0D)

MISCOMPARE_DURING_VERIFY = Condition(0xE, 0x1D, 0x00)


class FieldPointer(NamedTuple):
    """Where the wrong field starts: its first byte, its most significant bit (None = the whole byte)."""

    byte: int
    bit: int | None = None


class CheckCondition(Exception):
    """The command ends with CHECK CONDITION.

    field        for INVALID FIELD IN CDB / IN PARAMETER LIST: where; in_cdb tells which of the two it points into
    information  the INFORMATION field: an LBA for medium errors, a byte offset for MISCOMPARE (SPC-4 4.5.2.2)
    progress     0.0 .. 1.0, for NOT READY conditions that know it (SPC-4 4.5.2.4.4)
    """

    def __init__(
        self,
        condition: Condition,
        *,
        field: FieldPointer | None = None,
        in_cdb: bool = True,
        information: int | None = None,
        progress: float | None = None,
    ) -> None:
        super().__init__(f"{condition.key:x}/{condition.asc:02x}/{condition.ascq:02x}")
        self.condition = condition
        self.field = field
        self.in_cdb = in_cdb
        self.information = information
        self.progress = progress

    def outcome(self, descriptor_format: bool) -> Outcome:
        return Outcome(CHECK_CONDITION, b"", self.sense(descriptor_format))

    def sense(self, descriptor_format: bool) -> bytes:
        specific = _sense_key_specific(self.field, self.in_cdb, self.progress)
        return build(self.condition, descriptor_format, self.information, specific)


def invalid_field_in_cdb(byte: int, bit: int | None = None) -> CheckCondition:
    """To be raised: the field that starts at this CDB byte (and bit) has a value we do not take."""
    return CheckCondition(INVALID_FIELD_IN_CDB, field=FieldPointer(byte, bit))


def invalid_field_in_parameter_list(byte: int, bit: int | None = None) -> CheckCondition:
    """To be raised: as `invalid_field_in_cdb`, for a byte of the Data-Out parameter list."""
    return CheckCondition(INVALID_FIELD_IN_PARAMETER_LIST, field=FieldPointer(byte, bit), in_cdb=False)


def build(
    condition: Condition,
    descriptor_format: bool = False,
    information: int | None = None,
    specific: bytes = b"",
) -> bytes:
    """Sense data of one condition. specific: 3 bytes of sense-key-specific data with SKSV set, or b""."""
    if descriptor_format:
        return _descriptor_sense(condition, information, specific)
    return _fixed_sense(condition, information, specific)


def _fixed_sense(condition: Condition, information: int | None, specific: bytes) -> bytes:
    # SPC-4 4.5.3: 18 bytes. An INFORMATION of more than 32 bits cannot be told here: VALID stays 0.
    fits = information is not None and information <= 0xFFFFFFFF
    return struct.pack(
        ">BxBIB4xBBx3s",
        0x70 | (0x80 if fits else 0),
        condition.key,
        information if fits and information is not None else 0,
        10,
        condition.asc,
        condition.ascq,
        specific.ljust(3, b"\0"),
    )


def _descriptor_sense(condition: Condition, information: int | None, specific: bytes) -> bytes:
    # SPC-4 4.5.2: header of 8 bytes, then descriptors 00h (information) and 02h (sense key specific).
    descriptors = b""
    if information is not None:
        descriptors += struct.pack(">BBBxQ", 0x00, 0x0A, 0x80, information)
    if specific:
        descriptors += struct.pack(">BBxx3sx", 0x02, 0x06, specific)
    return bytes([0x72, condition.key, condition.asc, condition.ascq, 0, 0, 0, len(descriptors)]) + descriptors


def _sense_key_specific(field: FieldPointer | None, in_cdb: bool, progress: float | None) -> bytes:
    if field is not None:
        # SPC-4 table 41: SKSV, C/D, BPV, bit pointer; field pointer.
        bits = 0x80 | (0x40 if in_cdb else 0)
        if field.bit is not None:
            bits |= 0x08 | field.bit
        return struct.pack(">BH", bits, field.byte)
    if progress is not None:
        return struct.pack(">BH", 0x80, min(65535, int(progress * 65536)))
    return b""
