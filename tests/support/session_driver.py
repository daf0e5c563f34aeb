"""A hand-driven initiator for one `Connection`: PDUs go in as fields, answers come out as (header, data) pairs.

No sockets: the connection's bytes are cut up by its own framer and its answers parsed by the declarative codec, so a
test says exactly what is on the wire.
"""

import asyncio
import itertools
import time
from collections.abc import Coroutine, Iterable
from typing import Any

from construct import Container

from san_target.scsi.logical_unit import LogicalUnit
from san_target.session.connection import Connection, Stage
from san_target.session.host import Arena
from san_target.session.parameters import TargetLimits
from san_target.session.session import PortalCounters, Session
from san_target.session.target import Access, Moved, Target
from san_target.wire import opcodes, pdus
from san_target.wire.digest import digest
from san_target.wire.framer import LargeBuffers
from san_target.wire.text import decode_pairs, encode_pairs

IQN = "iqn.2026-01.io.san-target:test"
INITIATOR = "iqn.1993-08.org.debian:01:tester"
Answer = tuple[Container, bytes]


class OneTarget:
    """A directory with a single target."""

    def __init__(self, unit: LogicalUnit, access: Access | None = None) -> None:
        self.target = Target(IQN, "test", 1, unit, access or Access())
        self.redirect_to: str | None = None
        self.reinstatements: list[tuple[str, str]] = []
        self._tsih = itertools.count(1)

    def find(self, iqn: str) -> Target | None:
        return self.target if iqn == IQN else None

    async def look_up(self, iqn: str) -> Target | None:
        return None

    def visible_to(self, initiator_name: str) -> list[Target]:
        return [self.target] if self.target.access.admits(initiator_name) else []

    def portals_of(self, target: Target, asked_at: str) -> list[tuple[str, int]]:
        return [(asked_at, target.portal_group_tag)]

    async def place(self, target: Target, initiator_name: str, isid: bytes, asked_at: str) -> str | None:
        return self.redirect_to

    async def succeed(self, target: Target, initiator_name: str, isid: bytes, address: str) -> str:
        return ""

    def arrived(self, target: Target, initiator_name: str, isid: bytes) -> Moved | None:
        return None

    def reinstated(self, old: Session, by_address: str, now_s: float) -> None:
        self.reinstatements.append((old.address, by_address))

    def discovery_access(self) -> Access:
        return Access()

    def new_tsih(self) -> int:
        return next(self._tsih)


class DrivenHost:
    """A `Host` without a network: output is collected, time is set by the test."""

    def __init__(self, arena_bytes: int = 1 << 20) -> None:
        self.arena = Arena(arena_bytes)
        self.large_buffers = LargeBuffers(1 << 20)
        self.counters = PortalCounters()
        self.connection: Connection | None = None
        self.sent = bytearray()
        self.closed = False
        self.aborted = False
        self.errors: list[BaseException] = []
        self.time_s = time.monotonic()
        self.unsent_bytes = 0
        self.tasks: set[asyncio.Task[None]] = set()

    def flush(self) -> None:
        assert self.connection is not None
        outgoing, self.connection.outgoing = self.connection.outgoing, []
        self.connection.answers = 0
        for buffer in outgoing:
            self.sent += buffer
        self.arena.used_bytes = 0

    def wake(self) -> None:
        self.flush()

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def close(self) -> None:
        self.flush()
        self.closed = True

    def abort(self) -> None:
        self.aborted = self.closed = True

    def event(self) -> asyncio.Event:
        return asyncio.Event()

    def now(self) -> float:
        return self.time_s

    def random_bytes(self, count: int) -> bytes:
        return bytes(range(1, count + 1))

    def began(self, session: Session) -> None:
        del session

    def failed(self, error: BaseException) -> None:
        self.errors.append(error)


class Driver:
    """One initiator port on one connection. CmdSN and tags are counted unless a test gives them."""

    def __init__(self, directory: OneTarget, limits: TargetLimits | None = None, isid: bytes = b"\x80\x12\x34\x56\0\0"):
        self.host = DrivenHost()
        self.connection = Connection(self.host, directory, limits or TargetLimits(), "127.0.0.1:3260", "127.0.0.1:9")
        self.host.connection = self.connection
        self.isid = isid
        self.cmd_sn = 1
        self.header_digest = False
        self.data_digest = False
        self.max_cmd_sn = 0
        self._tags = itertools.count(16)
        self._shared = memoryview(bytearray(1 << 21))

    # --- bytes ----------------------------------------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """Bytes from the network, as one receive."""
        framer = self.connection.framer
        position = 0
        while position < len(data):
            for buffer in framer.buffers(self._shared):
                part = data[position : position + len(buffer)]
                buffer[: len(part)] = part
                position += len(part)
                count = len(part)
                self.connection.receive(framer.received(self._shared, count))
                break
            while framer.unread and self.connection.stage is not Stage.CLOSED:
                framer.buffers(self._shared)
                self.connection.receive(framer.received(self._shared, 0))
        self.host.flush()

    def frame(self, bhs: bytes, data: bytes = b"", ahs: bytes = b"") -> bytes:
        frame = bhs + ahs + (digest(bhs, ahs) if self.header_digest else b"")
        if data:
            padded = data + bytes(-len(data) % 4)
            frame += padded + (digest(padded) if self.data_digest else b"")
        return frame

    def answers(self) -> list[Answer]:
        """The PDUs sent since the last call; digests are checked."""
        found = []
        raw = bytes(self.host.sent)
        self.host.sent.clear()
        position = 0
        while position < len(raw):
            bhs = raw[position : position + 48]
            position += 48
            if self.header_digest:
                assert raw[position : position + 4] == digest(bhs)
                position += 4
            header = pdus.parse(bhs)
            padded = raw[position : position + (header.data_segment_length + 3 & ~3)]
            position += len(padded)
            if padded and self.data_digest:
                assert raw[position : position + 4] == digest(padded)
                position += 4
            if "max_cmd_sn" in header:
                self.max_cmd_sn = header.max_cmd_sn
            found.append((header, padded[: header.data_segment_length]))
        return found

    async def settle(self) -> list[Answer]:
        """Let background work finish, then the answers."""
        for _ in range(1000):
            await asyncio.sleep(0)
            if not self.host.tasks:
                break
            await asyncio.sleep(0.001)
        self.host.flush()
        return self.answers()

    # --- PDUs -----------------------------------------------------------------------------------------------------

    def send(self, opcode: int, data: bytes = b"", *, ahs: bytes = b"", in_order: bool = True, **fields: Any) -> int:
        """Send one PDU; returns its initiator task tag. in_order: it takes the next CmdSN."""
        tag = fields.setdefault("initiator_task_tag", next(self._tags))
        if in_order and "cmd_sn" not in fields:
            fields["cmd_sn"] = self.cmd_sn
            self.cmd_sn += 1
        bhs = pdus.build(opcode, data_segment_length=len(data), total_ahs_length=len(ahs) // 4, **fields)
        self.feed(self.frame(bhs, data, ahs))
        return int(tag)

    async def login(self, pairs: Iterable[tuple[str, str]] = (), **identity: str) -> dict[str, str]:
        """Log in to the target straight in the operational stage; returns the target's keys."""
        keys = {"InitiatorName": INITIATOR, "TargetName": IQN, "SessionType": "Normal", **identity}
        self.send(
            opcodes.LOGIN_REQUEST,
            encode_pairs([*keys.items(), *pairs]),
            in_order=False,
            transit=True,
            current_stage=1,
            next_stage=3,
            isid=self.isid,
            cmd_sn=self.cmd_sn,
            exp_stat_sn=1,
        )
        (header, data), *rest = await self.settle()
        assert not rest
        assert header.opcode == opcodes.LOGIN_RESPONSE
        assert (header.status_class, header.status_detail) == (0, 0), (header, data)
        parameters = self.connection.parameters
        self.header_digest, self.data_digest = parameters.header_digest, parameters.data_digest
        return dict(decode_pairs(data))

    def command(self, cdb: bytes, data: bytes = b"", *, read: int = 0, write: int = 0, **fields: Any) -> int:
        """A SCSI Command with optional immediate data; read and write are expected transfer lengths in bytes."""
        fields.setdefault("final", True)
        fields.setdefault("attribute", 1)
        return self.send(
            opcodes.SCSI_COMMAND,
            data,
            read=bool(read),
            write=bool(write),
            expected_data_transfer_length=read or write,
            cdb=cdb.ljust(16, b"\0"),
            **fields,
        )

    async def clear_attentions(self) -> None:
        """Take the unit attentions that a login owes."""
        for _ in range(8):
            self.command(bytes(6))
            (header, _), *_ = await self.settle()
            if header.status == 0:
                return
        raise AssertionError("unit attentions without end")
