"""The header declarations, against the byte offsets of the drawings in RFC 7143 section 11."""

from typing import Any

import pytest

from san_target.wire import opcodes
from san_target.wire.pdus import DEFAULTS, FIELDS, SPECS, PduError, build, int_to_lun, lun_to_int, parse

# Field -> (first byte, bits of those bytes). A second statement of the layout, made from the byte numbers that the
# drawings have at their left edge, so that a slip in the order of a declaration shows.
BYTE = 0xFF
HALF = 0xFFFF
WORD = 0xFFFFFFFF
FROM_INITIATOR = {"immediate": (0, 0x40), "opcode": (0, 0x3F)}
FROM_TARGET = {"opcode": (0, 0x3F)}
FINAL = {"final": (1, 0x80)}
LENGTHS = {"total_ahs_length": (4, BYTE), "data_segment_length": (5, 0xFFFFFF)}
LUN = {"lun": (8, (1 << 64) - 1)}
TASK = {"initiator_task_tag": (16, WORD)}
TRANSFER = {"target_transfer_tag": (20, WORD)}
REQUEST = FROM_INITIATOR | LENGTHS | TASK | {"cmd_sn": (24, WORD), "exp_stat_sn": (28, WORD)}
RESPONSE = FROM_TARGET | LENGTHS | TASK | {"stat_sn": (24, WORD), "exp_cmd_sn": (28, WORD), "max_cmd_sn": (32, WORD)}
CONTINUE = {"continue_": (1, 0x40)}
LOGIN = {
    "transit": (1, 0x80),
    "continue_": (1, 0x40),
    "current_stage": (1, 0x0C),
    "next_stage": (1, 0x03),
    "version_max": (2, BYTE),
    "isid": (8, (1 << 48) - 1),
    "tsih": (14, HALF),
}

LAYOUT: dict[int, dict[str, tuple[int, int]]] = {
    opcodes.SCSI_COMMAND: REQUEST
    | FINAL
    | LUN
    | {
        "read": (1, 0x40),
        "write": (1, 0x20),
        "attribute": (1, 0x07),
        "expected_data_transfer_length": (20, WORD),
        "cdb": (32, (1 << 128) - 1),
    },
    opcodes.SCSI_RESPONSE: RESPONSE
    | FINAL
    | {
        "bidirectional_residual_overflow": (1, 0x10),
        "bidirectional_residual_underflow": (1, 0x08),
        "residual_overflow": (1, 0x04),
        "residual_underflow": (1, 0x02),
        "response": (2, BYTE),
        "status": (3, BYTE),
        "snack_tag": (20, WORD),
        "exp_data_sn": (36, WORD),
        "bidirectional_read_residual_count": (40, WORD),
        "residual_count": (44, WORD),
    },
    opcodes.TASK_MANAGEMENT_REQUEST: REQUEST
    | FINAL
    | LUN
    | {
        "function": (1, 0x7F),
        "referenced_task_tag": (20, WORD),
        "ref_cmd_sn": (32, WORD),
        "exp_data_sn": (36, WORD),
    },
    opcodes.TASK_MANAGEMENT_RESPONSE: RESPONSE | FINAL | {"response": (2, BYTE)},
    opcodes.DATA_OUT: FROM_INITIATOR
    | LENGTHS
    | TASK
    | FINAL
    | LUN
    | TRANSFER
    | {"exp_stat_sn": (28, WORD), "data_sn": (36, WORD), "buffer_offset": (40, WORD)},
    opcodes.DATA_IN: RESPONSE
    | FINAL
    | LUN
    | TRANSFER
    | {
        "acknowledge": (1, 0x40),
        "residual_overflow": (1, 0x04),
        "residual_underflow": (1, 0x02),
        "status_present": (1, 0x01),
        "status": (3, BYTE),
        "data_sn": (36, WORD),
        "buffer_offset": (40, WORD),
        "residual_count": (44, WORD),
    },
    opcodes.R2T: RESPONSE
    | FINAL
    | LUN
    | TRANSFER
    | {"r2t_sn": (36, WORD), "buffer_offset": (40, WORD), "desired_data_transfer_length": (44, WORD)},
    opcodes.ASYNC_MESSAGE: RESPONSE
    | FINAL
    | LUN
    | {
        "async_event": (36, BYTE),
        "async_vcode": (37, BYTE),
        "parameter1": (38, HALF),
        "parameter2": (40, HALF),
        "parameter3": (42, HALF),
    },
    opcodes.TEXT_REQUEST: REQUEST | FINAL | CONTINUE | LUN | TRANSFER,
    opcodes.TEXT_RESPONSE: RESPONSE | FINAL | CONTINUE | LUN | TRANSFER,
    opcodes.LOGIN_REQUEST: REQUEST | LOGIN | {"version_min": (3, BYTE), "cid": (20, HALF)},
    opcodes.LOGIN_RESPONSE: RESPONSE
    | LOGIN
    | {"version_active": (3, BYTE), "status_class": (36, BYTE), "status_detail": (37, BYTE)},
    opcodes.LOGOUT_REQUEST: REQUEST | FINAL | {"reason": (1, 0x7F), "cid": (20, HALF)},
    opcodes.LOGOUT_RESPONSE: RESPONSE
    | FINAL
    | {"response": (2, BYTE), "time2wait": (40, HALF), "time2retain": (42, HALF)},
    opcodes.SNACK_REQUEST: FROM_INITIATOR
    | LENGTHS
    | TASK
    | FINAL
    | LUN
    | TRANSFER
    | {"snack_type": (1, 0x0F), "exp_stat_sn": (28, WORD), "beg_run": (40, WORD), "run_length": (44, WORD)},
    opcodes.REJECT: RESPONSE | FINAL | {"reason": (2, BYTE), "data_sn": (36, WORD)},
    opcodes.NOP_OUT: REQUEST | FINAL | LUN | TRANSFER,
    opcodes.NOP_IN: RESPONSE | FINAL | LUN | TRANSFER,
}
CASES = [(opcode, name) for opcode, fields in LAYOUT.items() for name in fields if name != "opcode"]


def place(first_byte: int, bits: int) -> int:
    """A number's bits, as those of the 48-byte header that starts with `bits` at `first_byte`."""
    width_bytes = (bits.bit_length() + 7) // 8
    return bits << 8 * (48 - first_byte - width_bytes)


def test_every_opcode_has_its_layout() -> None:
    assert set(LAYOUT) == set(SPECS)
    assert len(SPECS) == 18


@pytest.mark.parametrize("opcode", SPECS)
def test_a_header_has_48_bytes_and_exactly_the_fields_of_its_drawing(opcode: int) -> None:
    assert SPECS[opcode].sizeof() == 48
    assert set(FIELDS[opcode]) == set(LAYOUT[opcode])


@pytest.mark.parametrize(("opcode", "name"), CASES)
def test_a_field_fills_exactly_its_bits(opcode: int, name: str) -> None:
    first_byte, bits = LAYOUT[opcode][name]
    width = bits.bit_count()
    none: dict[str, Any] = dict.fromkeys(set(LAYOUT[opcode]) - {"opcode"}, 0)
    for raw, length in (("lun", 8), ("isid", 6), ("cdb", 16)):
        if raw in none:
            none[raw] = bytes(length)
    full = bytes([BYTE]) * (width // 8) if name in ("lun", "isid", "cdb") else (1 << width) - 1
    empty = int.from_bytes(build(opcode, **none), "big")
    assert empty == place(0, opcode)
    assert int.from_bytes(build(opcode, **{**none, name: full}), "big") == empty | place(first_byte, bits)
    assert parse(build(opcode, **{**none, name: full}))[name] == full


@pytest.mark.parametrize("opcode", SPECS)
def test_reserved_bits_are_ignored(opcode: int) -> None:
    used = 0
    for first_byte, bits in LAYOUT[opcode].values():
        used |= place(first_byte, bits)
    plain = int.from_bytes(build(opcode), "big")
    noisy = plain | ~used & (1 << 48 * 8) - 1
    assert parse(noisy.to_bytes(48, "big")) == parse(build(opcode))


@pytest.mark.parametrize("opcode", SPECS)
def test_fields_left_out_are_zero_or_their_documented_default(opcode: int) -> None:
    parsed = parse(build(opcode))
    for name in set(FIELDS[opcode]) - {"opcode"}:
        value = parsed[name]
        number = int.from_bytes(value, "big") if isinstance(value, bytes) else value
        assert number == DEFAULTS.get(opcode, {}).get(name, 0), name


def test_no_tag_where_no_task_or_transfer_is_meant() -> None:
    assert parse(build(opcodes.REJECT)).initiator_task_tag == 0xFFFFFFFF
    assert parse(build(opcodes.ASYNC_MESSAGE)).initiator_task_tag == 0xFFFFFFFF
    assert parse(build(opcodes.DATA_IN)).target_transfer_tag == 0xFFFFFFFF
    assert parse(build(opcodes.SCSI_COMMAND)).initiator_task_tag == 0


@pytest.mark.parametrize("length", [0, 1, 47])
def test_a_short_header_is_refused(length: int) -> None:
    with pytest.raises(PduError, match="header of"):
        parse(bytes(length))


@pytest.mark.parametrize("opcode", sorted(set(range(64)) - set(SPECS)))
def test_an_unknown_opcode_is_refused(opcode: int) -> None:
    with pytest.raises(PduError, match="unknown opcode"):
        parse(bytes([opcode]) + bytes(47))
    with pytest.raises(PduError, match="unknown opcode"):
        build(opcode)


def test_what_follows_the_header_is_not_looked_at() -> None:
    header = build(opcodes.NOP_OUT, 4)
    assert parse(header + b"ping") == parse(header)


def test_a_field_of_another_pdu_is_a_mistake() -> None:
    with pytest.raises(TypeError, match="r2t_sn"):
        build(opcodes.NOP_IN, r2t_sn=1)


@pytest.mark.parametrize(
    ("name", "value"),
    [("lun", bytes(7)), ("cdb", bytes(10)), ("cmd_sn", 1 << 32), ("cmd_sn", -1), ("attribute", 8)],
)
def test_a_value_that_does_not_fit_is_a_mistake(name: str, value: Any) -> None:
    with pytest.raises(ValueError):
        build(opcodes.SCSI_COMMAND, **{name: value})


def test_data_segment_length_has_24_bits() -> None:
    assert parse(build(opcodes.NOP_OUT, 0xFFFFFF)).data_segment_length == 0xFFFFFF
    with pytest.raises(ValueError):
        build(opcodes.NOP_OUT, 1 << 24)


@pytest.mark.parametrize(
    ("number", "lun"),
    [
        (0, "0000000000000000"),
        (1, "0001000000000000"),
        (255, "00ff000000000000"),
        (256, "4100000000000000"),
        (16383, "7fff000000000000"),
    ],
)
def test_single_level_luns(number: int, lun: str) -> None:
    assert int_to_lun(number).hex() == lun
    assert lun_to_int(bytes.fromhex(lun)) == number


def test_flat_addressing_of_a_small_number_is_read() -> None:
    assert lun_to_int(bytes.fromhex("4003000000000000")) == 3


@pytest.mark.parametrize(
    "lun",
    [
        "0101000000000000",  # a bus of its own
        "8001000000000000",  # logical unit addressing
        "c101000000000000",  # the REPORT LUNS well known logical unit
        "0001000100000000",  # a second level
        "0000000000000001",
    ],
)
def test_other_luns_name_no_unit(lun: str) -> None:
    assert lun_to_int(bytes.fromhex(lun)) is None


@pytest.mark.parametrize("number", [-1, 16384])
def test_a_number_beyond_single_level_addressing(number: int) -> None:
    with pytest.raises(ValueError, match="single-level"):
        int_to_lun(number)


@pytest.mark.parametrize("length", [0, 7, 9])
def test_a_lun_has_8_bytes(length: int) -> None:
    with pytest.raises(PduError):
        lun_to_int(bytes(length))
