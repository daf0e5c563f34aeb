"""Hostile initiators at the port of a real member: slow, many, deaf, rude. Its memory stays bounded, others go on."""

from __future__ import annotations

import contextlib
import re
import resource
import socket
import struct
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from san_target.wire import opcodes, pdus
from san_target.wire.text import encode_pairs
from tests.support.member import Member
from tests.support.raw_initiator import RawInitiator, read16, write16
from tests.support.target import Volume, wait_for

pytestmark = pytest.mark.slow

MIB = 1 << 20
BLOCK = 512
COMMAND_BLOCKS = 16384  # 8 MiB, the most that one command may ask for
PATTERN = b"".join(struct.pack(">Q", number) * (BLOCK // 8) for number in range(64))
CONFIG = """
[limits]
login_timeout_s = 3.0
nop_interval_s = 2.0
nop_timeout_s = 5.0
"""


class Witness(threading.Thread):
    """A well-behaved host: it reads what it wrote, all the time, on one session. `failure`: what went wrong, if."""

    def __init__(self, portal: str, iqn: str) -> None:
        super().__init__(daemon=True)
        self._initiator = RawInitiator(portal)
        assert self._initiator.login(iqn, "iqn.2026-01.net.example:witness") == 0
        self._initiator.ready().good(write16(0, 64), PATTERN)
        self._stopping = threading.Event()
        self.reads = 0
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            while not self._stopping.wait(0.02):
                assert self._initiator.good(read16(0, 64), read_bytes=64 * BLOCK) == PATTERN, "other data"
                self.reads += 1
        except BaseException as error:
            self.failure = error
        self._initiator.close()

    def stop(self) -> None:
        self._stopping.set()
        self.join(60)

    def assert_goes_on(self) -> None:
        seen = self.reads
        wait_for(lambda: self.failure is not None or self.reads > seen, 60, "the well-behaved session goes on")
        assert self.failure is None, f"the well-behaved session met {self.failure!r}"


class Field:
    """The member, the volume under attack, and a well-behaved host of it."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        config = directory / "config.toml"
        config.write_text(CONFIG)
        self.member = Member(directory, "--config", str(config))
        self.member.start()
        self.volume: Volume = self.member.create_volume("attacked", 64 * MIB)
        self.witness = Witness(self.member.portal, self.volume.iqn)
        self.witness.start()

    def resident_bytes(self) -> int:
        found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{self.member.pid}/status").read_text())
        assert found is not None
        return int(found[1]) << 10

    def assert_well(self) -> None:
        """The well-behaved session goes on, and a new one can begin."""
        self.witness.assert_goes_on()
        fresh = RawInitiator(self.member.portal)
        assert fresh.login(self.volume.iqn, "iqn.2026-01.net.example:fresh") == 0
        assert fresh.ready().good(read16(0, 64), read_bytes=64 * BLOCK) == PATTERN
        fresh.logout()

    def connect(self) -> socket.socket:
        host, _, port = self.member.portal.rpartition(":")
        return socket.create_connection((host, int(port)), timeout=30)

    def log_in(self, number: int = 0, pairs: Iterable[tuple[str, str]] = ()) -> socket.socket:
        """A session that has taken its unit attention; CmdSN goes on with 2."""
        attacker = self.connect()
        name = f"iqn.2026-01.net.example:attacker{number}"
        data = encode_pairs([("InitiatorName", name), ("TargetName", self.volume.iqn), *pairs])
        fields = {"transit": True, "current_stage": 1, "next_stage": 3, "cmd_sn": 1}
        attacker.sendall(pdus.build(opcodes.LOGIN_REQUEST, len(data), **fields) + data + bytes(-len(data) % 4))
        assert receive(attacker)[36:38] == b"\0\0"
        attacker.sendall(command(bytes(6), 1))
        receive(attacker)
        return attacker


def receive(attacker: socket.socket) -> bytes:
    """The header of the next PDU."""
    header = exactly(attacker, 48)
    exactly(attacker, int.from_bytes(header[5:8], "big") + 3 & ~3)
    return header


def exactly(attacker: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = attacker.recv(count - len(data))
        assert part, "the member closed the connection"
        data += part
    return data


def command(cdb: bytes, cmd_sn: int, read: int = 0, write: int = 0) -> bytes:
    return pdus.build(
        opcodes.SCSI_COMMAND,
        initiator_task_tag=cmd_sn,
        final=True,
        read=bool(read),
        write=bool(write),
        attribute=1,
        expected_data_transfer_length=read or write,
        cmd_sn=cmd_sn,
        cdb=cdb.ljust(16, b"\0"),
    )


def begin_data(r2t: bytes) -> bytes:
    """The first Data-Out, of many, for an R2T."""
    asked = pdus.parse(r2t)
    assert asked.opcode == opcodes.R2T
    fields = {
        "initiator_task_tag": asked.initiator_task_tag,
        "target_transfer_tag": asked.target_transfer_tag,
        "buffer_offset": asked.buffer_offset,
    }
    return pdus.build(opcodes.DATA_OUT, 4096, **fields) + bytes(4096)


def send_what_goes(attacker: socket.socket, data: bytes) -> int:
    """Send until the member takes no more for a moment; the number of bytes that went."""
    attacker.settimeout(0.5)
    view = memoryview(data)
    sent = 0
    with contextlib.suppress(TimeoutError, ConnectionError):
        while sent < len(view):
            sent += attacker.send(view[sent : sent + 65536])
    attacker.settimeout(30)
    return sent


def wait_for_the_end(attacker: socket.socket) -> None:
    """Return when the member has ended the connection; TimeoutError if it does not."""
    with contextlib.suppress(ConnectionError):
        while attacker.recv(65536):
            pass


def reset(attacker: socket.socket) -> None:
    attacker.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    attacker.close()


@contextlib.contextmanager
def closing(attackers: list[socket.socket]) -> Iterator[None]:
    try:
        yield
    finally:
        for attacker in attackers:
            attacker.close()


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Field]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # for many connections at both ends
    made = Field(tmp_path_factory.mktemp("hostile") / "member")
    yield made
    made.witness.stop()
    made.member.stop()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def limited(field: Field) -> Iterator[Field]:
    """The field, well afterwards."""
    field.assert_well()
    yield field
    field.assert_well()


def test_slow_logins_end(limited: Field) -> None:
    """One byte after the other, and nothing at all: neither keeps its connection."""
    attackers = [limited.connect() for _ in range(100)]
    login = pdus.build(opcodes.LOGIN_REQUEST, 200)
    with closing(attackers):
        for position in range(20):
            for attacker in attackers[:50]:
                attacker.send(login[position : position + 1])
            limited.witness.assert_goes_on()
        for attacker in attackers:
            wait_for_the_end(attacker)


def test_slow_commands_end(limited: Field) -> None:
    """A session that began a PDU and never finishes it is pinged, does not answer, and ends."""
    attackers = [limited.log_in(number) for number in range(50)]
    with closing(attackers):
        for number, attacker in enumerate(attackers):
            attacker.sendall(command(write16(0, 1), 2, write=BLOCK)[:number])
        for attacker in attackers:
            wait_for_the_end(attacker)


def test_half_open_logins_keep_nobody_out(limited: Field) -> None:
    """More than may log in at once: the oldest give way, and a real login still succeeds at once."""
    before = limited.resident_bytes()
    half = pdus.build(opcodes.LOGIN_REQUEST, 8192) + bytes(8000)
    attackers: list[socket.socket] = []
    with closing(attackers):
        for _ in range(1400):
            attackers.append(limited.connect())
            attackers[-1].send(half)
        limited.assert_well()
        for attacker in attackers[:200]:
            wait_for_the_end(attacker)
        assert limited.resident_bytes() - before < 64 * MIB


def test_floods_of_connections(limited: Field) -> None:
    before = limited.resident_bytes()
    for number in range(2000):
        attacker = limited.connect()
        if number % 2:
            reset(attacker)
        else:
            attacker.close()
        if number % 100 == 0:
            limited.assert_well()
    assert limited.resident_bytes() - before < 64 * MIB


def test_resets_in_the_middle_of_a_pdu(limited: Field) -> None:
    before = limited.resident_bytes()
    whole = pdus.build(opcodes.SCSI_COMMAND, 65536, final=True, write=True, cmd_sn=2) + bytes(65536)
    for number in range(200):
        attacker = limited.log_in(number) if number % 2 else limited.connect()
        attacker.sendall(whole[: 1 + number * 300])
        reset(attacker)
    assert limited.resident_bytes() - before < 64 * MIB


def test_who_takes_no_answers_is_not_served_on(limited: Field) -> None:
    """Reads of 100 GB asked for and not taken: what is kept for each session is bounded."""
    before = limited.resident_bytes()
    reads = [command(read16(0, COMMAND_BLOCKS), 2 + number, read=COMMAND_BLOCKS * BLOCK) for number in range(12000)]
    attackers = [limited.log_in(number, [("MaxRecvDataSegmentLength", "262144")]) for number in range(6)]
    with closing(attackers):
        for attacker in attackers:
            send_what_goes(attacker, b"".join(reads))
            limited.witness.assert_goes_on()
        limited.assert_well()
        assert limited.resident_bytes() - before < 6 * 32 * MIB


def test_who_takes_no_answers_to_small_reads_is_not_served_on(limited: Field) -> None:
    before = limited.resident_bytes()
    reads = b"".join(command(read16(0, 16), 2 + number, read=16 * BLOCK) for number in range(15000))
    attackers = [limited.log_in(number, [("MaxRecvDataSegmentLength", "262144")]) for number in range(4)]
    with closing(attackers):
        for attacker in attackers:
            send_what_goes(attacker, reads)
        limited.assert_well()
        assert limited.resident_bytes() - before < 4 * 12 * MIB


def test_data_owed_takes_no_memory(limited: Field) -> None:
    """2 GiB of writes announced by each of four sessions, with one segment of data for each R2T that comes."""
    before = limited.resident_bytes()
    writes = [command(write16(0, COMMAND_BLOCKS), 2 + number, write=COMMAND_BLOCKS * BLOCK) for number in range(256)]
    attackers = [limited.log_in(number) for number in range(4)]
    with closing(attackers):
        for attacker in attackers:
            attacker.sendall(b"".join(writes))
            attacker.settimeout(0.3)
            with contextlib.suppress(TimeoutError):
                while True:
                    attacker.sendall(begin_data(receive(attacker)))
        limited.assert_well()
        assert limited.resident_bytes() - before < 4 * 24 * MIB


class SlowReader:
    """Asks for many reads at once, takes the answers in small pieces, and checks each byte of them."""

    def __init__(self, field: Field, number: int, sizes: list[int]) -> None:
        self.socket = field.log_in(number, [("MaxRecvDataSegmentLength", "262144")])
        self._expected = [(2 + index, 64 * number, blocks) for index, blocks in enumerate(sizes)]
        self._data = bytearray()
        reads = [command(read16(lba, blocks), tag, read=blocks * BLOCK) for tag, lba, blocks in self._expected]
        send_what_goes(self.socket, b"".join(reads))

    @property
    def done(self) -> bool:
        return not self._expected

    def take(self, count: int) -> None:
        self._data += self.socket.recv(count)
        while self._expected:
            tag, lba, blocks = self._expected[0]
            if self._data[:1] == b"\x20" and len(self._data) >= 48:
                self._answer_ping()
                continue
            size = 48 + blocks * BLOCK
            if len(self._data) < size:
                return
            assert self._data[:2] == b"\x25\x81"
            assert int.from_bytes(self._data[16:20], "big") == tag
            assert self._data[48:size] == marked(lba, blocks), f"wrong data for read {tag} of session {lba // 64}"
            del self._data[:size]
            self._expected.pop(0)

    def _answer_ping(self) -> None:
        fields = {"initiator_task_tag": opcodes.RESERVED_TAG, "immediate": True}
        ping = pdus.parse(bytes(self._data[:48]))
        self.socket.sendall(pdus.build(opcodes.NOP_OUT, target_transfer_tag=ping.target_transfer_tag, **fields))
        del self._data[:48]


def marked(lba: int, blocks: int) -> bytes:
    """Blocks that tell where they lie."""
    return b"".join(struct.pack(">Q", lba + index) * (BLOCK // 8) for index in range(blocks))


def test_slow_readers_get_their_own_data(limited: Field) -> None:
    """Answers that wait for the network lie in memory that connections share while it does not."""
    writer = RawInitiator(limited.member.portal)
    assert writer.login(limited.volume.iqn, "iqn.2026-01.net.example:writer") == 0
    writer.ready()
    for number in range(1, 13):
        writer.good(write16(64 * number, 64), marked(64 * number, 64))
    writer.logout()
    sizes = [blocks for _ in range(80) for blocks in (1, 1, 64, 3, 16, 64, 64, 8, 1, 32)]
    readers = [SlowReader(limited, number, sizes) for number in range(1, 13)]
    with closing([reader.socket for reader in readers]):
        while not all(reader.done for reader in readers):
            for reader in readers:
                if not reader.done:
                    reader.take(30000)


@pytest.mark.parametrize("kind", ["ping", "text", "task management", "unknown opcode"])
def test_floods_of_pdus(limited: Field, kind: str) -> None:
    """A megabyte of rare PDUs from each of four sessions, whose answers nobody takes."""
    flood = {
        "ping": pdus.build(opcodes.NOP_OUT, 4, immediate=True) + b"ping",
        "text": pdus.build(opcodes.TEXT_REQUEST, 16, immediate=True, final=True) + b"SendTargets=\0\0\0\0",
        "task management": pdus.build(opcodes.TASK_MANAGEMENT_REQUEST, immediate=True, function=opcodes.ABORT_TASK),
        "unknown opcode": b"\x5e" + bytes(47),
    }[kind]
    before = limited.resident_bytes()
    attackers = [limited.log_in(number) for number in range(4)]
    with closing(attackers):
        for attacker in attackers:
            send_what_goes(attacker, flood * (MIB // len(flood)))
            limited.witness.assert_goes_on()
        assert limited.resident_bytes() - before < 4 * 16 * MIB


def test_nothing_is_left(field: Field) -> None:
    """After all of it only the well-behaved session is there."""
    wait_for(lambda: len(field.member.json("session", "list")) == 1, 30, "the sessions of the attackers have ended")
    field.assert_well()
    assert "defect" not in field.member.log
    assert "Traceback" not in field.member.log
