"""A target on a real socket that copes with anything, but for one fault: an opcode that does not exist sets it off."""

from __future__ import annotations

import asyncio
import contextlib
from enum import Enum
from typing import Any

from san_target.wire import opcodes, pdus
from san_target.wire.text import TextError, decode_pairs, encode_pairs

BLOCK = 512
BLOCKS = 2048
_KNOWN = frozenset({0, 1, 2, 3, 4, 5, 6, 0x10})


class Fault(Enum):
    NONE = "none"
    CRASH = "it is gone, with all connections"
    HANG = "it answers nothing any more"
    REFUSES = "it refuses new logins"
    DROPS_OTHERS = "it closes other sessions' connections"
    GARBAGE = "it answers with what is no PDU"
    CHANGES_DATA = "its blocks change"


class FragileTarget:
    """`async with` it; portal is where it listens. hit: the fault was set off; received: whole PDUs, by connection."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.hit = False
        self.portal = ""
        self.received: list[bytearray] = []
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> FragileTarget:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=256)
        host, port = self._server.sockets[0].getsockname()
        self.portal = f"{host}:{port}"
        return self

    async def __aexit__(self, *error: object) -> None:
        self._end()

    def _end(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            await _Session(self, reader, writer).serve()
        self._writers.discard(writer)
        writer.close()

    def strike(self, writer: asyncio.StreamWriter) -> None:
        """An opcode that does not exist has come."""
        self.hit = True
        if self.fault is Fault.CRASH:
            self._end()
        elif self.fault is Fault.DROPS_OTHERS:
            for other in self._writers - {writer}:
                other.transport.abort()
        elif self.fault is Fault.GARBAGE:
            writer.write(b"\x07garbage" * 12)


class _Session:
    def __init__(self, target: FragileTarget, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._target = target
        self._reader = reader
        self._writer = writer
        self._stat_sn = 1
        self._exp_cmd_sn = 1
        self._full = False
        self._received = bytearray()
        target.received.append(self._received)

    async def serve(self) -> None:
        while True:
            bhs = await self._reader.readexactly(48)
            headers = await self._reader.readexactly(4 * bhs[4])
            length = int.from_bytes(bhs[5:8], "big")
            padded = await self._reader.readexactly(length + 3 & ~3)
            data = padded[:length]
            self._received += bhs + headers + padded
            opcode = bhs[0] & opcodes.OPCODE_MASK
            if opcode not in _KNOWN:
                self._target.strike(self._writer)
                return
            if self._target.hit and self._target.fault is Fault.HANG:
                await asyncio.sleep(3600)
            if not self._answer(pdus.parse(bhs), data):
                return
            await self._writer.drain()

    def _send(self, opcode: int, data: bytes = b"", **fields: Any) -> None:
        numbers = {"stat_sn": self._stat_sn, "exp_cmd_sn": self._exp_cmd_sn, "max_cmd_sn": self._exp_cmd_sn + 63}
        self._stat_sn += 1
        numbers = {name: value & 0xFFFFFFFF for name, value in numbers.items()}
        self._writer.write(pdus.build(opcode, len(data), **(numbers | fields)) + data + bytes(-len(data) % 4))

    def _answer(self, header: Any, data: bytes) -> bool:
        """False ends the connection."""
        if header.opcode == opcodes.LOGIN_REQUEST:
            return not self._full and self._log_in(header, data)
        if not self._full or header.opcode in (opcodes.DATA_OUT, opcodes.SNACK_REQUEST):
            return False
        if not header.immediate:
            self._exp_cmd_sn = header.cmd_sn + 1
        itt = {"initiator_task_tag": header.initiator_task_tag}
        if header.opcode == opcodes.NOP_OUT:
            self._send(opcodes.NOP_IN, data, **itt)
        elif header.opcode == opcodes.TEXT_REQUEST:
            self._send(opcodes.TEXT_RESPONSE, final=True, **itt)
        elif header.opcode == opcodes.LOGOUT_REQUEST:
            self._send(opcodes.LOGOUT_RESPONSE, **itt)
        elif header.opcode == opcodes.SCSI_COMMAND and header.read:
            self._send(opcodes.DATA_IN, self._read(header), final=True, status_present=True, **itt)
        else:
            return False
        return True

    def _read(self, header: Any) -> bytes:
        length = min(header.expected_data_transfer_length, 8 * BLOCK)
        if header.cdb[0] == 0x9E:
            return ((BLOCKS - 1).to_bytes(8, "big") + BLOCK.to_bytes(4, "big")).ljust(32, b"\0")[:length]
        changed = self._target.hit and self._target.fault is Fault.CHANGES_DATA
        return (b"n" if changed else b"o") * length

    def _log_in(self, header: Any, data: bytes) -> bool:
        with contextlib.suppress(TextError):
            keys = dict(decode_pairs(data))
            status = 0x0300 if self._target.hit and self._target.fault is Fault.REFUSES else 0
            self._exp_cmd_sn = header.cmd_sn
            self._full = header.transit and header.next_stage == 3 and not status
            pairs = [(key, "None") for key in ("AuthMethod", "HeaderDigest", "DataDigest") if key in keys]
            self._send(
                opcodes.LOGIN_RESPONSE,
                encode_pairs(pairs),
                transit=header.transit,
                current_stage=header.current_stage,
                next_stage=header.next_stage,
                isid=bytes(header.isid),
                initiator_task_tag=header.initiator_task_tag,
                tsih=int(self._full),
                status_class=status >> 8,
                status_detail=status & 0xFF,
            )
            return not status
        return False
