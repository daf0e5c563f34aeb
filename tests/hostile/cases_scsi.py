"""Commands that no host would send: every operation code and service action, and parameter lists of random content.

They reach the device server by right, so they may also do what they say: what other hosts of the volume then see is
theirs to cope with, as on any shared disk.
"""

from __future__ import annotations

import struct
from random import Random

from san_target.scsi import mode
from san_target.wire import opcodes
from tests.hostile.attack import AnswerR2T, Device, LogIn, Ready, Send, Step, Wait
from tests.hostile.battlefield import ATTACKER, BLOCK, BLOCKS, WITNESS, volume_id
from tests.hostile.cases_protocol import edge, full, good, junk

KEY = 0xABCD
_TYPES = (1, 3, 5, 6, 7, 8)
_LBAS = (0, 1, 2, BLOCKS - 1, BLOCKS, BLOCKS + 1, 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF, 1 << 63)
_COUNTS = (0, 1, 2, 8, 16, 255, 256, BLOCKS, 16384, 16385, 65535, 0xFFFFFFFF)


def mostly(random: Random, usual: int, *others: int) -> int:
    return usual if random.random() < 0.92 else random.choice(others)


def _lba(random: Random) -> int:
    return random.choice(_LBAS) if random.random() < 0.5 else random.randrange(BLOCKS)


def _command(random: Random, cdb: bytes, data: bytes, reads: int = 0) -> list[Step]:
    """A command with its data in any of the ways there are, and an expected length that is mostly right."""
    expected = len(data) or reads
    if random.random() < 0.15:
        expected = random.choice((0, 1, expected + 1, max(0, expected - 1), edge(random)))
    flags = 0x80 | (0x20 if data else 0) | (0x40 if reads or not data else 0) | random.choice((0, 1, 1, 1, 2, 3, 4, 7))
    if random.random() < 0.1:
        flags ^= random.choice((0x20, 0x40, 0x80))
    immediate = data if random.random() < 0.7 else data[: random.randrange(len(data) + 1)]
    if not flags & 0x20:
        immediate = b""
    pdu = Send(opcodes.SCSI_COMMAND, flags, word20=expected & 0xFFFFFFFF, tail=cdb, data=immediate[:16384])
    if random.random() < 0.05:
        pdu.lun = edge(random, 64)
    return [pdu, AnswerR2T(), AnswerR2T(pieces=2), Wait()]


def cdbs(random: Random) -> list[Step]:
    """Every operation code with every service action, with random bytes behind them."""
    steps: list[Step] = [
        full(random),
        Ready(heal=random.random() < 0.7),
        Device(at_once=random.random() < 0.7, held=random.random() < 0.15),
    ]
    for _ in range(random.randrange(1, 4)):
        cdb = bytearray(random.choice((bytes(16), random.randbytes(16))))
        cdb[0] = random.randrange(256)
        cdb[1] = random.choice((cdb[1], random.randrange(32)))
        for _ in range(random.randrange(4)):
            cdb[random.randrange(2, 16)] = random.choice((0, 1, 8, 0xFF, random.randrange(256)))
        steps += _command(random, bytes(cdb), junk(random, 600) if random.random() < 0.4 else b"", edge(random, 16))
    return steps


# (operation code, service action or None, offset and bytes of the LBA, offset and bytes of the count)
_BLOCK_COMMANDS = (
    (0x08, None, 2, 2, 4, 1),
    (0x0A, None, 2, 2, 4, 1),
    (0x28, None, 2, 4, 7, 2),
    (0x2A, None, 2, 4, 7, 2),
    (0x2E, None, 2, 4, 7, 2),
    (0x2F, None, 2, 4, 7, 2),
    (0x34, None, 2, 4, 7, 2),
    (0x35, None, 2, 4, 7, 2),
    (0x41, None, 2, 4, 7, 2),
    (0xA8, None, 2, 4, 6, 4),
    (0xAA, None, 2, 4, 6, 4),
    (0xAE, None, 2, 4, 6, 4),
    (0xAF, None, 2, 4, 6, 4),
    (0x88, None, 2, 8, 10, 4),
    (0x89, None, 2, 8, 13, 1),
    (0x8A, None, 2, 8, 10, 4),
    (0x8B, None, 2, 8, 10, 4),
    (0x8E, None, 2, 8, 10, 4),
    (0x8F, None, 2, 8, 10, 4),
    (0x90, None, 2, 8, 10, 4),
    (0x91, None, 2, 8, 10, 4),
    (0x93, None, 2, 8, 10, 4),
    (0x9C, None, 2, 8, 12, 2),
    (0x9E, 0x12, 2, 8, 10, 4),
)


def block_commands(random: Random) -> list[Step]:
    """Commands on blocks at the ends of the volume and beyond, of every length, with more or less data than that."""
    operation, action, lba_at, lba_bytes, count_at, count_bytes = random.choice(_BLOCK_COMMANDS)
    cdb = bytearray(16)
    cdb[0] = operation
    cdb[1] = random.choice((0, 0, 0, 0x02, 0x06, 0x08, 0x10, 0x20, random.randrange(256))) if action is None else action
    count = random.choice(_COUNTS) if random.random() < 0.5 else random.randrange(64)
    cdb[lba_at : lba_at + lba_bytes] = (_lba(random) & (1 << 8 * lba_bytes) - 1).to_bytes(lba_bytes, "big")
    cdb[count_at : count_at + count_bytes] = (count & (1 << 8 * count_bytes) - 1).to_bytes(count_bytes, "big")
    if random.random() < 0.1:
        cdb[random.randrange(16)] ^= 1 << random.randrange(8)
    blocks = random.choice((0, 1, 1, 2, min(count, 64), min(count, 64)))
    steps = _command(random, bytes(cdb), bytes(blocks * BLOCK), min(count, BLOCKS) * BLOCK)
    return [full(random), Ready(heal=random.random() < 0.7), Device(at_once=random.random() < 0.6), *steps]


def _transport_id(random: Random) -> bytes:
    name = random.choice((ATTACKER, WITNESS, "iqn.2026-01.net.example:other", "x"))
    text = name.encode() + random.choice((b"", b",i,0x8000dead0000", b",i,0x801234560000", b",i,0x"))
    padded = text + bytes(4 - len(text) % 4)
    length = len(padded) if random.random() < 0.9 else edge(random, 16)
    return struct.pack(">BxH", random.choice((0x45, 0x45, 0x05, 0x06, 0xC5)), length) + padded


def _reserve_out(random: Random) -> tuple[bytes, bytes]:
    keys = (0, 0, 1, KEY, KEY, KEY, 0xFFFFFFFFFFFFFFFF)
    action = random.choice((*range(8), *range(8), random.randrange(32)))
    body = b""
    if random.random() < 0.3:
        body = b"".join(_transport_id(random) for _ in range(random.randrange(4)))
    if action == 7:
        flags = struct.pack(">xBHI", random.randrange(4), random.choice((0, 1, 2)), len(body))
    else:
        flags = struct.pack(">4xBxxx", random.choice((0, 0, 0, 0, 1, 4, 8, 9)))
        body = struct.pack(">I", len(body)) + body if flags[4] & 8 else b""
    data = struct.pack(">QQ", random.choice(keys), random.choice(keys)) + flags + body
    if random.random() < 0.1:
        data = data[: random.randrange(len(data) + 1)] + junk(random, 30)
    return _reserve_out_cdb(action, mostly(random, random.choice(_TYPES), 0, 0x11, random.randrange(256)), data), data


def _reserve_out_cdb(action: int, scope_type: int, data: bytes) -> bytes:
    return struct.pack(">BBBxxIxx", 0x5F, action, scope_type, len(data))


def _unmap(random: Random) -> tuple[bytes, bytes]:
    count = random.choice((0, 1, 2, 3, 256, 257))
    ranges = b"".join(struct.pack(">QI4x", _lba(random), random.choice(_COUNTS)) for _ in range(count))
    data = struct.pack(">HH4x", len(ranges) + 6, len(ranges)) + ranges
    if random.random() < 0.2:
        data = struct.pack(">HH", edge(random, 16), edge(random, 16)) + data[4:]
    return struct.pack(">BBxxxxxHx", 0x42, random.choice((0, 0, 0, 1)), len(data)), data


def _mode_select(random: Random) -> tuple[bytes, bytes]:
    long = random.random() < 0.5
    code = random.choice(mode.PAGE_CODES)
    page = bytearray(mode.page(code, mode.defaults(write_through=False)))
    # What may be changed: WCE; D_SENSE and SWP.
    for byte, bit in random.sample(((2, 0x04), (2, 0x02), (4, 0x08)), random.randrange(3)):
        page[byte] ^= bit
    if random.random() < 0.3:
        page[random.randrange(len(page))] ^= 1 << random.randrange(8)
    if random.random() < 0.2:
        page = bytearray([random.randrange(256), random.randrange(40)]) + random.randbytes(random.randrange(40))
    descriptor = random.choice((b"", b"", b"", bytes(8), struct.pack(">II", BLOCKS, BLOCK), random.randbytes(8)))
    header = bytearray(8 if long else 4)
    header[-1] = len(descriptor)
    data = bytes(header) + descriptor + bytes(page)
    if random.random() < 0.1:
        data = data[: random.randrange(len(data) + 1)]
    flags = mostly(random, 0x10, 0x11, 0x00, random.randrange(256))
    if long:
        return struct.pack(">BB5xHx", 0x55, flags, len(data)), data
    return struct.pack(">BBxxBx", 0x15, flags, len(data) & 0xFF), data


def _extended_copy(random: Random) -> tuple[bytes, bytes]:
    # The designators of the attacked, the quiet and the locked volume, and of none.
    designators = [bytes.fromhex(f"602534e{volume_id(number)[:25]}") for number in (1, 1, 2, 3, 9)]
    cscds = b"".join(
        struct.pack(
            ">BBHBBxB20sB3s",
            mostly(random, 0xE4, 0xE0, 0),
            mostly(random, 0, 5),
            0,
            1,
            3,
            mostly(random, 16, 0, 255),
            random.choice(designators),
            random.choice((0, 4)),
            mostly(random, BLOCK, 0, 4096).to_bytes(3, "big"),
        )
        for _ in range(mostly(random, 2, 0, 1, 65))
    )
    segments = b"".join(
        struct.pack(
            ">BBHHHHHQQ",
            mostly(random, 0x02, 0x00, 0x0C),
            random.randrange(4),
            mostly(random, 24, 0, 25),
            mostly(random, random.choice((0, 1, 0xFFFF)), 7),
            mostly(random, random.choice((0, 1, 0xFFFF)), 7),
            0,
            random.choice((0, 1, 8, 200, 65535)),
            _lba(random),
            _lba(random),
        )
        for _ in range(mostly(random, random.choice((1, 2, 3)), 0, 129))
    )
    usage = random.choice((0, 0, 0x10, 0x18, random.randrange(32)))
    list_id = 0 if usage == 0x18 else random.randrange(4)
    header = struct.pack(">BBH4xII", list_id, usage, len(cscds), len(segments), mostly(random, 0, 1, 1000))
    data = header + cscds + segments
    if random.random() < 0.08:
        data = data[: random.randrange(len(data) + 1)]
    length = mostly(random, len(data), 0, 15, edge(random))
    return struct.pack(">BB8xIxx", 0x83, 0, length), data


def _sanitize(random: Random) -> tuple[bytes, bytes]:
    action = random.choice((1, 1, 2, 0x1F, 3))
    pattern = junk(random, 8)
    data = struct.pack(">BxH", random.choice((1, 2, 31, 0x81, 0)), len(pattern)) + pattern if action == 1 else b""
    flags = random.choice((0, 0x80, 0x20, 0xA0, 0x40))
    return struct.pack(">BB5xHx", 0x48, action | flags, len(data)), data


def _medium(random: Random) -> tuple[bytes, bytes]:
    operation = random.choice((0x1B, 0x1E, 0x16, 0x17, 0x1D, 0x03, 0x00))
    return bytes([operation, random.choice((0, 1)), 0, 0, random.randrange(256), 0]), b""


def _report(random: Random) -> tuple[bytes, bytes]:
    operation = random.choice((0x12, 0x1A, 0x5A, 0x25, 0x37, 0x5E, 0x84, 0x9E, 0xA0, 0xA3, 0xB7))
    cdb = bytearray(16)
    cdb[0] = operation
    cdb[1] = random.choice((0, 1, 2, 3, 8, 10, 12, 13, 16, 18, random.randrange(256)))
    for _ in range(random.randrange(6)):
        cdb[random.randrange(2, 16)] = random.choice((0, 1, 2, 8, 10, 0x3F, 0xB0, 0xFF, random.randrange(256)))
    return bytes(cdb), b""


_LISTS = (_reserve_out, _reserve_out, _unmap, _mode_select, _extended_copy, _extended_copy, _sanitize, _medium, _report)


def parameter_lists(random: Random) -> list[Step]:
    """PERSISTENT RESERVE OUT, UNMAP, MODE SELECT, EXTENDED COPY, SANITIZE ... with almost valid parameter lists."""
    keys = (("InitialR2T", "No"),) if random.random() < 0.3 else ()
    steps: list[Step] = [
        LogIn("full", keys=keys),
        Ready(heal=random.random() < 0.7),
        Device(at_once=random.random() < 0.7, held=random.random() < 0.15),
    ]
    for _ in range(random.randrange(1, 5)):
        cdb, data = random.choice(_LISTS)(random)
        steps += _command(random, cdb, data, 0 if data else random.choice((0, 255, 65536)))
    return [*steps, good(random)]


def reservations(random: Random) -> list[Step]:
    """A registered host that reserves, releases, preempts and forgets, and what else it may do meanwhile."""
    data = struct.pack(">QQ8x", 0, KEY)
    steps: list[Step] = [full(random), Ready(), *_command(random, _reserve_out_cdb(6, 0, data), data)]
    for _ in range(random.randrange(1, 6)):
        key = mostly(random, KEY, 0, 1)
        action = random.choice((0, 1, 1, 2, 2, 3, 4, 5, 7))
        data = struct.pack(">QQ8x", key, random.choice((0, KEY, KEY, 7)))
        if random.random() < 0.3:
            cdb, data = _reserve_out(random)
        else:
            cdb = _reserve_out_cdb(action, random.choice(_TYPES), data)
        steps += _command(random, cdb, data)
        if random.random() < 0.5:
            cdb, data = random.choice((_report, _medium, _unmap))(random)
            steps += _command(random, cdb, data, 255)
    return [*steps, good(random)]
