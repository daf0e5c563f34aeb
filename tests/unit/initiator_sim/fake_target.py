"""A target on a real socket that does what a test tells it: redirect, ask for a logout, fall silent, answer READs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from san_target.wire import opcodes, pdus
from san_target.wire.text import decode_pairs, encode_pairs


class Visit:
    """One connection. `login_keys` is what the initiator said first; send() and drop() work while it lasts."""

    def __init__(self, target: FakeTarget, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.target = target
        self.login_keys: dict[str, str] = {}
        self.isid = b""
        self.logged_out = False
        self.commands: list[Any] = []
        self.requests: list[Any] = []
        self._reader = reader
        self._writer = writer
        self._stat_sn = 1
        self._exp_cmd_sn = 1

    async def receive(self) -> tuple[Any, bytes]:
        header = pdus.parse(await self._reader.readexactly(48))
        padded = await self._reader.readexactly(header.data_segment_length + 3 & ~3)
        return header, padded[: header.data_segment_length]

    def send(self, opcode: int, data: bytes = b"", **fields: Any) -> None:
        numbers = {"stat_sn": self._stat_sn, "exp_cmd_sn": self._exp_cmd_sn, "max_cmd_sn": self._exp_cmd_sn + 63}
        self._stat_sn += 1
        self._writer.write(pdus.build(opcode, len(data), **(numbers | fields)) + data + bytes(-len(data) % 4))

    def ask(self, event: int, time2wait_s: int = 0, sense: bytes = b"") -> None:
        """Send an asynchronous message."""
        data = len(sense).to_bytes(2, "big") + sense if sense else b""
        self.send(opcodes.ASYNC_MESSAGE, data, async_event=event, parameter2=time2wait_s)

    def drop(self) -> None:
        self._writer.close()

    async def serve(self) -> None:
        if not await self._log_in():
            return
        while True:
            header, data = await self.receive()
            if not header.immediate and header.opcode != opcodes.DATA_OUT:
                self._exp_cmd_sn = header.cmd_sn + 1
            self._answer(header, data)
            await self._writer.drain()

    async def _log_in(self) -> bool:
        while True:
            header, data = await self.receive()
            keys = dict(decode_pairs(data))
            self.login_keys = self.login_keys or keys
            self.isid = bytes(header.isid)
            self._exp_cmd_sn = header.cmd_sn
            usual = {"isid": self.isid, "current_stage": header.current_stage}
            redirect = self.target.redirect
            if redirect is not None:
                text = encode_pairs([("TargetAddress", redirect)])
                self.send(
                    opcodes.LOGIN_RESPONSE, text, status_class=1, status_detail=self.target.redirect_detail, **usual
                )
                return False
            if self.target.refusals:
                status = self.target.refusals.pop(0)
                self.send(opcodes.LOGIN_RESPONSE, status_class=status >> 8, status_detail=status & 0xFF, **usual)
                return False
            pairs = [("AuthMethod", "None")] if "AuthMethod" in keys else []
            pairs += [("DefaultTime2Wait", str(self.target.time2wait_s))] if header.current_stage == 1 else []
            last = header.next_stage == 3
            self.send(
                opcodes.LOGIN_RESPONSE,
                encode_pairs(pairs),
                transit=True,
                next_stage=header.next_stage,
                tsih=int(last),
                **usual,
            )
            if last:
                self.target.visits.append(self)
                self.target.arrived.set()
                return True

    def _answer(self, header: Any, data: bytes) -> None:
        itt = {"initiator_task_tag": header.initiator_task_tag}
        if header.opcode == opcodes.SCSI_COMMAND:
            self.commands.append(header)
            if self.target.statuses:
                self.send(opcodes.SCSI_RESPONSE, status=self.target.statuses.pop(0), **itt)
            elif not self.target.silent:
                length = header.expected_data_transfer_length
                self.send(opcodes.DATA_IN, bytes(length), final=True, status_present=True, **itt)
        elif header.opcode == opcodes.LOGOUT_REQUEST:
            self.logged_out = True
            if not self.target.deaf:
                self.send(opcodes.LOGOUT_RESPONSE, **itt)
            if not self.target.lingers:
                self.drop()
        elif header.opcode == opcodes.NOP_OUT and not self.target.silent:
            self.send(opcodes.NOP_IN, data, **itt)
        else:
            self.requests.append(header)
            if header.opcode == opcodes.TEXT_REQUEST:
                text = encode_pairs(self.target.text)
                self.send(opcodes.TEXT_RESPONSE, text, final=True, target_transfer_tag=opcodes.RESERVED_TAG, **itt)
            elif header.opcode == opcodes.TASK_MANAGEMENT_REQUEST and not self.target.deaf:
                self.send(opcodes.TASK_MANAGEMENT_RESPONSE, response=0, **itt)


class FakeTarget:
    """One portal. redirect: where every login is sent; refusals: login statuses to give first, one each.

    statuses: of the next commands; text: the answer to Text Requests; silent: answers no command and no NOP-Out;
    deaf: no task management and no Logout; lingers: leaves it to the initiator to close after a Logout.
    """

    def __init__(self) -> None:
        self.redirect: str | None = None
        self.redirect_detail = 1
        self.refusals: list[int] = []
        self.time2wait_s = 0
        self.statuses: list[int] = []
        self.text: list[tuple[str, str]] = []
        self.silent = False
        self.deaf = False
        self.lingers = False
        self.visits: list[Visit] = []
        self.connections = 0
        self.arrived = asyncio.Event()
        self.on_visit: Callable[[Visit], None] | None = None
        self._server: asyncio.Server | None = None
        self.portal = ""

    async def __aenter__(self) -> FakeTarget:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        self.portal = f"{host}:{port}"
        return self

    async def __aexit__(self, *error: object) -> None:
        assert self._server is not None
        self._server.close()
        for visit in self.visits:
            visit.drop()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            await Visit(self, reader, writer).serve()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def next_visit(self) -> Visit:
        """The next login after those already taken with this method."""
        async with asyncio.timeout(10):
            await self.arrived.wait()
        self.arrived.clear()
        return self.visits[-1]
