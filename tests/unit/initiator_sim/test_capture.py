"""Captures of what libiscsi and QEMU said, cut into TCP segments in unkind ways, and decoded again."""

from __future__ import annotations

from pathlib import Path

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether
from scapy.packet import Raw
from scapy.utils import wrpcap

from initiator_sim.capture import INCOMPLETE, command_text, decode, line
from initiator_sim.packets import ISCSI_NopOut
from tests.unit.wire.golden_files import conversations, read

INITIATOR, TARGET = ("192.0.2.1", 40000), ("192.0.2.2", 3260)


def segments(conversation: Path, size: int, port: int = 3260) -> list[Ether]:
    """The conversation as TCP segments of at most `size` bytes, sequence numbers about to wrap."""
    sequence = {True: 0xFFFFFF00, False: 7}
    target = (TARGET[0], port)
    packets = []
    for pdu in read(conversation):
        source, destination = (INITIATOR, target) if pdu.from_initiator else (target, INITIATOR)
        for start in range(0, len(pdu.raw), size):
            part = pdu.raw[start : start + size]
            number = sequence[pdu.from_initiator]
            sequence[pdu.from_initiator] = number + len(part) & 0xFFFFFFFF
            ip = IP(src=source[0], dst=destination[0])
            tcp = TCP(sport=source[1], dport=destination[1], flags="PA", seq=number)
            packets.append(Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / ip / tcp / Raw(part))
    return packets


@pytest.mark.parametrize("path", conversations(), ids=lambda path: path.stem)
def test_every_pdu_comes_back(path: Path, tmp_path: Path) -> None:
    wrpcap(str(tmp_path / "capture.pcap"), segments(path, 700))
    found = list(decode(tmp_path / "capture.pcap"))
    assert [pdu["pdu"] for pdu in found] == [pdu.name.replace(" Function", "") for pdu in read(path)]
    assert all(line(pdu) for pdu in found)


def test_segments_twice_and_out_of_order(tmp_path: Path) -> None:
    path = next(path for path in conversations() if path.stem == "qemu_io_write_read")
    packets = segments(path, 1400)
    for index in range(4, len(packets) - 1, 3):
        packets[index], packets[index + 1] = packets[index + 1], packets[index]
    packets = [packet for packet in packets for _ in range(2)]
    wrpcap(str(tmp_path / "capture.pcap"), packets)
    names = [pdu["pdu"] for pdu in decode(tmp_path / "capture.pcap")]
    assert sorted(names) == sorted(pdu.name for pdu in read(path))


def test_a_missing_segment_is_told(tmp_path: Path) -> None:
    path = next(path for path in conversations() if path.stem == "qemu_img_info")
    packets = segments(path, 100)
    del packets[10]
    wrpcap(str(tmp_path / "capture.pcap"), packets)
    with pytest.raises(ValueError, match="missing"):
        list(decode(tmp_path / "capture.pcap"))


def test_the_largest_segments_there_are(tmp_path: Path) -> None:
    """The loopback has packets of 65535 bytes, and a link header before them."""
    said = bytes(ISCSI_NopOut(data=bytes(1 << 16)))
    sizes = 65535 - 40
    packets = []
    for start in range(0, len(said), sizes):
        tcp = TCP(sport=INITIATOR[1], dport=TARGET[1], flags="PA", seq=start)
        ip = IP(src=INITIATOR[0], dst=TARGET[0])
        packets.append(Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / ip / tcp / said[start : start + sizes])
    wrpcap(str(tmp_path / "capture.pcap"), packets)
    (found,) = decode(tmp_path / "capture.pcap")
    assert (found["pdu"], found["fields"]["data_segment_length"]) == ("NOP-Out", 1 << 16)


def test_what_is_no_whole_pdu_is_told(tmp_path: Path) -> None:
    path = next(path for path in conversations() if path.stem == "qemu_img_info")
    packets = segments(path, 100)
    wrpcap(str(tmp_path / "capture.pcap"), packets[:1])
    (found,) = decode(tmp_path / "capture.pcap")
    assert (found["pdu"], found["fields"]) == (INCOMPLETE, {"bytes": 100})
    assert line(found).endswith("incomplete PDU: bytes=100")


def test_another_port(tmp_path: Path) -> None:
    path = next(path for path in conversations() if path.stem == "libiscsi_discovery")
    wrpcap(str(tmp_path / "capture.pcap"), segments(path, 700, port=4000))
    assert list(decode(tmp_path / "capture.pcap")) == []
    found = list(decode(tmp_path / "capture.pcap", 4000))
    assert any("SendTargets" in pdu.get("keys", {}) for pdu in found)


def test_something_else_than_a_capture(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("this is no capture, whatever its name says")
    with pytest.raises(ValueError, match="no capture"):
        list(decode(tmp_path / "text"))


@pytest.mark.parametrize(
    ("cdb", "text"),
    [
        ("88000000000000000010000000080000", "READ(16) LBA 16 blocks 8"),
        ("2a000000000700000100000000000000", "WRITE(10) LBA 7 blocks 1"),
        ("12018300ff0000000000000000000000", "INQUIRY page 83h"),
        ("ee000000000000000000000000000000", "command eeh"),
    ],
)
def test_commands_are_named(cdb: str, text: str) -> None:
    assert command_text(bytes.fromhex(cdb)) == text
