"""What an attacker does, step by step, and who carries it out.

A case is a list of steps made from a seed. Steps hold no number that depends on the connection: a CmdSN is a distance
from the next one, "the R2T" is whichever is open, so a case can be cut down to the steps that matter and run again.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

from initiator_sim.packets import ISCSI, digests
from san_target.session.connection import Connection, Stage
from san_target.wire import opcodes
from san_target.wire.digest import digest
from san_target.wire.text import encode_pairs
from tests.hostile.battlefield import ATTACKED, ATTACKER, BLOCK, LIMITS, Battlefield, FieldHost, feed
from tests.hostile.judge import Judge

_HEADER = struct.Struct(">BBHIQIIII16s")
_MASK = 0xFFFFFFFF
ISID = 0x8000DEAD0000


class Step(Protocol):
    async def run(self, attacker: Attacker) -> None: ...


def _short(step: Any) -> str:
    """A step by what is special about it."""
    shown = []
    for each in fields(step):
        value = getattr(step, each.name)
        if value == each.default:
            continue
        if isinstance(value, bytes) and len(value) > 32:
            value = f"{len(value)} bytes {value[:12].hex()}..."
        shown.append(f"{each.name}={value!r}")
    return f"{type(step).__name__}({', '.join(shown)})"


@dataclass(slots=True, repr=False)
class Send:
    """One PDU. What is left out is as a well-behaved initiator has it.

    cmd_sn       distance from the next CmdSN; 0 takes it
    word20       bytes 20-23 (EDTL, TTT, ...)
    data_length, ahs_words   what the header says, if that is not the truth
    header_digest, data_digest   XORed onto the right one, where digests were negotiated
    part         only these bytes of it are sent: (first, behind the last)
    """

    opcode: int
    flags: int = 0x80
    tag: int | None = None
    word20: int = opcodes.RESERVED_TAG
    tail: bytes = b""
    data: bytes = b""
    immediate: bool = False
    cmd_sn: int = 0
    lun: int = 0
    bytes2: int = 0
    exp_stat_sn: int = 1
    ahs: bytes = b""
    ahs_words: int | None = None
    data_length: int | None = None
    header_digest: int = 0
    data_digest: int = 0
    padding: bytes | None = None
    part: tuple[int, int] | None = None

    __repr__ = _short

    async def run(self, attacker: Attacker) -> None:
        attacker.feed(self.encode(attacker))

    def encode(self, attacker: Attacker) -> bytes:
        numbered = self.opcode != opcodes.DATA_OUT
        cmd_sn = attacker.next_cmd_sn + self.cmd_sn & _MASK if numbered else 0
        if numbered and not self.immediate and self.cmd_sn == 0:
            attacker.next_cmd_sn = cmd_sn + 1 & _MASK
        bhs = _HEADER.pack(
            self.opcode | (0x40 if self.immediate else 0),
            self.flags,
            self.bytes2,
            (self._ahs_words() & 0xFF) << 24 | self._data_length() & 0xFFFFFF,
            self.lun,
            attacker.new_tag() if self.tag is None else self.tag,
            self.word20,
            cmd_sn,
            self.exp_stat_sn,
            self.tail.ljust(16, b"\0"),
        )
        frame = bhs + self.ahs
        if attacker.header_digest:
            frame += _damaged(digest(frame), self.header_digest)
        if self.data:
            padded = self.data + (bytes(-len(self.data) % 4) if self.padding is None else self.padding)
            frame += padded
            if attacker.data_digest:
                frame += _damaged(digest(padded), self.data_digest)
        return frame if self.part is None else frame[self.part[0] : self.part[1]]

    def _ahs_words(self) -> int:
        return len(self.ahs) // 4 if self.ahs_words is None else self.ahs_words

    def _data_length(self) -> int:
        return len(self.data) if self.data_length is None else self.data_length


def _damaged(good: bytes, mask: int) -> bytes:
    return (int.from_bytes(good, "big") ^ mask).to_bytes(4, "big") if mask else good


@dataclass(slots=True)
class Crafted:
    """A PDU built by scapy: a layer's opcode, and the fields to set. CmdSN as in `Send`, unless fields have it."""

    opcode: int
    fields: dict[str, Any]

    async def run(self, attacker: Attacker) -> None:
        layer = ISCSI.by_opcode.get(self.opcode, ISCSI)
        values = dict(self.fields)
        if any(each.name == "cmd_sn" for each in layer.fields_desc) and "cmd_sn" not in values:
            values["cmd_sn"] = attacker.next_cmd_sn
            if not values.get("immediate"):
                attacker.next_cmd_sn = attacker.next_cmd_sn + 1 & _MASK
        with digests(header=attacker.header_digest, data=attacker.data_digest):
            attacker.feed(bytes(layer(**values)))


@dataclass(slots=True, repr=False)
class Raw:
    """Bytes that need not be PDUs, received in pieces of `piece` bytes (0 = at once)."""

    data: bytes
    piece: int = 0

    __repr__ = _short

    async def run(self, attacker: Attacker) -> None:
        for start in range(0, len(self.data), self.piece or max(1, len(self.data))):
            attacker.feed(self.data[start : start + (self.piece or len(self.data))])


@dataclass(slots=True, repr=False)
class AnswerR2T:
    """Data-Out for an open R2T (number `which` of them), each field moved by so much from where it should be."""

    which: int = 0
    ttt: int = 0
    data_sn: int = 0
    offset: int = 0
    length: int = 0
    pieces: int = 1
    final: bool = True
    tag: int = 0

    __repr__ = _short

    async def run(self, attacker: Attacker) -> None:
        if not attacker.judge.r2ts:
            return
        r2t = attacker.judge.r2ts[self.which % len(attacker.judge.r2ts)]
        attacker.judge.r2ts.remove(r2t)
        offset, desired = r2t.word(40), max(0, r2t.word(44) + self.length)
        step = -(-desired // self.pieces) or 1
        for number, start in enumerate(range(0, desired or 1, step)):
            part = bytes(min(step, desired - start))
            last = start + step >= desired
            await Send(
                opcodes.DATA_OUT,
                0x80 if last and self.final else 0,
                tag=r2t.word(16) + self.tag & _MASK,
                word20=r2t.word(20) + self.ttt & _MASK,
                tail=struct.pack(">4xII4x", number + self.data_sn & _MASK, offset + start + self.offset & _MASK),
                data=part,
            ).run(attacker)


@dataclass(slots=True)
class Wait:
    """Let everything under way come to its end, or as far as the device lets it."""

    async def run(self, attacker: Attacker) -> None:
        await attacker.settle()


@dataclass(slots=True)
class Pass:
    """Time passes, with a tick each second."""

    seconds: int

    async def run(self, attacker: Attacker) -> None:
        for _ in range(self.seconds):
            attacker.field.time_s += 1.0
            attacker.connection.tick(attacker.field.time_s)
            attacker.host.flush()


@dataclass(slots=True)
class Device:
    """at_once: nothing needs waiting; else commands wait, and with `held` until the device is told otherwise."""

    at_once: bool = True
    held: bool = False

    async def run(self, attacker: Attacker) -> None:
        device = attacker.field.device
        device.at_once = self.at_once
        if self.held:
            device.pause()
        else:
            device.resume()


@dataclass(slots=True, repr=False)
class LogIn:
    """A new connection, brought to a stage. stage: None, "security", "operational", "discovery" or "full".

    again: also if the one there is in this stage already. beside: the one there stays open meanwhile.
    """

    stage: str | None = "full"
    header_digest: bool = False
    data_digest: bool = False
    keys: Sequence[tuple[str, str]] = ()
    again: bool = False
    first_cmd_sn: int = 1
    beside: bool = False

    __repr__ = _short

    async def run(self, attacker: Attacker) -> None:
        wanted = (self.stage, self.header_digest, self.data_digest, tuple(self.keys), self.first_cmd_sn)
        if not self.again and attacker.usable_as(wanted):
            return
        if self.beside:
            attacker.left_open.append((attacker.host, attacker.connection, attacker.judge))
        else:
            await attacker.leave()
        attacker.connect(wanted)
        attacker.next_cmd_sn = self.first_cmd_sn
        if self.stage is None:
            return
        attacker.feed(self._request(attacker))
        await attacker.settle()
        if self.stage in ("discovery", "full"):
            state = Stage.DISCOVERY if self.stage == "discovery" else Stage.FULL_FEATURE
            assert attacker.connection.stage is state, f"cannot log in: {attacker.connection.close_reason}"
            attacker.header_digest, attacker.data_digest = self.header_digest, self.data_digest

    def _request(self, attacker: Attacker) -> bytes:
        kind = "Discovery" if self.stage == "discovery" else "Normal"
        pairs = [("InitiatorName", ATTACKER), ("SessionType", kind)]
        pairs += [] if kind == "Discovery" else [("TargetName", ATTACKED)]
        flags = {"security": 0x00, "operational": 0x04}.get(self.stage or "", 0x87)
        if flags & 0x0C:
            pairs += [("HeaderDigest", "CRC32C")] if self.header_digest else []
            pairs += [("DataDigest", "CRC32C")] if self.data_digest else []
            pairs += self.keys
        data = encode_pairs(pairs)
        isid = ISID << 16
        bhs = _HEADER.pack(0x43, flags, 0, len(data), isid, 1, 0, attacker.next_cmd_sn, 1, bytes(16))
        return bhs + data + bytes(-len(data) % 4)


@dataclass(slots=True)
class Ready:
    """Take the unit attentions that stand before every command; with `heal`, undo what earlier ones did before."""

    heal: bool = True

    async def run(self, attacker: Attacker) -> None:
        if self.heal and not attacker.field.background:
            attacker.field.heal()
        for _ in range(4):
            before = attacker.judge.outcomes["GOOD"]
            await Send(opcodes.SCSI_COMMAND, 0x81, word20=0).run(attacker)
            await attacker.settle()
            if attacker.judge.outcomes["GOOD"] > before:
                return


@dataclass
class Attacker:
    """Carries out steps on one connection at a time, each of its connections under a judge."""

    field: Battlefield
    next_cmd_sn: int = 1
    header_digest: bool = False
    data_digest: bool = False
    judges: list[Judge] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        self._tag = 0x1000
        self.left_open: list[tuple[FieldHost, Connection, Judge]] = []
        self.connect(None)

    def connect(self, state: object) -> None:
        self.host: FieldHost
        self.connection: Connection
        self.host, self.connection = self.field.connect()
        self.judge = Judge(self.connection, LIMITS)
        self.judges.append(self.judge)
        self.header_digest = self.data_digest = False
        self._state = state

    def usable_as(self, state: object) -> bool:
        """Is the connection there in this state, with no half PDU in it?"""
        connection = self.connection
        if self._state != state or connection.stage not in (Stage.DISCOVERY, Stage.FULL_FEATURE):
            return False
        self.next_cmd_sn = connection.exp_cmd_sn
        return not (connection.framer.unfinished_bytes or connection.held or len(connection.tasks) > 8)

    def new_tag(self) -> int:
        self._tag += 1
        return self._tag

    def feed(self, data: bytes) -> None:
        feed(self.connection, data, self.judge.watch)
        self.judge.hear(self.host.sent)

    async def settle(self) -> None:
        await self.field.settle(self.host, *(host for host, _, _ in self.left_open))
        for host, _, judge in (*self.left_open, (self.host, self.connection, self.judge)):
            host.flush()
            judge.hear(host.sent)

    async def leave(self) -> None:
        """All network connections end."""
        self.field.device.resume()
        for _, connection, _ in self.left_open:
            connection.lost()
        self.connection.lost()
        await self.settle()
        self._rest(busy=False)
        self.left_open.clear()

    def _rest(self, busy: bool) -> None:
        for _, _, judge in self.left_open:
            judge.rest(busy)
        self.judge.rest(busy)

    async def run(self, steps: Sequence[Step]) -> None:
        """All steps, then until rest, with every rule checked on the way."""
        for step in steps:
            await step.run(self)
        await self.settle()
        self._rest(busy=self.field.device.paused)
        self.field.device.resume()
        self.field.device.at_once = True
        await self.settle()
        self._rest(busy=False)
        if self.field.errors:
            error = self.field.errors.pop()
            raise AssertionError(f"a defect was run into: {error!r}") from error


def write_10(lba: int, blocks: int) -> bytes:
    return struct.pack(">BxIxHx", 0x2A, lba, blocks)


def read_10(lba: int, blocks: int) -> bytes:
    return struct.pack(">BxIxHx", 0x28, lba, blocks)


def write(lba: int, blocks: int, data: bytes = b"", *, final: bool = True, **changes: Any) -> Send:
    """A WRITE (10) with the expected length that it needs."""
    flags = (0xA1 if final else 0x21) & 0xFF
    values: dict[str, Any] = {"word20": blocks * BLOCK, "tail": write_10(lba, blocks), "data": data} | changes
    return Send(opcodes.SCSI_COMMAND, flags, **values)


def read(lba: int, blocks: int, **changes: Any) -> Send:
    values: dict[str, Any] = {"word20": blocks * BLOCK, "tail": read_10(lba, blocks)} | changes
    return Send(opcodes.SCSI_COMMAND, 0xC1, **values)
