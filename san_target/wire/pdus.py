"""Every RFC 7143 PDU header, declared field by field: the readable specification of the wire.

Each declaration is a flat 48-byte Basic Header Segment (BHS), most significant bit first, in the order of the drawings
in RFC 7143 section 11. Field names are the RFC's, in snake_case; units are the RFC's too (lengths in bytes,
total_ahs_length in four-byte words, LUN and ISID raw). What the RFC marks reserved is padding: written as zero, and
ignored when read (RFC 7143 11.1), so reserved bits never make a PDU unreadable.

construct is not made for speed or for a flood of hostile input: the PDUs of the hot path have a second codec in
`hot.py`, and a property test holds both to the same bytes.
"""

from typing import Any, Final

from construct import (  # type: ignore[import-untyped]
    BitsInteger,
    BitStruct,
    Bytes,
    Bytewise,
    ConstructError,
    Container,
    Flag,
    Padding,
)

from san_target.wire import opcodes
from san_target.wire.ahs import ExpectedBidirectionalReadLength as ExpectedBidirectionalReadLength
from san_target.wire.ahs import ExtendedCdb as ExtendedCdb
from san_target.wire.ahs import build_ahs as build_ahs
from san_target.wire.ahs import parse_ahs as parse_ahs
from san_target.wire.errors import PduError as PduError
from san_target.wire.opcodes import BHS_BYTES, OPCODE_MASK, RESERVED_TAG

# --- Pieces that many headers share -----------------------------------------------------------------------------------


def _bits(name: str, width: int) -> Any:
    return name / BitsInteger(width)


def _bytes(name: str, length: int) -> Any:
    return name / Bytewise(Bytes(length))


def _word(name: str) -> Any:
    return _bits(name, 32)


def _reserved(length: int) -> Any:
    """`length` reserved bytes."""
    return Padding(8 * length)


# Byte 0 of what an initiator sends has the I bit (RFC 7143 11.2.1.1); in what a target sends the bit is reserved.
_FROM_INITIATOR: Final = (Padding(1), "immediate" / Flag, _bits("opcode", 6))
_FROM_TARGET: Final = (Padding(2), _bits("opcode", 6))
# Bytes 4-7 of every header (RFC 7143 11.2.1.5, 11.2.1.6).
_LENGTHS: Final = (_bits("total_ahs_length", 8), _bits("data_segment_length", 24))
# Bytes 24-31 of requests and 24-35 of responses.
_REQUEST_NUMBERS: Final = (_word("cmd_sn"), _word("exp_stat_sn"))
_RESPONSE_NUMBERS: Final = (_word("stat_sn"), _word("exp_cmd_sn"), _word("max_cmd_sn"))
# Byte 1 of a header whose F bit is always 1 and whose other bits are reserved.
_FINAL_ONLY: Final = ("final" / Flag, Padding(7))

# --- SCSI: commands, responses, data ----------------------------------------------------------------------------------

SCSI_COMMAND: Final = BitStruct(  # RFC 7143 11.3
    *_FROM_INITIATOR,
    "final" / Flag,
    "read" / Flag,
    "write" / Flag,
    Padding(2),
    _bits("attribute", 3),
    _reserved(2),
    *_LENGTHS,
    _bytes("lun", 8),
    _word("initiator_task_tag"),
    _word("expected_data_transfer_length"),
    *_REQUEST_NUMBERS,
    _bytes("cdb", 16),
)

SCSI_RESPONSE: Final = BitStruct(  # RFC 7143 11.4
    *_FROM_TARGET,
    "final" / Flag,
    Padding(2),
    "bidirectional_residual_overflow" / Flag,
    "bidirectional_residual_underflow" / Flag,
    "residual_overflow" / Flag,
    "residual_underflow" / Flag,
    Padding(1),
    _bits("response", 8),
    _bits("status", 8),
    *_LENGTHS,
    _reserved(8),
    _word("initiator_task_tag"),
    _word("snack_tag"),
    *_RESPONSE_NUMBERS,
    _word("exp_data_sn"),
    _word("bidirectional_read_residual_count"),
    _word("residual_count"),
)

DATA_OUT: Final = BitStruct(  # RFC 7143 11.7
    *_FROM_INITIATOR,
    *_FINAL_ONLY,
    _reserved(2),
    *_LENGTHS,
    _bytes("lun", 8),
    _word("initiator_task_tag"),
    _word("target_transfer_tag"),
    _reserved(4),
    _word("exp_stat_sn"),
    _reserved(4),
    _word("data_sn"),
    _word("buffer_offset"),
    _reserved(4),
)

DATA_IN: Final = BitStruct(  # RFC 7143 11.7
    *_FROM_TARGET,
    "final" / Flag,
    "acknowledge" / Flag,
    Padding(3),
    "residual_overflow" / Flag,
    "residual_underflow" / Flag,
    "status_present" / Flag,
    _reserved(1),
    _bits("status", 8),
    *_LENGTHS,
    _bytes("lun", 8),
    _word("initiator_task_tag"),
    _word("target_transfer_tag"),
    *_RESPONSE_NUMBERS,
    _word("data_sn"),
    _word("buffer_offset"),
    _word("residual_count"),
)

R2T: Final = BitStruct(  # RFC 7143 11.8
    *_FROM_TARGET,
    *_FINAL_ONLY,
    _reserved(2),
    *_LENGTHS,
    _bytes("lun", 8),
    _word("initiator_task_tag"),
    _word("target_transfer_tag"),
    *_RESPONSE_NUMBERS,
    _word("r2t_sn"),
    _word("buffer_offset"),
    _word("desired_data_transfer_length"),
)

# --- Task management and asynchronous messages ------------------------------------------------------------------------

TASK_MANAGEMENT_REQUEST: Final = BitStruct(  # RFC 7143 11.5
    *_FROM_INITIATOR,
    "final" / Flag,
    _bits("function", 7),
    _reserved(2),
    *_LENGTHS,
    _bytes("lun", 8),
    _word("initiator_task_tag"),
    _word("referenced_task_tag"),
    *_REQUEST_NUMBERS,
    _word("ref_cmd_sn"),
    _word("exp_data_sn"),
    _reserved(8),
)

TASK_MANAGEMENT_RESPONSE: Final = BitStruct(  # RFC 7143 11.6
    *_FROM_TARGET,
    *_FINAL_ONLY,
    _bits("response", 8),
    _reserved(1),
    *_LENGTHS,
    _reserved(8),
    _word("initiator_task_tag"),
    _reserved(4),
    *_RESPONSE_NUMBERS,
    _reserved(12),
)

ASYNC_MESSAGE: Final = BitStruct(  # RFC 7143 11.9
    *_FROM_TARGET,
    *_FINAL_ONLY,
    _reserved(2),
    *_LENGTHS,
    _bytes("lun", 8),
    _word("initiator_task_tag"),
    _reserved(4),
    *_RESPONSE_NUMBERS,
    _bits("async_event", 8),
    _bits("async_vcode", 8),
    _bits("parameter1", 16),
    _bits("parameter2", 16),
    _bits("parameter3", 16),
    _reserved(4),
)

# --- Login, text, logout ----------------------------------------------------------------------------------------------

TEXT_REQUEST: Final = BitStruct(  # RFC 7143 11.10
    *_FROM_INITIATOR,
    "final" / Flag,
    "continue_" / Flag,
    Padding(6),
    _reserved(2),
    *_LENGTHS,
    _bytes("lun", 8),
    _word("initiator_task_tag"),
    _word("target_transfer_tag"),
    *_REQUEST_NUMBERS,
    _reserved(16),
)

TEXT_RESPONSE: Final = BitStruct(  # RFC 7143 11.11
    *_FROM_TARGET,
    "final" / Flag,
    "continue_" / Flag,
    Padding(6),
    _reserved(2),
    *_LENGTHS,
    _bytes("lun", 8),
    _word("initiator_task_tag"),
    _word("target_transfer_tag"),
    *_RESPONSE_NUMBERS,
    _reserved(12),
)

# T, C, two reserved bits, CSG and NSG: byte 1 of both login PDUs.
_LOGIN_FLAGS: Final = (
    "transit" / Flag,
    "continue_" / Flag,
    Padding(2),
    _bits("current_stage", 2),
    _bits("next_stage", 2),
)

LOGIN_REQUEST: Final = BitStruct(  # RFC 7143 11.12
    *_FROM_INITIATOR,
    *_LOGIN_FLAGS,
    _bits("version_max", 8),
    _bits("version_min", 8),
    *_LENGTHS,
    _bytes("isid", 6),
    _bits("tsih", 16),
    _word("initiator_task_tag"),
    _bits("cid", 16),
    _reserved(2),
    *_REQUEST_NUMBERS,
    _reserved(16),
)

LOGIN_RESPONSE: Final = BitStruct(  # RFC 7143 11.13
    *_FROM_TARGET,
    *_LOGIN_FLAGS,
    _bits("version_max", 8),
    _bits("version_active", 8),
    *_LENGTHS,
    _bytes("isid", 6),
    _bits("tsih", 16),
    _word("initiator_task_tag"),
    _reserved(4),
    *_RESPONSE_NUMBERS,
    _bits("status_class", 8),
    _bits("status_detail", 8),
    _reserved(10),
)

LOGOUT_REQUEST: Final = BitStruct(  # RFC 7143 11.14
    *_FROM_INITIATOR,
    "final" / Flag,
    _bits("reason", 7),
    _reserved(2),
    *_LENGTHS,
    _reserved(8),
    _word("initiator_task_tag"),
    _bits("cid", 16),
    _reserved(2),
    *_REQUEST_NUMBERS,
    _reserved(16),
)

LOGOUT_RESPONSE: Final = BitStruct(  # RFC 7143 11.15
    *_FROM_TARGET,
    *_FINAL_ONLY,
    _bits("response", 8),
    _reserved(1),
    *_LENGTHS,
    _reserved(8),
    _word("initiator_task_tag"),
    _reserved(4),
    *_RESPONSE_NUMBERS,
    _reserved(4),
    _bits("time2wait", 16),
    _bits("time2retain", 16),
    _reserved(4),
)

# --- Recovery and keepalive -------------------------------------------------------------------------------------------

SNACK_REQUEST: Final = BitStruct(  # RFC 7143 11.16
    *_FROM_INITIATOR,
    "final" / Flag,
    Padding(3),
    _bits("snack_type", 4),
    _reserved(2),
    *_LENGTHS,
    _bytes("lun", 8),
    _word("initiator_task_tag"),
    _word("target_transfer_tag"),  # the SNACK Tag in an R-Data SNACK
    _reserved(4),
    _word("exp_stat_sn"),
    _reserved(8),
    _word("beg_run"),
    _word("run_length"),
)

REJECT: Final = BitStruct(  # RFC 7143 11.17
    *_FROM_TARGET,
    *_FINAL_ONLY,
    _bits("reason", 8),
    _reserved(1),
    *_LENGTHS,
    _reserved(8),
    _word("initiator_task_tag"),
    _reserved(4),
    *_RESPONSE_NUMBERS,
    _word("data_sn"),  # DataSN, or R2TSN
    _reserved(8),
)

NOP_OUT: Final = BitStruct(  # RFC 7143 11.18
    *_FROM_INITIATOR,
    *_FINAL_ONLY,
    _reserved(2),
    *_LENGTHS,
    _bytes("lun", 8),
    _word("initiator_task_tag"),
    _word("target_transfer_tag"),
    *_REQUEST_NUMBERS,
    _reserved(16),
)

NOP_IN: Final = BitStruct(  # RFC 7143 11.19
    *_FROM_TARGET,
    *_FINAL_ONLY,
    _reserved(2),
    *_LENGTHS,
    _bytes("lun", 8),
    _word("initiator_task_tag"),
    _word("target_transfer_tag"),
    *_RESPONSE_NUMBERS,
    _reserved(12),
)

SPECS: Final[dict[int, Any]] = {
    opcodes.NOP_OUT: NOP_OUT,
    opcodes.SCSI_COMMAND: SCSI_COMMAND,
    opcodes.TASK_MANAGEMENT_REQUEST: TASK_MANAGEMENT_REQUEST,
    opcodes.LOGIN_REQUEST: LOGIN_REQUEST,
    opcodes.TEXT_REQUEST: TEXT_REQUEST,
    opcodes.DATA_OUT: DATA_OUT,
    opcodes.LOGOUT_REQUEST: LOGOUT_REQUEST,
    opcodes.SNACK_REQUEST: SNACK_REQUEST,
    opcodes.NOP_IN: NOP_IN,
    opcodes.SCSI_RESPONSE: SCSI_RESPONSE,
    opcodes.TASK_MANAGEMENT_RESPONSE: TASK_MANAGEMENT_RESPONSE,
    opcodes.LOGIN_RESPONSE: LOGIN_RESPONSE,
    opcodes.TEXT_RESPONSE: TEXT_RESPONSE,
    opcodes.DATA_IN: DATA_IN,
    opcodes.LOGOUT_RESPONSE: LOGOUT_RESPONSE,
    opcodes.R2T: R2T,
    opcodes.ASYNC_MESSAGE: ASYNC_MESSAGE,
    opcodes.REJECT: REJECT,
}
"""Opcode -> declaration of its header."""

FIELDS: Final[dict[int, tuple[str, ...]]] = {
    opcode: tuple(field.name for field in spec.subcon.subcons if field.name) for opcode, spec in SPECS.items()
}
"""Opcode -> names of its fields, in the order of the bytes."""

_BYTE_FIELDS: Final = {"lun": bytes(8), "isid": bytes(6), "cdb": bytes(16)}

# The fields whose value, unless told otherwise, is not zero:
# - F is a constant 1 in PDUs that have no sequence to end (the drawings of RFC 7143 11.4-11.6, 11.8, 11.9, and 11.14
#   to 11.19); in SCSI Command, Data-Out, Data-In and Text PDUs it says something, and the caller must say it.
# - the I bit of a Login Request is a constant 1 (RFC 7143 11.12).
# - the reserved tag 0xffffffff stands for "no tag": the Target Transfer Tag outside an exchange that the target began
#   (RFC 7143 11.7.4, 11.10.4, 11.11.3, 11.16.2, 11.18.2, 11.19.2), the Referenced Task Tag of functions that name no
#   task (11.5.5), and the Initiator Task Tag of what answers no task: Reject (11.17), Async Message (11.9).
#   A NOP-In's Initiator Task Tag is reserved too unless it answers a NOP-Out (11.19.1).
_ALWAYS_FINAL: Final = {"final": True}
_NO_TRANSFER: Final = {"target_transfer_tag": RESERVED_TAG}
_NO_TASK: Final = {"initiator_task_tag": RESERVED_TAG}
DEFAULTS: Final[dict[int, dict[str, Any]]] = {
    opcodes.NOP_OUT: _ALWAYS_FINAL | _NO_TRANSFER,
    opcodes.TASK_MANAGEMENT_REQUEST: _ALWAYS_FINAL | {"referenced_task_tag": RESERVED_TAG},
    opcodes.LOGIN_REQUEST: {"immediate": True},
    opcodes.TEXT_REQUEST: _NO_TRANSFER,
    opcodes.DATA_OUT: _NO_TRANSFER,
    opcodes.LOGOUT_REQUEST: _ALWAYS_FINAL,
    opcodes.SNACK_REQUEST: _ALWAYS_FINAL | _NO_TRANSFER,
    opcodes.NOP_IN: _ALWAYS_FINAL | _NO_TASK | _NO_TRANSFER,
    opcodes.SCSI_RESPONSE: _ALWAYS_FINAL,
    opcodes.TASK_MANAGEMENT_RESPONSE: _ALWAYS_FINAL,
    opcodes.TEXT_RESPONSE: _NO_TRANSFER,
    opcodes.DATA_IN: _NO_TRANSFER,
    opcodes.LOGOUT_RESPONSE: _ALWAYS_FINAL,
    opcodes.R2T: _ALWAYS_FINAL,
    opcodes.ASYNC_MESSAGE: _ALWAYS_FINAL | _NO_TASK,
    opcodes.REJECT: _ALWAYS_FINAL | _NO_TASK,
}
"""Opcode -> the values that `build` gives to fields left out, where that is not zero."""


def parse(bhs: bytes) -> Container:
    """The fields of a 48-byte Basic Header Segment, as attributes and as a dict; bytes beyond 48 are not looked at.

    Raises PduError for fewer than 48 bytes and for an opcode RFC 7143 11.2.1.2 does not define (vendor opcodes too).
    """
    if len(bhs) < BHS_BYTES:
        raise PduError(f"a header of {len(bhs)} bytes, needs {BHS_BYTES}")
    opcode = bhs[0] & OPCODE_MASK
    spec = SPECS.get(opcode)
    if spec is None:
        raise PduError(f"unknown opcode 0x{opcode:02x}")
    return spec.parse(bytes(bhs[:BHS_BYTES]))


def build(opcode: int, data_segment_length: int = 0, **fields: object) -> bytes:
    """The 48 bytes of a header. Fields left out are zero, or what DEFAULTS says for this opcode.

    Raises PduError for an unknown opcode, TypeError for a field that this PDU does not have, ValueError for a value
    that does not fit its field (byte fields must have their exact length).
    """
    spec = SPECS.get(opcode)
    if spec is None:
        raise PduError(f"unknown opcode 0x{opcode:02x}")
    names = FIELDS[opcode]
    if unknown := [name for name in fields if name not in names]:
        raise TypeError(f"PDU 0x{opcode:02x} has no field {', '.join(unknown)}")
    values: dict[str, object] = {name: _BYTE_FIELDS.get(name, 0) for name in names}
    values |= DEFAULTS.get(opcode, {})
    values |= {"opcode": opcode, "data_segment_length": data_segment_length}
    values |= fields
    for name, zero in _BYTE_FIELDS.items():
        # construct would quietly fill up a value that is too short.
        if name in values and len(values[name]) != len(zero):  # type: ignore[arg-type]
            raise ValueError(f"{name} must have {len(zero)} bytes")
    try:
        return bytes(spec.build(values))
    except ConstructError as error:
        raise ValueError(f"PDU 0x{opcode:02x}: {error}") from error


# --- LUNs (SAM-5 4.7) -------------------------------------------------------------------------------------------------

LUN: Final = BitStruct(_bits("address_method", 2), _bits("address", 14), _reserved(6))
LUN_PERIPHERAL: Final = 0
LUN_FLAT: Final = 1
_PERIPHERAL_LUNS: Final = 1 << 8
_FLAT_LUNS: Final = 1 << 14
_LUN_BYTES: Final = 8


def lun_to_int(lun8: bytes) -> int | None:
    """The number of a single-level LUN: peripheral device addressing on bus 0 (0-255), or flat (0-16383).

    None for every other form, such as a well known logical unit or a second level: this target has none of them, so
    the command ends with LOGICAL UNIT NOT SUPPORTED. Raises PduError unless there are 8 bytes.
    """
    if len(lun8) != _LUN_BYTES:
        raise PduError(f"a LUN of {len(lun8)} bytes")
    if any(lun8[2:]):
        return None
    parsed = LUN.parse(bytes(lun8))
    address = int(parsed.address)
    if parsed.address_method == LUN_FLAT or (parsed.address_method == LUN_PERIPHERAL and address < _PERIPHERAL_LUNS):
        return address
    return None


def int_to_lun(number: int) -> bytes:
    """The 8 bytes that name a logical unit: peripheral addressing up to 255, flat up to 16383; else ValueError."""
    if not 0 <= number < _FLAT_LUNS:
        raise ValueError(f"LUN {number} is beyond single-level addressing")
    method = LUN_PERIPHERAL if number < _PERIPHERAL_LUNS else LUN_FLAT
    return bytes(LUN.build({"address_method": method, "address": number}))
