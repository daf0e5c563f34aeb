"""What libiscsi and QEMU said to tgt, read by both codecs and written again to the same bytes.

Reserved bits are the one thing that would not be written again; in these recordings all of them are zero, so the bytes
are the same to the last bit.
"""

from pathlib import Path

import pytest

from san_target.wire import hot, opcodes
from san_target.wire.digest import digest
from san_target.wire.framer import Framer
from san_target.wire.pdus import FIELDS, build, lun_to_int, parse
from san_target.wire.text import decode_pairs, encode_pairs
from tests.unit.wire.golden_files import Recorded, conversations, read
from tests.unit.wire.record_golden import NAMES

TEXT_OPCODES = {opcodes.LOGIN_REQUEST, opcodes.LOGIN_RESPONSE, opcodes.TEXT_REQUEST, opcodes.TEXT_RESPONSE}

each_conversation = pytest.mark.parametrize("path", conversations(), ids=lambda path: path.stem)


def opcode_of(pdu: Recorded) -> int:
    return pdu.bhs[0] & opcodes.OPCODE_MASK


def rebuilt(pdu: Recorded) -> bytes:
    fields = {name: parse(pdu.bhs)[name] for name in FIELDS[opcode_of(pdu)] if name != "opcode"}
    return build(opcode_of(pdu), **fields)


def test_the_recordings_cover_what_initiators_do() -> None:
    seen = {opcode_of(pdu) for path in conversations() for pdu in read(path)}
    assert seen >= {
        opcodes.SCSI_COMMAND,
        opcodes.SCSI_RESPONSE,
        opcodes.DATA_OUT,
        opcodes.DATA_IN,
        opcodes.R2T,
        opcodes.LOGIN_REQUEST,
        opcodes.LOGIN_RESPONSE,
        opcodes.TEXT_REQUEST,
        opcodes.TEXT_RESPONSE,
        opcodes.TASK_MANAGEMENT_REQUEST,
        opcodes.TASK_MANAGEMENT_RESPONSE,
        opcodes.LOGOUT_REQUEST,
        opcodes.LOGOUT_RESPONSE,
    }


@each_conversation
def test_headers_are_read_and_written_again_to_the_same_bytes(path: Path) -> None:
    for pdu in read(path):
        assert NAMES[opcode_of(pdu)] == pdu.name
        assert rebuilt(pdu) == pdu.bhs, pdu.name


@each_conversation
def test_both_codecs_read_the_same_fields(path: Path) -> None:
    for pdu in read(path):
        if not pdu.from_initiator:
            continue
        slow, fast = parse(pdu.bhs), hot.unpack_header(pdu.bhs)
        assert fast.opcode & opcodes.OPCODE_MASK == slow.opcode
        assert bool(fast.opcode & opcodes.IMMEDIATE) == slow.immediate
        assert fast.lengths == slow.total_ahs_length << 24 | slow.data_segment_length
        assert fast.itt == slow.initiator_task_tag
        assert fast.exp_stat_sn == slow.exp_stat_sn
        assert fast.cmd_sn == slow.get("cmd_sn", 0)
        if slow.opcode == opcodes.SCSI_COMMAND:
            assert fast.tail == slow.cdb
            assert fast.word20 == slow.expected_data_transfer_length
            assert lun_to_int(fast.lun.to_bytes(8, "big")) == lun_to_int(slow.lun) in (0, 1)
        if slow.opcode == opcodes.DATA_OUT:
            assert hot.DATA_OUT_TAIL.unpack(fast.tail) == (slow.data_sn, slow.buffer_offset)
            assert fast.word20 == slow.target_transfer_tag


@each_conversation
def test_the_fast_codec_writes_what_the_target_sent(path: Path) -> None:
    for pdu in read(path):
        answer = fast_answer(pdu)
        assert answer is None or answer == pdu.bhs, pdu.name


def fast_answer(pdu: Recorded) -> bytes | None:
    """The header of a hot response, packed by the fast codec from the fields that the slow one read."""
    opcode = opcode_of(pdu)
    if opcode not in (opcodes.SCSI_RESPONSE, opcodes.DATA_IN, opcodes.R2T):
        return None
    fields = parse(pdu.bhs)
    numbers = (fields.stat_sn, fields.exp_cmd_sn, fields.max_cmd_sn)
    if opcode == opcodes.SCSI_RESPONSE:
        return hot.pack_scsi_response(
            fields.initiator_task_tag,
            *numbers,
            status=fields.status,
            response=fields.response,
            flags=hot.RESIDUAL_OVERFLOW * fields.residual_overflow | hot.RESIDUAL_UNDERFLOW * fields.residual_underflow,
            data_segment_length=fields.data_segment_length,
            exp_data_sn=fields.exp_data_sn,
            residual=fields.residual_count,
        )
    if opcode == opcodes.DATA_IN:
        return hot.pack_data_in(
            opcodes.FINAL * fields.final
            | hot.RESIDUAL_OVERFLOW * fields.residual_overflow
            | hot.RESIDUAL_UNDERFLOW * fields.residual_underflow
            | hot.STATUS_PRESENT * fields.status_present,
            fields.status,
            fields.data_segment_length,
            fields.initiator_task_tag,
            *numbers,
            fields.data_sn,
            fields.buffer_offset,
            fields.residual_count,
        )
    return hot.pack_r2t(
        int.from_bytes(fields.lun, "big"),
        fields.initiator_task_tag,
        fields.target_transfer_tag,
        *numbers,
        fields.r2t_sn,
        fields.buffer_offset,
        fields.desired_data_transfer_length,
    )


@each_conversation
def test_text_is_read_and_written_again_to_the_same_bytes(path: Path) -> None:
    texts = [pdu for pdu in read(path) if opcode_of(pdu) in TEXT_OPCODES]
    assert texts
    for pdu in texts:
        pairs = decode_pairs(pdu.data)
        assert encode_pairs(pairs) == pdu.data
    first = dict(decode_pairs(texts[0].data))
    assert first["InitiatorName"].startswith("iqn.")


@each_conversation
def test_digests_are_what_the_others_computed(path: Path) -> None:
    for pdu in read(path):
        if pdu.header_digest:
            assert pdu.raw[48:52] == digest(pdu.bhs)


def test_some_conversation_has_digests() -> None:
    digested = [pdu for path in conversations() for pdu in read(path) if pdu.header_digest]
    assert {pdu.from_initiator for pdu in digested} == {True, False}


@each_conversation
@pytest.mark.parametrize("from_initiator", [True, False])
def test_the_framer_cuts_the_stream_where_the_others_did(path: Path, from_initiator: bool) -> None:
    framer = Framer(1 << 18)
    shared = memoryview(bytearray(1 << 17))
    # One file may hold several connections, each of which starts without digests.
    for pdu in (pdu for pdu in read(path) if pdu.from_initiator == from_initiator):
        framer.header_digest = pdu.header_digest
        buffers = framer.buffers(shared)
        buffers[0][: len(pdu.raw)] = pdu.raw
        (cut,) = framer.received(shared, len(pdu.raw))
        assert (cut.bhs, bytes(cut.data)) == (pdu.bhs, pdu.data)
    assert framer.unfinished_bytes == 0
