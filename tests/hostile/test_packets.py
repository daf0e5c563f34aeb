"""The scapy layer says the same of every PDU as the target's own codecs, and reads streams as they went by."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP
from scapy.packet import Packet, Padding, Raw
from scapy.sessions import TCPSession

import initiator_sim
from initiator_sim.packets import (
    ISCSI,
    ISCSI_DataOut,
    ISCSI_LoginRequest,
    ISCSI_LoginResponse,
    ISCSI_NopIn,
    ISCSI_NopOut,
    ISCSI_ScsiCommand,
    ISCSI_TextRequest,
    bidirectional_read_length,
    digests,
    extended_cdb,
    pdu_bytes,
)
from san_target.wire import opcodes, pdus
from san_target.wire.ahs import ExpectedBidirectionalReadLength, ExtendedCdb, build_ahs
from san_target.wire.digest import digest
from san_target.wire.framer import Framer, Pdu
from san_target.wire.text import encode_pairs

OPCODES = sorted(pdus.SPECS)


def as_wire(name: str, value: Any) -> Any:
    """The value of a scapy field as wire.pdus has it."""
    return value.to_bytes(8, "big") if name == "lun" else value


def one(data: bytes) -> Packet:
    return ISCSI(data)


@pytest.mark.parametrize("opcode", OPCODES)
def test_a_pdu_without_values_is_the_same(opcode: int) -> None:
    assert bytes(ISCSI.by_opcode[opcode]()) == pdus.build(opcode)


@given(st.sampled_from(OPCODES), st.binary(min_size=47, max_size=47), st.binary(max_size=40))
def test_every_header_is_read_alike(opcode: int, rest: bytes, data: bytes) -> None:
    bhs = bytes([rest[0] & 0x40 | opcode]) + rest[:3] + b"\0" + len(data).to_bytes(3, "big") + rest[7:]
    pdu = one(bhs + data + bytes(-len(data) % 4))
    parsed: Any = pdus.parse(bhs)
    assert {name: as_wire(name, getattr(pdu, name)) for name in pdus.FIELDS[opcode]} == {
        name: parsed[name] for name in pdus.FIELDS[opcode]
    }
    assert (pdu.data, bytes(pdu)) == (data, bhs + data + bytes(-len(data) % 4))


@given(st.data(), st.sampled_from(OPCODES), st.binary(max_size=20))
def test_every_header_is_built_alike(choose: st.DataObject, opcode: int, data: bytes) -> None:
    layer = ISCSI.by_opcode[opcode]
    fields: dict[str, Any] = {}
    for field in layer.fields_desc:
        if field.name not in pdus.FIELDS[opcode] or field.name in ("opcode", "total_ahs_length", "data_segment_length"):
            continue
        if field.name in ("cdb", "isid"):
            fields[field.name] = choose.draw(st.binary(min_size=int(field.sz), max_size=int(field.sz)))
        else:
            bits = getattr(field, "size", None) or int(field.sz) * 8
            fields[field.name] = choose.draw(st.integers(0, (1 << bits) - 1))
    ours = pdus.build(opcode, len(data), **{name: as_wire(name, value) for name, value in fields.items()})
    assert bytes(layer(data=data, **fields)) == ours + data + bytes(-len(data) % 4)


@given(st.binary(min_size=1, max_size=244), st.integers(0, 0xFFFFFFFF), st.booleans(), st.booleans())
def test_additional_headers_and_digests_are_built_alike(tail: bytes, length: int, header: bool, data: bool) -> None:
    ahs = build_ahs(ExtendedCdb(tail), ExpectedBidirectionalReadLength(length))
    bhs = pdus.build(opcodes.SCSI_COMMAND, 3, total_ahs_length=len(ahs) // 4)
    expected = bhs + ahs + (digest(bhs, ahs) if header else b"") + b"abc\0" + (digest(b"abc\0") if data else b"")
    with digests(header=header, data=data):
        crafted = ISCSI_ScsiCommand(ahs=[extended_cdb(tail), bidirectional_read_length(length)], data=b"abc")
        assert bytes(crafted) == expected
        again = one(expected)
    assert (again.data, bytes(again.ahs[0].specific)) == (b"abc", b"\0" + tail)
    assert bytes(again) == expected  # what was dissected keeps its digests
    assert pdu_bytes(expected, header, data) == len(expected)


@given(st.lists(st.binary(max_size=50), min_size=1, max_size=5), st.booleans(), st.booleans())
def test_the_framer_cuts_what_scapy_builds(texts: list[bytes], header: bool, data: bool) -> None:
    with digests(header=header, data=data):
        stream = b"".join(bytes(ISCSI_NopOut(initiator_task_tag=tag, data=text)) for tag, text in enumerate(texts))
        layer: Any = one(stream)
    framer = Framer(8192)
    framer.header_digest, framer.data_digest = header, data
    shared = memoryview(bytearray(1 << 16))
    framer.buffers(shared)[0][: len(stream)] = stream
    cut: list[Pdu] = []
    for pdu, text in zip(framer.received(shared, len(stream)), texts, strict=True):
        cut.append(pdu)
        assert bytes(pdu.data) == text
    for tag, pdu in enumerate(cut):
        assert (layer.initiator_task_tag, bytes(layer.data)) == (tag, texts[tag])
        assert pdu.bhs == bytes(layer)[:48]
        layer = layer.payload
    assert not layer


def test_a_lie_is_sent_as_told() -> None:
    pdu = ISCSI_DataOut(data=b"four", data_segment_length=1, total_ahs_length=9, header_digest=7, data_digest=9)
    built = bytes(pdu)
    assert built[4:8] == b"\x09\0\0\x01"
    assert built[48:52] == b"\x07\0\0\0"
    assert built[-4:] == b"\x09\0\0\0"
    assert bytes(ISCSI_NopOut(data=b"a", padding=b"xyz"))[48:] == b"axyz"
    assert bytes(ISCSI_NopOut(reserved3=b"\xff" * 16))[32:48] == b"\xff" * 16


def test_an_unknown_opcode_is_still_a_pdu() -> None:
    pdu = one(bytes([0x1F]) + bytes(47))
    assert (type(pdu), pdu.opcode) == (ISCSI, 0x1F)


def test_a_short_rest_is_no_pdu() -> None:
    assert one(bytes(ISCSI_NopOut()) + b"short").payload == Raw(b"short")


def over_tcp(streams: list[tuple[int, bytes]], mtu: int) -> list[Packet]:
    """A capture of (direction, bytes) in segments of at most mtu bytes."""
    sent = [1, 1]
    packets: list[Packet] = []
    for direction, data in streams:
        ports: Any = {"sport": 40000, "dport": 3260} if direction == 0 else {"sport": 3260, "dport": 40000}
        ends: Any = {"src": "10.0.0.1", "dst": "10.0.0.2"} if direction == 0 else {"src": "10.0.0.2", "dst": "10.0.0.1"}
        for start in range(0, len(data), mtu):
            part = data[start : start + mtu]
            packets.append(IP(bytes(IP(**ends) / TCP(**ports, seq=sent[direction], flags="PA") / Raw(part))))
            sent[direction] += len(part)
    return packets


@pytest.mark.parametrize("mtu", [7, 48, 100, 1460])
def test_a_capture_is_cut_into_pdus_with_the_digests_of_its_login(mtu: int) -> None:
    asked = encode_pairs([("HeaderDigest", "CRC32C,None"), ("DataDigest", "CRC32C")])
    answered = encode_pairs([("HeaderDigest", "CRC32C"), ("DataDigest", "CRC32C")])
    with digests(header=True, data=True):
        late = bytes(ISCSI_NopOut(data=b"first", initiator_task_tag=1))
        late += bytes(ISCSI_TextRequest(data=b"SendTargets=All\0"))
        answer = bytes(ISCSI_NopIn(data=b"first"))
    streams = [
        (0, bytes(ISCSI_LoginRequest(transit=1, current_stage=1, next_stage=3, data=asked))),
        (1, bytes(ISCSI_LoginResponse(transit=1, current_stage=1, next_stage=3, data=answered))),
        (0, late),
        (1, answer),
    ]
    session = TCPSession()
    seen = []
    for packet in over_tcp(streams, mtu):
        layer: Any = session.process(packet)
        layer = layer[TCP].payload if layer is not None else None
        while isinstance(layer, ISCSI):
            seen.append((type(layer).__name__, bytes(layer.data)))
            layer = layer.payload
        assert not layer or isinstance(layer, Padding), layer
    assert seen == [
        ("ISCSI_LoginRequest", asked),
        ("ISCSI_LoginResponse", answered),
        ("ISCSI_NopOut", b"first"),
        ("ISCSI_TextRequest", b"SendTargets=All\0"),
        ("ISCSI_NopIn", b"first"),
    ]


def test_nothing_else_waits_for_scapy() -> None:
    """scapy takes a second to import, so only who crafts packets imports it."""
    root = Path(initiator_sim.__file__).parents[1]
    files = [file for package in ("san_target", "initiator_sim") for file in (root / package).rglob("*.py")]
    names = [".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__") for file in files]
    crafting = ("initiator_sim.packets", "initiator_sim.conformance", "initiator_sim.fuzz")
    others = [name for name in names if not name.startswith(crafting) and not name.endswith("__main__")]
    assert len(others) > 150
    program = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "assert 'scapy' not in sys.modules, 'scapy was imported'\n"
    )
    subprocess.run([sys.executable, "-c", program, *others], check=True, timeout=60)
