"""A member under attack, without a network: two targets, one attacker, and a well-behaved witness at each target.

The attacker's bytes go through the framer and the `Connection` of the product; everything they do is checked by
`judge`. One witness is a host of the attacked volume, the other one of a volume that the attacker has no session with.
"""

from __future__ import annotations

import asyncio
import itertools
import struct
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from san_target.metadata.schema import ReservationsRecord
from san_target.scsi.identity import Identity
from san_target.scsi.logical_unit import LogicalUnit
from san_target.scsi.services import Services
from san_target.server.fencing import abort_tasks, drain_tasks
from san_target.session.connection import Connection, Stage
from san_target.session.host import Arena
from san_target.session.parameters import TargetLimits
from san_target.session.session import PortalCounters, Session
from san_target.session.target import Access, Credentials, Moved, Target
from san_target.wire.framer import OWN_BUFFER_BYTES, LargeBuffers
from san_target.wire.text import encode_pairs
from tests.support.memory_device import MemoryDevice

if TYPE_CHECKING:
    from typing_extensions import Buffer

ATTACKED = "iqn.2026-01.io.san-target:attacked"
QUIET = "iqn.2026-01.io.san-target:quiet"
LOCKED = "iqn.2026-01.io.san-target:locked"
ATTACKER = "iqn.2026-01.net.example:attacker"
WITNESS = "iqn.2026-01.net.example:witness"
CHAP = Credentials("alice", b"wonderland-1865")

BLOCK = 512
BLOCKS = 4096
WITNESS_LBA = 4080  # and all behind it: what the attacker leaves alone in cases that only break rules of iSCSI
READ_BYTES_MAX = 1 << 20

# Smaller than what the product offers, so that a case reaches each limit.
LIMITS = TargetLimits(
    max_recv_data_segment_length=65536,
    max_burst_length=65536,
    first_burst_length=16384,
    max_outstanding_r2t=4,
    command_window=32,
    buffered_bytes_max=1 << 20,
)

_shared = memoryview(bytearray(READ_BYTES_MAX + OWN_BUFFER_BYTES))
_HEADER = struct.Struct(">BBHIQIIII16s")


class FieldDevice(MemoryDevice):
    """A memory device that can be told to hold its waiting calls."""

    def __init__(self) -> None:
        super().__init__(BLOCKS, BLOCK, atomic_blocks_max=64)
        self._running = asyncio.Event()
        self._running.set()

    @property
    def paused(self) -> bool:
        return not self._running.is_set()

    def pause(self) -> None:
        self._running.clear()

    def resume(self) -> None:
        self._running.set()

    def _called(self, name: str, *arguments: object) -> None:
        """Nothing is recorded: a long run would remember everything."""

    async def read(self, lba: int, blocks: int) -> bytes:
        await self._running.wait()
        return await super().read(lba, blocks)

    async def write(self, lba: int, data: Buffer, durable: bool = False) -> None:
        await self._running.wait()
        await super().write(lba, data, durable)

    async def sanitize_overwrite(self, lba: int, pattern: Buffer, blocks: int) -> None:
        await self._running.wait()
        await super().sanitize_overwrite(lba, pattern, blocks)

    async def sanitize_erase(self) -> None:
        await self._running.wait()
        await super().sanitize_erase()


class FieldHost:
    """The shell of one connection: output is collected, time stands still unless told."""

    def __init__(self, field: Battlefield) -> None:
        self._field = field
        self.arena = field.arena
        self.large_buffers = field.large_buffers
        self.counters = field.counters
        self.connection: Connection | None = None
        self.sent = bytearray()
        self.closed = False
        self.unsent_bytes = 0
        self.tasks: set[asyncio.Task[None]] = set()

    def flush(self) -> None:
        assert self.connection is not None
        outgoing, self.connection.outgoing = self.connection.outgoing, []
        self.connection.answers = 0
        if not self.closed:
            for buffer in outgoing:
                self.sent += buffer
        self.arena.used_bytes = 0

    def wake(self) -> None:
        self.flush()

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self.tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._field.errors.append(error)

    def close(self) -> None:
        self.flush()
        self.closed = True

    def abort(self) -> None:
        self.closed = True

    def event(self) -> asyncio.Event:
        return asyncio.Event()

    def now(self) -> float:
        return self._field.time_s

    def random_bytes(self, count: int) -> bytes:
        return bytes(range(1, count + 1))

    def began(self, session: Session) -> None:
        pass

    def failed(self, error: BaseException) -> None:
        self._field.errors.append(error)


class FieldDirectory:
    """Three targets: the attacked, the quiet, and one that asks for CHAP."""

    def __init__(self, *targets: Target) -> None:
        self.targets = {target.iqn: target for target in targets}
        self._tsih = itertools.count()

    def find(self, iqn: str) -> Target | None:
        return self.targets.get(iqn)

    async def look_up(self, iqn: str) -> Target | None:
        return None

    def visible_to(self, initiator_name: str) -> list[Target]:
        return [target for target in self.targets.values() if target.access.admits(initiator_name)]

    def portals_of(self, target: Target, asked_at: str) -> list[tuple[str, int]]:
        return [(asked_at, target.portal_group_tag)]

    async def place(self, target: Target, initiator_name: str, isid: bytes, asked_at: str) -> str | None:
        return None

    async def succeed(self, target: Target, initiator_name: str, isid: bytes, address: str) -> str:
        return ""

    def arrived(self, target: Target, initiator_name: str, isid: bytes) -> Moved | None:
        return None

    def reinstated(self, old: Session, by_address: str, now_s: float) -> None:
        pass

    def discovery_access(self) -> Access:
        return Access()

    def new_tsih(self) -> int:
        return next(self._tsih) % 0xFFFF + 1


class Battlefield:
    """errors: what must stay empty: exceptions that no initiator may cause."""

    def __init__(self) -> None:
        self.errors: list[BaseException] = []
        self.time_s = 1000.0
        self.arena = Arena(1 << 18)
        self.large_buffers = LargeBuffers(LIMITS.max_recv_data_segment_length)
        self.counters = PortalCounters()
        self.background: set[asyncio.Task[Any]] = set()
        self.device = FieldDevice()
        self.quiet_device = FieldDevice()
        self.attacked = self._target(ATTACKED, self.device, Access(), 1)
        self.directory = FieldDirectory(
            self.attacked,
            self._target(QUIET, self.quiet_device, Access(allowed=frozenset({WITNESS})), 2),
            self._target(LOCKED, FieldDevice(), Access(chap=(CHAP,)), 3),
        )
        self.witnesses = (Witness(self, ATTACKED, self.device), Witness(self, QUIET, self.quiet_device))
        self._ports = itertools.count(1024)

    def _target(self, iqn: str, device: FieldDevice, access: Access, number: int) -> Target:
        services = Services(
            spawn=self._spawn,
            save_reservations=self._save,
            unit_of=lambda designator: next(
                (each.unit for each in self.directory.targets.values() if each.unit.identity.naa == designator), None
            ),
            now=lambda: self.time_s,
            sleep=self._sleep,
        )
        identity = Identity(volume_id(number), iqn, name="volume")
        unit = LogicalUnit(device, identity, services=services, removable=iqn == ATTACKED)
        target = Target(iqn, "volume", 1, unit, access)
        unit.abort_tasks = lambda nexuses: abort_tasks(target, nexuses)
        unit.reservations.drain = lambda nexuses: drain_tasks(target, nexuses)
        return target

    async def _save(self, record: object, epoch: int) -> int:
        await asyncio.sleep(0)
        return epoch + 1

    async def _sleep(self, seconds: float) -> None:
        """Background work is paced by the field's own clock, which then runs ahead."""
        await asyncio.sleep(0)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> object:
        task = asyncio.get_running_loop().create_task(coroutine)
        self.background.add(task)
        task.add_done_callback(self._spawned_done)
        return task

    def _spawned_done(self, task: asyncio.Task[Any]) -> None:
        self.background.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.errors.append(error)

    def connect(self, peer: str = "") -> tuple[FieldHost, Connection]:
        """A new connection to the portal."""
        host = FieldHost(self)
        peer = peer or f"192.0.2.1:{next(self._ports)}"
        host.connection = Connection(host, self.directory, LIMITS, "192.0.2.9:3260", peer)
        return host, host.connection

    def heal(self) -> None:
        """Undo what commands did to the attacked volume: reservations, stop, ejection, sanitize, mode parameters."""
        unit = self.attacked.unit
        unit.sanitizing = None
        unit.shared.load(ReservationsRecord(generation=0), unit.shared.epoch)
        unit.reset()
        unit.set_medium(stopped=False, ejected=False)

    async def settle(self, *hosts: FieldHost) -> None:
        """Until nothing is under way, unless the device holds it. AssertionError where that never comes."""
        for turn in range(20000):
            if not self.background and not any(host.tasks for host in hosts):
                return
            if self.device.paused and turn > 50:
                return
            await asyncio.sleep(0)
        raise AssertionError("something is under way without end")


def volume_id(number: int) -> str:
    return f"{number}".ljust(32, "0")


def has_ended(connection: Connection) -> bool:
    return connection.stage is Stage.CLOSED


def feed(connection: Connection, data: bytes, watch: Any = None) -> None:
    """Bytes from the network, in receives as large as the framer's buffers; `watch` sees each PDU first."""
    position = 0
    framer = connection.framer
    while position < len(data) and not has_ended(connection):
        buffer = framer.buffers(_shared)[0]
        part = data[position : position + len(buffer)]
        buffer[: len(part)] = part
        position += len(part)
        count = len(part)
        while True:
            received = framer.received(_shared, count)
            connection.receive(received if watch is None else watch(received))
            connection.host.flush()
            if not framer.unread or has_ended(connection):
                break
            framer.buffers(_shared)
            count = 0


class Witness:
    """A well-behaved host: it logs in, writes a pattern, and reads it back whenever asked, by the shortest way."""

    def __init__(self, field: Battlefield, iqn: str, device: FieldDevice) -> None:
        self._field = field
        self._iqn = iqn
        self._device = device
        self._cmd_sn = 1
        self._tag = 0
        self._at = 0
        self._content = [bytes([index + 1]) * BLOCK for index in range(BLOCKS - WITNESS_LBA)]
        self.host, self.connection = field.connect("192.0.2.2:1")

    @property
    def lost(self) -> bool:
        return self.connection.stage is not Stage.FULL_FEATURE

    async def log_in(self) -> None:
        self.host, self.connection = self._field.connect("192.0.2.2:1")
        self._cmd_sn = 1
        keys = encode_pairs([("InitiatorName", WITNESS), ("TargetName", self._iqn), ("SessionType", "Normal")])
        bhs = _HEADER.pack(0x43, 0x87, 0, len(keys), 0x8012345600000000, 1, 0, 1, 1, bytes(16))
        feed(self.connection, bhs + keys + bytes(-len(keys) % 4))
        await self._field.settle(self.host)
        assert self.connection.stage is Stage.FULL_FEATURE, f"a witness cannot log in: {self.connection.close_reason}"
        assert bytes(self.host.sent[36:38]) == b"\0\0"
        self.host.sent.clear()
        for _ in range(8):
            status, _, sense = await self._command(bytes(6), 0)
            if not _is_unit_attention(status, sense):
                return  # ready, or the medium was taken out by right
        raise AssertionError("unit attentions without end")

    async def prepare(self) -> None:
        """Log in and write the pattern."""
        await self.log_in()
        for index, content in enumerate(self._content):
            cdb = struct.pack(">BxIxHx", 0x2A, WITNESS_LBA + index, 1)
            status, _, _ = await self._command(cdb, BLOCK, content)
            assert status == 0, f"a witness cannot write: status {status:#x}"

    async def _command(self, cdb: bytes, expected: int, data: bytes = b"") -> tuple[int, bytes, bytes]:
        """(status, data, sense) of one command; the answer must be well formed."""
        self._tag = self._tag + 1 & 0xFFFF
        flags = 0xA0 if data else 0xC0 if expected else 0x80
        tail = cdb.ljust(16, b"\0")
        bhs = _HEADER.pack(0x01, flags, 0, len(data), 0, self._tag, expected, self._cmd_sn, 1, tail)
        self._cmd_sn = self._cmd_sn + 1 & 0xFFFFFFFF
        feed(self.connection, bhs + data)
        if not self.host.sent:
            await self._field.settle(self.host)
        answer = bytes(self.host.sent)
        self.host.sent.clear()
        assert len(answer) >= 48, "no answer for a witness"
        assert int.from_bytes(answer[16:20], "big") == self._tag, "an answer to another command"
        length = int.from_bytes(answer[5:8], "big")
        assert len(answer) == 48 + (length + 3 & ~3), "more than one answer"
        if answer[0] == 0x25:
            assert answer[1] == 0x81, f"flags {answer[1]:#x} of a read"
            return answer[3], answer[48 : 48 + length], b""
        assert answer[0] == 0x21, f"answer of type {answer[0]:#x}"
        return answer[3], b"", answer[50 : 48 + length]

    async def check(self, tolerant: bool) -> str:
        """Read one block of the pattern: "good", or for `tolerant` the status that stands in the way by right.

        tolerant: the attacker may have used commands that change what other hosts of the volume see.
        """
        if self.lost:
            assert tolerant, f"a witness was thrown out: {self.connection.close_reason}"
            await self.log_in()
        self._at = (self._at + 1) % len(self._content)
        cdb = struct.pack(">BxIxHx", 0x28, WITNESS_LBA + self._at, 1)
        for _ in range(8):
            status, data, sense = await self._command(cdb, BLOCK)
            if status == 0:
                expected = self._device.content(WITNESS_LBA + self._at) if tolerant else self._content[self._at]
                assert data == expected, "a witness reads something else than what is stored"
                return "good"
            assert tolerant, f"a witness is answered status {status:#x}, sense {sense.hex()}"
            if _is_unit_attention(status, sense):
                continue  # a unit attention tells what the attacker did
            return f"status {status:#x}"
        raise AssertionError("unit attentions without end")


def _is_unit_attention(status: int, sense: bytes) -> bool:
    return status == 0x02 and sense[2 if sense[0] & 0x7E == 0x70 else 1] & 0x0F == 0x06
