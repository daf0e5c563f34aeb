"""A small initiator on a blocking socket, made of `san_target.wire` alone: one session, commands with their sense.

It does what a test tells it and nothing by itself: no retry, no reconnection, no hiding of unit attentions (`ready`
takes those that a login owes). Unsolicited data is immediate data only; what is longer goes by R2T.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from struct import Struct
from typing import NamedTuple

from san_target.wire import opcodes, pdus
from san_target.wire.hot import HEADER
from san_target.wire.text import decode_pairs, encode_pairs

NAME = "iqn.1993-08.org.debian:01:tester"
GOOD, CHECK_CONDITION, BUSY, RESERVATION_CONFLICT = 0x00, 0x02, 0x08, 0x18
DATA_SEGMENT_BYTES = 1 << 18
_FINAL, _READ, _WRITE, _SIMPLE = 0x80, 0x40, 0x20, 0x01
_HALF = 1 << 31
_NUMBERS = Struct(">24xIII12x").unpack  # StatSN, ExpCmdSN, MaxCmdSN: the same bytes in every answer
_DATA_OUT = Struct(">BBxxIQII4xI4xII4x").pack  # RFC 7143 11.7
_OFFERED = {
    "HeaderDigest": "None",
    "DataDigest": "None",
    "InitialR2T": "Yes",
    "ImmediateData": "Yes",
    "MaxRecvDataSegmentLength": str(DATA_SEGMENT_BYTES),
    "MaxBurstLength": str(DATA_SEGMENT_BYTES),
    "FirstBurstLength": str(DATA_SEGMENT_BYTES),
}


class Ended(Exception):
    """The target ended the connection; `events` of the initiator tells what it said before."""


class Result(NamedTuple):
    """How a command ended. sense: without its length field."""

    status: int
    data: bytes
    sense: bytes

    @property
    def condition(self) -> tuple[int, int, int] | None:
        """Sense key, ASC and ASCQ of fixed format sense data (SPC-4 4.5.3)."""
        return (self.sense[2] & 0x0F, self.sense[12], self.sense[13]) if len(self.sense) >= 14 else None


class RawInitiator:
    """One connection; `events` collects the codes of asynchronous messages. Blocking calls take `timeout_s` at most."""

    def __init__(
        self, portal: str, timeout_s: float = 30.0, receive_buffer_bytes: int | None = None, source: str = ""
    ) -> None:
        """source: the address that it comes from."""
        host, _, port = portal.rpartition(":")
        self.socket = socket.socket()
        self.socket.bind((source, 0))
        if receive_buffer_bytes is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        self.socket.settimeout(timeout_s)
        self.socket.connect((host, int(port)))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.events: list[int] = []
        self._stream = self.socket.makefile("rb", buffering=1 << 18)
        self._cmd_sn = self._max_cmd_sn = 1
        self._exp_stat_sn = 0
        self._last_tag = 0
        self._immediate_bytes_max = 0
        self._segment_bytes_max = 8192
        self._out: dict[int, memoryview] = {}
        self._in: dict[int, bytearray] = {}
        self._results: dict[int, Result] = {}

    def login(self, iqn: str, name: str = NAME, isid: bytes = b"\x80\0\0\0\0\1") -> int:
        """Log in without authentication; returns status class << 8 | status detail."""
        data = encode_pairs({"InitiatorName": name, "SessionType": "Normal", "TargetName": iqn, **_OFFERED}.items())
        self._send(
            pdus.build(
                opcodes.LOGIN_REQUEST,
                len(data),
                transit=True,
                current_stage=1,
                next_stage=3,
                isid=isid,
                cmd_sn=self._cmd_sn,
            ),
            data,
        )
        header, answer = self._receive()
        fields = pdus.parse(header)
        assert fields.opcode == opcodes.LOGIN_RESPONSE, f"opcode 0x{fields.opcode:02x} instead of a Login Response"
        if fields.status_class == 0:
            keys = dict(decode_pairs(answer))
            self._segment_bytes_max = int(keys["MaxRecvDataSegmentLength"])
            self._immediate_bytes_max = min(self._segment_bytes_max, int(keys["FirstBurstLength"]))
        return int(fields.status_class) << 8 | int(fields.status_detail)

    def ready(self) -> RawInitiator:
        """Take the unit attentions that a login owes."""
        for _ in range(8):
            if self.command(bytes(6)).status == GOOD:
                return self
        raise AssertionError("the logical unit does not become ready")

    # --- commands -------------------------------------------------------------------------------------------------

    def command(self, cdb: bytes, data: bytes = b"", read_bytes: int = 0) -> Result:
        return self.wait(self.submit(cdb, data, read_bytes))

    def good(self, cdb: bytes, data: bytes = b"", read_bytes: int = 0) -> bytes:
        """The data of a command that must end with GOOD."""
        result = self.command(cdb, data, read_bytes)
        assert result.status == GOOD, f"CDB {cdb.hex()}: status 0x{result.status:02x}, sense {result.condition}"
        return result.data

    def submit(self, cdb: bytes, data: bytes = b"", read_bytes: int = 0) -> int:
        """Send a command; returns its task tag. Ended: the connection is gone."""
        while self._max_cmd_sn - self._cmd_sn & 0xFFFFFFFF >= _HALF:
            self._handle(*self._receive())
        self._last_tag = tag = self._last_tag % 0x7FFFFFFF + 1
        immediate = data[: self._immediate_bytes_max]
        flags = _FINAL | _SIMPLE | (_READ if read_bytes else 0) | (_WRITE if data else 0)
        expected = len(data) or read_bytes
        self._out[tag], self._in[tag] = memoryview(data), bytearray()
        header = (len(immediate), 0, tag, expected, self._cmd_sn, self._exp_stat_sn, cdb.ljust(16, b"\0"))
        self._cmd_sn = self._cmd_sn + 1 & 0xFFFFFFFF
        self._send(HEADER.pack(opcodes.SCSI_COMMAND, flags, 0, *header), immediate)
        return tag

    def wait(self, tag: int) -> Result:
        """The result of a submitted command. Ended: the connection ended first."""
        while tag not in self._results:
            self._handle(*self._receive())
        return self._results.pop(tag)

    def outcomes(self, tags: Iterable[int]) -> dict[int, Result]:
        """The results of those commands that were answered before the connection ended, if it did."""
        found = {}
        for tag in tags:
            try:
                found[tag] = self.wait(tag)
            except Ended:
                break
        return found | {tag: self._results[tag] for tag in tags if tag in self._results}

    # --- the end --------------------------------------------------------------------------------------------------

    def logout(self) -> None:
        """End the session in order."""
        self._last_tag += 1
        fields = {"initiator_task_tag": self._last_tag, "cmd_sn": self._cmd_sn, "exp_stat_sn": self._exp_stat_sn}
        self._send(pdus.build(opcodes.LOGOUT_REQUEST, 0, immediate=True, **fields))
        while (header := self._receive()[0])[0] & opcodes.OPCODE_MASK != opcodes.LOGOUT_RESPONSE:
            pass
        assert pdus.parse(header).response == 0
        self.close()

    def read_to_the_end(self) -> None:
        """Return when the target has ended the connection; TimeoutError if it does not."""
        try:
            while True:
                self._handle(*self._receive())
        except Ended:
            self.close()

    def close(self) -> None:
        self._stream.close()
        self.socket.close()

    # --- PDUs -----------------------------------------------------------------------------------------------------

    def _send(self, header: bytes, data: bytes | memoryview = b"") -> None:
        try:
            self.socket.sendall(b"".join((header, data, bytes(-len(data) % 4))))
        except ConnectionError as error:
            raise Ended(str(error)) from None

    def _receive(self) -> tuple[bytes, bytes]:
        header = self._read(opcodes.BHS_BYTES)
        length = int.from_bytes(header[5:8], "big")
        return header, self._read(length + 3 & ~3)[:length]

    def _read(self, count: int) -> bytes:
        try:
            data = self._stream.read(count)
        except ConnectionError as error:
            raise Ended(str(error)) from None
        if data is None or len(data) < count:
            raise Ended("the target ended the connection")
        return data

    def _handle(self, header: bytes, data: bytes) -> None:
        opcode = header[0] & opcodes.OPCODE_MASK
        stat_sn, _, self._max_cmd_sn = _NUMBERS(header)
        tag = int.from_bytes(header[16:20], "big")
        if opcode == opcodes.DATA_IN:
            offset = int.from_bytes(header[40:44], "big")
            assert offset == len(self._in[tag]), "Data-In out of order"
            self._in[tag] += data
            if not header[1] & 0x01:  # no status, and so no StatSN
                return
            self._finish(tag, Result(header[3], bytes(self._in[tag]), b""))
        elif opcode == opcodes.SCSI_RESPONSE:
            assert header[2] == 0, f"response 0x{header[2]:02x}"
            self._finish(tag, Result(header[3], bytes(self._in[tag]), data[2:]))
        elif opcode == opcodes.R2T:
            self._answer(tag, pdus.parse(header))
            return
        elif opcode == opcodes.NOP_IN:
            self._pong(header)
            return
        elif opcode == opcodes.ASYNC_MESSAGE:
            self.events.append(header[36])
        else:
            raise AssertionError(f"unexpected PDU {pdus.parse(header)}")
        self._exp_stat_sn = stat_sn + 1 & 0xFFFFFFFF

    def _finish(self, tag: int, result: Result) -> None:
        self._results[tag] = result
        del self._out[tag], self._in[tag]

    def _answer(self, tag: int, asked: pdus.Container) -> None:
        """Data-Out PDUs for an R2T (RFC 7143 11.8)."""
        first, end = asked.buffer_offset, asked.buffer_offset + asked.desired_data_transfer_length
        for number, offset in enumerate(range(first, end, self._segment_bytes_max)):
            part = self._out[tag][offset : min(offset + self._segment_bytes_max, end)]
            flags = _FINAL if offset + len(part) == end else 0
            numbers = (tag, asked.target_transfer_tag, self._exp_stat_sn, number, offset)
            self._send(_DATA_OUT(opcodes.DATA_OUT, flags, len(part), 0, *numbers), part)

    def _pong(self, header: bytes) -> None:
        """Answer a ping of the target (RFC 7143 11.18)."""
        transfer_tag = int.from_bytes(header[20:24], "big")
        if transfer_tag != opcodes.RESERVED_TAG:
            fields = {"target_transfer_tag": transfer_tag, "cmd_sn": self._cmd_sn, "exp_stat_sn": self._exp_stat_sn}
            tag = opcodes.RESERVED_TAG
            self._send(pdus.build(opcodes.NOP_OUT, 0, immediate=True, initiator_task_tag=tag, **fields))


# --- CDBs (SBC-3); LBA and counts in logical blocks -------------------------------------------------------------------


def _cdb16(opcode: int, lba: int, blocks: int, flags: int = 0) -> bytes:
    return bytes((opcode, flags)) + lba.to_bytes(8, "big") + blocks.to_bytes(4, "big") + bytes(2)


def read16(lba: int, blocks: int) -> bytes:
    return _cdb16(0x88, lba, blocks)


def write16(lba: int, blocks: int, fua: bool = False) -> bytes:
    return _cdb16(0x8A, lba, blocks, 0x08 if fua else 0)


def synchronize_cache(lba: int = 0, blocks: int = 0) -> bytes:
    return _cdb16(0x91, lba, blocks)


def write_same16(lba: int, blocks: int) -> bytes:
    return _cdb16(0x93, lba, blocks)


def write_atomic16(lba: int, blocks: int) -> bytes:
    return b"\x9c\0" + lba.to_bytes(8, "big") + bytes(2) + blocks.to_bytes(2, "big") + bytes(2)


def or_write16(lba: int, blocks: int) -> bytes:
    return _cdb16(0x8B, lba, blocks)


def compare_and_write(lba: int, blocks: int = 1, fua: bool = False) -> bytes:
    """The data is what to compare with, then what to write."""
    return bytes((0x89, 0x08 if fua else 0)) + lba.to_bytes(8, "big") + bytes((0, 0, 0, blocks, 0, 0))


UNMAP = bytes.fromhex("42 00 00 00 00 00 00 00 18 00")


def unmap_parameters(lba: int, blocks: int) -> bytes:
    """The parameter list of `UNMAP` for one range."""
    return bytes.fromhex("0016 0010 00000000") + lba.to_bytes(8, "big") + blocks.to_bytes(4, "big") + bytes(4)
