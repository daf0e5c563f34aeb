"""Captures of iSCSI traffic, decoded PDU by PDU: one line each, or one JSON document."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from san_target.wire.opcodes import BHS_BYTES, RESERVED_TAG
from san_target.wire.text import TextError, decode_pairs

PORT: Final = 3260
FRAME_BYTES_MAX: Final = 1 << 18
INCOMPLETE: Final = "incomplete PDU"
COMMANDS: Final = {
    0x00: "TEST UNIT READY",
    0x03: "REQUEST SENSE",
    0x12: "INQUIRY",
    0x16: "RESERVE(6)",
    0x17: "RELEASE(6)",
    0x1A: "MODE SENSE(6)",
    0x1B: "START STOP UNIT",
    0x25: "READ CAPACITY(10)",
    0x28: "READ(10)",
    0x2A: "WRITE(10)",
    0x35: "SYNCHRONIZE CACHE(10)",
    0x41: "WRITE SAME(10)",
    0x42: "UNMAP",
    0x5A: "MODE SENSE(10)",
    0x5E: "PERSISTENT RESERVE IN",
    0x5F: "PERSISTENT RESERVE OUT",
    0x83: "EXTENDED COPY",
    0x88: "READ(16)",
    0x89: "COMPARE AND WRITE",
    0x8A: "WRITE(16)",
    0x8F: "VERIFY(16)",
    0x91: "SYNCHRONIZE CACHE(16)",
    0x93: "WRITE SAME(16)",
    0x9E: "SERVICE ACTION IN(16)",
    0xA0: "REPORT LUNS",
    0xA3: "MAINTENANCE IN",
    0xA8: "READ(12)",
    0xAA: "WRITE(12)",
}
_TEXT: Final = frozenset({"Login Request", "Login Response", "Text Request", "Text Response"})
# What a line shows, in this order, where the PDU has it and it says something.
_SHOWN: Final = (
    "initiator_task_tag",
    "target_transfer_tag",
    "cmd_sn",
    "stat_sn",
    "exp_stat_sn",
    "exp_cmd_sn",
    "max_cmd_sn",
    "data_sn",
    "r2t_sn",
    "buffer_offset",
    "desired_data_transfer_length",
    "expected_data_transfer_length",
    "status",
    "response",
    "reason",
    "function",
    "async_event",
    "parameter2",
    "status_class",
    "status_detail",
    "residual_count",
    "data_segment_length",
    "bytes",
)


class _Stream:
    """One direction of a TCP connection: segments in any order, some of them twice, become a stream again."""

    def __init__(self) -> None:
        self.buffer = bytearray()
        self.last_s = 0.0
        self._next: int | None = None
        self._early: dict[int, bytes] = {}

    def add(self, sequence: int, data: bytes, starts: bool) -> None:
        if starts:
            self._next, self.buffer = sequence + 1 & 0xFFFFFFFF, bytearray()
            self._early.clear()
        if not data:
            return
        if self._next is None:
            self._next = sequence
        self._early[sequence] = max(data, self._early.get(sequence, b""), key=len)
        while self._early:
            ready = [at for at in self._early if self._next - at & 0xFFFFFFFF < 1 << 31]
            if not ready:
                return
            for at in ready:
                fresh = self._early.pop(at)[self._next - at & 0xFFFFFFFF :]
                self.buffer += fresh
                self._next = self._next + len(fresh) & 0xFFFFFFFF

    @property
    def waits(self) -> bool:
        """True where bytes were captured that nothing leads up to: some segment is missing."""
        return bool(self._early)


def decode(file: Path, port: int = PORT) -> Iterator[dict[str, Any]]:
    """The PDUs of a capture file in the order captured; `port` is the target's.

    What is left at the end of a stream and is no whole PDU is told as one "incomplete PDU". Raises OSError, and
    ValueError for a file that is no capture, and for one in which bytes are missing.
    """
    from scapy.error import Scapy_Exception
    from scapy.layers.inet import TCP
    from scapy.utils import PcapReader

    from initiator_sim.packets import ISCSI, pdu_bytes

    try:
        reader = PcapReader(str(file))
    except Scapy_Exception as error:
        raise ValueError(f"{file} is no capture: {error}") from None
    streams: defaultdict[Any, _Stream] = defaultdict(_Stream)
    agreed: defaultdict[Any, dict[str, Any]] = defaultdict(dict)  # what a login said about digests, for both directions
    start_s: float | None = None
    with reader:
        for packet in _packets(reader):
            if TCP not in packet or port not in (packet[TCP].sport, packet[TCP].dport):
                continue
            start_s = float(packet.time) if start_s is None else start_s
            source, destination = _ends(packet)
            session = agreed[frozenset((source, destination))]
            if packet[TCP].flags.S:
                session.clear()
            stream = streams[source, destination]
            stream.last_s = float(packet.time)
            stream.add(packet[TCP].seq, _payload(packet), bool(packet[TCP].flags.S))
            while True:
                head = bytes(stream.buffer[: BHS_BYTES + 4])
                length = pdu_bytes(head, session.get("header_digest", False), session.get("data_digest", False))
                if length is None or len(stream.buffer) < length:
                    break
                pdu = ISCSI.tcp_reassemble(bytes(stream.buffer[:length]), {}, session)
                del stream.buffer[:length]
                yield _described(pdu, source, destination, float(packet.time) - start_s)
    if any(stream.waits for stream in streams.values()):
        raise ValueError(f"{file}: segments are missing; what came after them was not decoded")
    for (source, destination), stream in streams.items():
        if stream.buffer:
            at_s = round(stream.last_s - (start_s or 0.0), 6)
            fields = {"bytes": len(stream.buffer)}
            yield {"at_s": at_s, "from": source, "to": destination, "pdu": INCOMPLETE, "fields": fields}


def _packets(reader: Any) -> Iterator[Any]:
    """All packets. By itself scapy's reader cuts frames off at 64 KiB, which the loopback's exceed by their header."""
    while True:
        try:
            yield reader.read_packet(size=FRAME_BYTES_MAX)
        except EOFError:
            return


def _payload(packet: Any) -> bytes:
    """The bytes that TCP carries, without what the link layer padded."""
    from scapy.layers.inet import IP, TCP

    tcp = packet[TCP]
    data = bytes(tcp.payload.original or b"")
    if IP in packet:
        data = data[: packet[IP].len - 4 * packet[IP].ihl - 4 * tcp.dataofs]
    return data


def _ends(packet: Any) -> tuple[str, str]:
    """ "address:port" of sender and receiver."""
    from scapy.layers.inet import IP, TCP
    from scapy.layers.inet6 import IPv6

    tcp = packet[TCP]
    for layer, form in ((IP, "{}:{}"), (IPv6, "[{}]:{}")):
        if layer in packet:
            return form.format(packet[layer].src, tcp.sport), form.format(packet[layer].dst, tcp.dport)
    return f"?:{tcp.sport}", f"?:{tcp.dport}"


def _described(pdu: Any, source: str, destination: str, at_s: float) -> dict[str, Any]:
    name = pdu.name.removeprefix("iSCSI ")
    found: dict[str, Any] = {
        "at_s": round(at_s, 6),
        "from": source,
        "to": destination,
        "pdu": name,
        "fields": {field: value for field in pdu.fields if isinstance(value := pdu.getfieldval(field), int | bool)},
    }
    cdb = getattr(pdu, "cdb", None)
    if cdb is not None:
        found["command"] = command_text(bytes(cdb))
    if name in _TEXT and pdu.data:
        try:
            found["keys"] = dict(decode_pairs(bytes(pdu.data)))
        except TextError:
            found["text"] = repr(bytes(pdu.data))
    return found


def command_text(cdb: bytes) -> str:
    """A CDB as a person reads it: name, LBA and blocks of reads and writes."""
    name = COMMANDS.get(cdb[0], f"command {cdb[0]:02x}h")
    if cdb[0] in (0x28, 0x2A, 0x35, 0x41):
        return f"{name} LBA {int.from_bytes(cdb[2:6], 'big')} blocks {int.from_bytes(cdb[7:9], 'big')}"
    if cdb[0] in (0x88, 0x8A, 0x8F, 0x91, 0x93):
        return f"{name} LBA {int.from_bytes(cdb[2:10], 'big')} blocks {int.from_bytes(cdb[10:14], 'big')}"
    if cdb[0] == 0x12 and cdb[1] & 1:
        return f"{name} page {cdb[2]:02x}h"
    return name


def line(pdu: dict[str, Any]) -> str:
    """One PDU in one line."""
    fields = pdu["fields"]
    shown = [
        f"{name}={fields[name]}" for name in _SHOWN if name in fields and fields[name] not in (None, 0, RESERVED_TAG)
    ]
    detail = [pdu["command"]] if "command" in pdu else []
    detail += [f"{key}={value}" for key, value in pdu.get("keys", {}).items()]
    return f"{pdu['at_s']:10.6f} {pdu['from']} > {pdu['to']} {pdu['pdu']}: {' '.join(detail + shown)}"
