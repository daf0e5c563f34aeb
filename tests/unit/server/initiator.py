"""A small initiator on a real socket: enough to be logged in, to read and write, and to see a session end."""

import asyncio
from typing import Any

from san_target.wire import opcodes, pdus
from san_target.wire.text import decode_pairs, encode_pairs

NAME = "iqn.1993-08.org.debian:01:tester"


class Initiator:
    """One connection. CmdSN and tags count up from 1."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, isid: bytes) -> None:
        self._reader = reader
        self._writer = writer
        self._isid = isid
        self._number = 0
        self.login_keys: dict[str, str] = {}

    @classmethod
    async def connect(cls, portal: str, isid: bytes = b"\x80\0\0\0\0\1") -> "Initiator":
        host, _, port = portal.rpartition(":")
        return cls(*await asyncio.open_connection(host, int(port)), isid)

    async def login(self, iqn: str | None, name: str = NAME) -> int:
        """Without authentication; iqn None = a discovery session. Returns class and detail of the status."""
        keys = {"InitiatorName": name, "SessionType": "Discovery" if iqn is None else "Normal"}
        if iqn is not None:
            keys["TargetName"] = iqn
        self._send(
            opcodes.LOGIN_REQUEST,
            encode_pairs(keys.items()),
            transit=True,
            current_stage=1,
            next_stage=3,
            isid=self._isid,
            cmd_sn=self._number + 1,
        )
        header, data = await self.receive()
        self.login_keys = dict(decode_pairs(data))
        return int(header.status_class) << 8 | int(header.status_detail)

    async def send_targets(self) -> list[tuple[str, str]]:
        self._number += 1
        self._send(
            opcodes.TEXT_REQUEST,
            encode_pairs([("SendTargets", "All")]),
            final=True,
            initiator_task_tag=self._number,
            target_transfer_tag=opcodes.RESERVED_TAG,
            cmd_sn=self._number,
        )
        return decode_pairs((await self.receive())[1])

    async def command(self, cdb: bytes, data: bytes = b"", read: int = 0) -> tuple[int, bytes]:
        """(status, data or sense) of a command with immediate data."""
        self._number += 1
        self._send(
            opcodes.SCSI_COMMAND,
            data,
            final=True,
            attribute=1,
            read=bool(read),
            write=bool(data),
            initiator_task_tag=self._number,
            expected_data_transfer_length=read or len(data),
            cmd_sn=self._number,
            cdb=cdb.ljust(16, b"\0"),
        )
        received = b""
        while True:
            header, segment = await self.receive()
            if header.opcode == opcodes.DATA_IN:
                received += segment
                if header.status_present:
                    return int(header.status), received
            elif header.opcode == opcodes.SCSI_RESPONSE:
                return int(header.status), segment or received

    def begin_write(self, cdb: bytes, expected: int) -> None:
        """A command that announces data, without any; the target will ask for it."""
        self._number += 1
        self._send(
            opcodes.SCSI_COMMAND,
            b"",
            final=True,
            attribute=1,
            write=True,
            initiator_task_tag=self._number,
            expected_data_transfer_length=expected,
            cmd_sn=self._number,
            cdb=cdb.ljust(16, b"\0"),
        )

    async def ready(self) -> None:
        """Take the unit attention that a login owes."""
        for _ in range(4):
            status, _ = await self.command(bytes(6))
            if status == 0:
                return
        raise AssertionError("not ready")

    async def reset(self, function: int) -> int:
        """A task management function for LUN 0; its response."""
        self._number += 1
        fields = {"initiator_task_tag": self._number, "cmd_sn": self._number, "function": function}
        self._send(opcodes.TASK_MANAGEMENT_REQUEST, b"", immediate=True, **fields)
        header, _ = await self.receive()
        assert header.opcode == opcodes.TASK_MANAGEMENT_RESPONSE
        return int(header.response)

    async def logout(self) -> None:
        """End the session; returns with the target's answer."""
        self._number += 1
        fields = {"initiator_task_tag": self._number, "cmd_sn": self._number}
        self._send(opcodes.LOGOUT_REQUEST, b"", immediate=True, **fields)
        header, _ = await self.receive()
        assert (header.opcode, header.response) == (opcodes.LOGOUT_RESPONSE, 0)

    async def receive(self) -> tuple[Any, bytes]:
        header = pdus.parse(await self._reader.readexactly(48))
        padded = await self._reader.readexactly(header.data_segment_length + 3 & ~3)
        return header, padded[: header.data_segment_length]

    async def ended(self) -> bool:
        """Wait for the target to end the connection; what it still sends is read away."""
        try:
            while await self._reader.read(4096):
                pass
        except ConnectionError:
            pass
        self.close()
        return True

    def close(self) -> None:
        self._writer.close()

    def _send(self, opcode: int, data: bytes, **fields: Any) -> None:
        self._writer.write(pdus.build(opcode, len(data), **fields) + data + bytes(-len(data) % 4))
