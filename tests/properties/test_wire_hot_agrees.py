"""The fast codec of the hot PDUs and the declarations in `pdus` agree byte for byte, reading and writing."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from san_target.wire import hot, opcodes, pdus

WORD = st.integers(0, 0xFFFFFFFF)
BYTE = st.integers(0, 0xFF)
LUN = st.integers(0, (1 << 64) - 1)
LENGTH = st.integers(0, 0xFFFFFF)
FLAG = st.booleans()
INITIATOR_OPCODES = sorted(opcode for opcode in pdus.SPECS if opcode < 0x20)


def raw_lun(lun: int) -> bytes:
    return lun.to_bytes(8, "big")


@given(opcode=st.sampled_from(INITIATOR_OPCODES), first=BYTE, rest=st.binary(min_size=47, max_size=47))
def test_any_initiator_header_reads_the_same(opcode: int, first: int, rest: bytes) -> None:
    bhs = bytes([first & ~opcodes.OPCODE_MASK | opcode]) + rest
    slow: Any = pdus.parse(bhs)
    fast = hot.unpack_header(bhs)
    assert fast.opcode & opcodes.OPCODE_MASK == slow.opcode
    assert bool(fast.opcode & opcodes.IMMEDIATE) == slow.immediate
    assert fast.lengths == slow.total_ahs_length << 24 | slow.data_segment_length
    assert fast.itt == slow.initiator_task_tag
    assert fast.exp_stat_sn == slow.exp_stat_sn
    first_flag = slow.transit if opcode == opcodes.LOGIN_REQUEST else slow.final
    assert bool(fast.flags & opcodes.FINAL) == first_flag
    if "cmd_sn" in slow:
        assert fast.cmd_sn == slow.cmd_sn
    if "lun" in slow:
        assert raw_lun(fast.lun) == slow.lun
    word20 = {
        opcodes.SCSI_COMMAND: "expected_data_transfer_length",
        opcodes.TASK_MANAGEMENT_REQUEST: "referenced_task_tag",
    }.get(opcode, "target_transfer_tag")
    if word20 in slow:
        assert fast.word20 == slow[word20]
    # Reading loses nothing: the reserved bits are still there.
    assert hot.HEADER.pack(*fast) == bhs


@given(
    bits=st.fixed_dictionaries({"immediate": FLAG, "final": FLAG, "read": FLAG, "write": FLAG}),
    attribute=st.integers(0, 7),
    ahs_words=BYTE,
    length=LENGTH,
    lun=LUN,
    words=st.tuples(WORD, WORD, WORD, WORD),
    cdb=st.binary(min_size=16, max_size=16),
)
def test_scsi_command_both_ways(
    bits: dict[str, bool],
    attribute: int,
    ahs_words: int,
    length: int,
    lun: int,
    words: tuple[int, int, int, int],
    cdb: bytes,
) -> None:
    itt, expected_length, cmd_sn, exp_stat_sn = words
    bhs = pdus.build(
        opcodes.SCSI_COMMAND,
        length,
        **bits,
        attribute=attribute,
        total_ahs_length=ahs_words,
        lun=raw_lun(lun),
        initiator_task_tag=itt,
        expected_data_transfer_length=expected_length,
        cmd_sn=cmd_sn,
        exp_stat_sn=exp_stat_sn,
        cdb=cdb,
    )
    first = opcodes.SCSI_COMMAND | opcodes.IMMEDIATE * bits["immediate"]
    flags = opcodes.FINAL * bits["final"] | 0x40 * bits["read"] | 0x20 * bits["write"] | attribute
    header = hot.Header(first, flags, 0, ahs_words << 24 | length, lun, itt, expected_length, cmd_sn, exp_stat_sn, cdb)
    assert hot.unpack_header(bhs) == header
    assert hot.HEADER.pack(*header) == bhs


@given(final=FLAG, length=LENGTH, lun=LUN, words=st.tuples(WORD, WORD, WORD, WORD, WORD))
def test_data_out_both_ways(final: bool, length: int, lun: int, words: tuple[int, int, int, int, int]) -> None:
    itt, ttt, exp_stat_sn, data_sn, offset = words
    bhs = pdus.build(
        opcodes.DATA_OUT,
        length,
        final=final,
        lun=raw_lun(lun),
        initiator_task_tag=itt,
        target_transfer_tag=ttt,
        exp_stat_sn=exp_stat_sn,
        data_sn=data_sn,
        buffer_offset=offset,
    )
    tail = hot.DATA_OUT_TAIL.pack(data_sn, offset)
    header = hot.Header(opcodes.DATA_OUT, opcodes.FINAL * final, 0, length, lun, itt, ttt, 0, exp_stat_sn, tail)
    assert hot.unpack_header(bhs) == header
    assert hot.HEADER.pack(*header) == bhs
    assert hot.DATA_OUT_TAIL.unpack(header.tail) == (data_sn, offset)


@given(immediate=FLAG, length=LENGTH, lun=LUN, words=st.tuples(WORD, WORD, WORD, WORD))
def test_nop_out_both_ways(immediate: bool, length: int, lun: int, words: tuple[int, int, int, int]) -> None:
    itt, ttt, cmd_sn, exp_stat_sn = words
    bhs = pdus.build(
        opcodes.NOP_OUT,
        length,
        immediate=immediate,
        lun=raw_lun(lun),
        initiator_task_tag=itt,
        target_transfer_tag=ttt,
        cmd_sn=cmd_sn,
        exp_stat_sn=exp_stat_sn,
    )
    first = opcodes.NOP_OUT | opcodes.IMMEDIATE * immediate
    header = hot.Header(first, opcodes.FINAL, 0, length, lun, itt, ttt, cmd_sn, exp_stat_sn, bytes(16))
    assert hot.unpack_header(bhs) == header
    assert hot.HEADER.pack(*header) == bhs


RESIDUALS = st.fixed_dictionaries({"residual_overflow": FLAG, "residual_underflow": FLAG})
BIDIRECTIONAL = st.fixed_dictionaries(
    {"bidirectional_residual_overflow": FLAG, "bidirectional_residual_underflow": FLAG}
)


def residual_flags(bits: dict[str, bool]) -> int:
    names = {
        "residual_overflow": hot.RESIDUAL_OVERFLOW,
        "residual_underflow": hot.RESIDUAL_UNDERFLOW,
        "bidirectional_residual_overflow": hot.BIDIRECTIONAL_OVERFLOW,
        "bidirectional_residual_underflow": hot.BIDIRECTIONAL_UNDERFLOW,
    }
    return sum(flag for name, flag in names.items() if bits.get(name))


@given(
    numbers=st.tuples(WORD, WORD, WORD, WORD),
    residuals=RESIDUALS,
    bidirectional=BIDIRECTIONAL,
    status=BYTE,
    response=BYTE,
    length=LENGTH,
    counts=st.tuples(WORD, WORD, WORD),
)
def test_scsi_response(
    numbers: tuple[int, int, int, int],
    residuals: dict[str, bool],
    bidirectional: dict[str, bool],
    status: int,
    response: int,
    length: int,
    counts: tuple[int, int, int],
) -> None:
    itt, stat_sn, exp_cmd_sn, max_cmd_sn = numbers
    exp_data_sn, bidirectional_residual, residual = counts
    bits = residuals | bidirectional
    fast = hot.pack_scsi_response(
        *numbers,
        status=status,
        response=response,
        flags=residual_flags(bits),
        data_segment_length=length,
        exp_data_sn=exp_data_sn,
        bidirectional_residual=bidirectional_residual,
        residual=residual,
    )
    fields = dict(
        bits,
        status=status,
        response=response,
        initiator_task_tag=itt,
        stat_sn=stat_sn,
        exp_cmd_sn=exp_cmd_sn,
        max_cmd_sn=max_cmd_sn,
        exp_data_sn=exp_data_sn,
        bidirectional_read_residual_count=bidirectional_residual,
        residual_count=residual,
    )
    agrees(opcodes.SCSI_RESPONSE, length, fields, fast)


@given(numbers=st.tuples(WORD, WORD, WORD, WORD))
def test_good_response(numbers: tuple[int, int, int, int]) -> None:
    fast = hot.pack_good_response(*numbers)
    assert fast == hot.pack_scsi_response(*numbers)
    fields = dict(zip(("initiator_task_tag", "stat_sn", "exp_cmd_sn", "max_cmd_sn"), numbers, strict=True))
    agrees(opcodes.SCSI_RESPONSE, 0, fields, fast)


@given(
    final=FLAG,
    status_present=FLAG,
    residuals=RESIDUALS,
    status=BYTE,
    length=LENGTH,
    words=st.tuples(WORD, WORD, WORD, WORD, WORD, WORD, WORD),
)
def test_data_in(
    final: bool,
    status_present: bool,
    residuals: dict[str, bool],
    status: int,
    length: int,
    words: tuple[int, int, int, int, int, int, int],
) -> None:
    flags = opcodes.FINAL * final | hot.STATUS_PRESENT * status_present | residual_flags(residuals)
    names = ("initiator_task_tag", "stat_sn", "exp_cmd_sn", "max_cmd_sn", "data_sn", "buffer_offset", "residual_count")
    fields = dict(zip(names, words, strict=True)) | residuals
    fields |= {"final": final, "status_present": status_present, "status": status}
    agrees(opcodes.DATA_IN, length, fields, hot.pack_data_in(flags, status, length, *words))


@given(lun=LUN, words=st.tuples(WORD, WORD, WORD, WORD, WORD, WORD, WORD, WORD))
def test_r2t(lun: int, words: tuple[int, int, int, int, int, int, int, int]) -> None:
    names = ["initiator_task_tag", "target_transfer_tag", "stat_sn", "exp_cmd_sn", "max_cmd_sn", "r2t_sn"]
    names += ["buffer_offset", "desired_data_transfer_length"]
    fields = dict(zip(names, words, strict=True), lun=raw_lun(lun))
    agrees(opcodes.R2T, 0, fields, hot.pack_r2t(lun, *words))


@given(length=LENGTH, lun=LUN, words=st.tuples(WORD, WORD, WORD, WORD, WORD))
def test_nop_in(length: int, lun: int, words: tuple[int, int, int, int, int]) -> None:
    names = ("initiator_task_tag", "target_transfer_tag", "stat_sn", "exp_cmd_sn", "max_cmd_sn")
    fields = dict(zip(names, words, strict=True), lun=raw_lun(lun))
    agrees(opcodes.NOP_IN, length, fields, hot.pack_nop_in(length, lun, *words))


def agrees(opcode: int, length: int, fields: dict[str, Any], fast: bytes) -> None:
    """The declaration writes what `fast` is, and reads every field back out of it."""
    assert fast == pdus.build(opcode, length, **fields)
    parsed: Any = pdus.parse(fast)
    assert parsed.data_segment_length == length
    assert {name: parsed[name] for name in fields} == fields
