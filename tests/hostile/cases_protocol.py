"""Cases that break the rules of iSCSI itself: framing, order, numbers, data transfer, text, task management.

Each function makes the steps of one case from a source of randomness; the first step brings the connection to the
stage that the case is about.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from random import Random

from initiator_sim.packets import ISCSI, ISCSI_AHS
from san_target.wire import opcodes
from san_target.wire.opcodes import RESERVED_TAG
from tests.hostile.attack import AnswerR2T, Crafted, Device, LogIn, Pass, Raw, Send, Step, Wait, read, write
from tests.hostile.battlefield import BLOCK, LIMITS, WITNESS_LBA

_INITIATOR_OPCODES = (
    opcodes.NOP_OUT,
    opcodes.SCSI_COMMAND,
    opcodes.TASK_MANAGEMENT_REQUEST,
    opcodes.LOGIN_REQUEST,
    opcodes.TEXT_REQUEST,
    opcodes.DATA_OUT,
    opcodes.LOGOUT_REQUEST,
    opcodes.SNACK_REQUEST,
)
_EDGES = (0, 1, 2, 3, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, RESERVED_TAG)
_LBA_MAX = WITNESS_LBA - 64


def edge(random: Random, bits: int = 32) -> int:
    """A number of so many bits, most often one at which something begins or ends."""
    if random.random() < 0.6:
        return random.choice(_EDGES) & (1 << bits) - 1
    return random.getrandbits(bits)


def junk(random: Random, longest: int) -> bytes:
    return random.randbytes(random.randrange(longest + 1))


def any_stage(random: Random) -> LogIn:
    """Every stage a connection can be in, most often the last."""
    stage = random.choice((None, "security", "operational", "discovery", "full", "full", "full", "full"))
    if stage in ("discovery", "full"):
        return LogIn(stage, random.random() < 0.3, random.random() < 0.3)
    return LogIn(stage)


def full(random: Random) -> LogIn:
    return LogIn("full", random.random() < 0.15, random.random() < 0.15)


def safe_write(random: Random) -> Send:
    """A good WRITE with its data, away from what the witness keeps."""
    blocks = random.randrange(1, 9)
    return write(random.randrange(_LBA_MAX), blocks, random.randbytes(blocks * BLOCK))


def safe_read(random: Random) -> Send:
    return read(random.randrange(_LBA_MAX), random.choice((1, 1, 8, random.randrange(1, 64))))


def good(random: Random) -> Send:
    """Something that a well-behaved initiator would send."""
    return random.choice((safe_write, safe_read, ping))(random)


def ping(random: Random) -> Send:
    return Send(opcodes.NOP_OUT, data=junk(random, 64), immediate=random.random() < 0.5)


# --- Bytes, lengths, opcodes, reserved bits ---------------------------------------------------------------------------


def garbage(random: Random) -> list[Step]:
    """Bytes that are no iSCSI at all, or only begin like it."""
    data = junk(random, 400)
    if random.random() < 0.5:
        data = bytes([random.choice(_INITIATOR_OPCODES)]) + data
    return [any_stage(random), Raw(data, random.choice((0, 0, 1, 7, 48)))]


def lengths(random: Random) -> list[Step]:
    """Lengths that lie: of the data segment, the additional headers, the padding; PDUs cut off anywhere."""
    pdu = random.choice((good, safe_write, text_request, login_request))(random)
    match random.randrange(6):
        case 0:
            pdu.data_length = edge(random, 24)
        case 1:
            pdu.ahs_words = random.randrange(256)
        case 2:
            pdu.padding = junk(random, 7)
        case 3:
            pdu.data_length = max(0, len(pdu.data) + random.randrange(-8, 9))
        case 4:
            pdu.part = (0, random.randrange(1, 48 + len(pdu.data)))
        case _:
            pdu.data_length = LIMITS.max_recv_data_segment_length + random.randrange(-1, 2)
    return [any_stage(random), pdu, good(random), Raw(junk(random, 100))]


def opcode(random: Random) -> list[Step]:
    """Each opcode, legal or not, with anything behind it."""
    pdu = Send(
        random.randrange(64),
        random.randrange(256),
        tag=edge(random),
        word20=edge(random),
        tail=random.randbytes(16),
        data=junk(random, 64),
        immediate=random.random() < 0.5,
        cmd_sn=random.choice((0, 0, 0, 1, -1)),
        lun=random.choice((0, 0, edge(random, 64))),
        bytes2=edge(random, 16),
        exp_stat_sn=edge(random),
    )
    if random.random() < 0.1:
        pdu.opcode |= 0x80  # the reserved bit of byte 0
    return [any_stage(random), pdu, good(random)]


def reserved(random: Random) -> list[Step]:
    """Good PDUs in which any reserved bit may be set: nothing may come of it (RFC 7143 11.1)."""
    layer = ISCSI.by_opcode[random.choice((opcodes.NOP_OUT, opcodes.SCSI_COMMAND, opcodes.LOGOUT_REQUEST))]
    values = {
        each.name: random.randbytes(int(each.sz)) if hasattr(each, "sz") and each.sz > 1 else 1
        for each in layer.fields_desc
        if each.name.startswith("reserved")
    }
    number = next(each.default for each in layer.fields_desc if each.name == "opcode")
    values |= {"initiator_task_tag": 0x77, "final": 1}
    if number == opcodes.LOGOUT_REQUEST:
        values["reason"] = 2  # which changes nothing
    return [full(random), Crafted(int(number), values), Wait()]


def additional_headers(random: Random) -> list[Step]:
    """SCSI Commands with additional headers of every type, length and number, up to the 255 words there can be."""
    parts = b""
    for _ in range(random.randrange(1, 5)):
        specific = junk(random, random.choice((4, 5, 16, 244, 260, 1000)))
        header = bytes(ISCSI_AHS(type=random.choice((0, 1, 1, 2, 2, 3, 63)), specific=specific))
        if random.random() < 0.3:
            header = struct.pack(">H", edge(random, 16)) + header[2:]
        parts += header
    if random.random() < 0.2:
        parts = random.randbytes(1020)
    parts = parts[:1020]
    pdu = safe_read(random)
    pdu.ahs = parts + bytes(-len(parts) % 4)
    if random.random() < 0.3:
        pdu.tail = b"\x7f" + random.randbytes(15)
    if random.random() < 0.2:
        pdu.opcode = random.choice(_INITIATOR_OPCODES)
    pdu.flags |= random.choice((0, 0x20))
    return [full(random), pdu, good(random)]


def wrong_digests(random: Random) -> list[Step]:
    """Header and data digests with bits turned over, in the middle of good PDUs."""
    header, data = random.choice(((True, False), (False, True), (True, True)))
    pdu = random.choice((safe_write, ping, text_request))(random)
    pdu.header_digest = random.choice((0, 1 << random.randrange(32), random.getrandbits(32)))
    pdu.data_digest = random.choice((0, 1 << random.randrange(32), random.getrandbits(32)))
    return [LogIn("full", header, data), good(random), pdu, good(random)]


def mutation(random: Random) -> list[Step]:
    """A PDU of any kind made by scapy, with some of its fields set to something else."""
    number = random.choice(_INITIATOR_OPCODES)
    layer = ISCSI.by_opcode[number]
    values: dict[str, object] = {"initiator_task_tag": random.getrandbits(16), "data": junk(random, 32)}
    fields = [each for each in layer.fields_desc if each.name not in ("opcode", "ahs", "header_digest", "data_digest")]
    for each in random.sample(fields, random.randrange(1, 5)):
        if each.name in ("data", "padding"):
            values[each.name] = junk(random, 40)
        elif each.name in ("cdb", "isid") or (each.name.startswith("reserved") and hasattr(each, "length_from")):
            values[each.name] = random.randbytes(int(each.sz))
        else:
            bits = getattr(each, "size", None) or int(each.sz) * 8
            values[each.name] = edge(random, bits)
    if number == opcodes.LOGIN_REQUEST:
        values.setdefault("immediate", 1)
    return [any_stage(random), Crafted(number, values), good(random)]


# --- Order and numbers ------------------------------------------------------------------------------------------------


def order(random: Random) -> list[Step]:
    """Good PDUs shuffled, repeated and left out."""
    steps: list[Step] = [good(random) for _ in range(random.randrange(2, 8))]
    for step in random.sample(steps, len(steps) // 2):
        steps.append(step)
    random.shuffle(steps)
    return [full(random), *steps, Wait()]


def command_numbers(random: Random) -> list[Step]:
    """CmdSN games: gaps, replays, wrap-around, both edges of the window, far away from it."""
    window = LIMITS.command_window
    first = random.choice((1, 0, 0xFFFFFFFF, 0xFFFFFFFE, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF - window, 2**32 - window))
    steps: list[Step] = [LogIn("full", first_cmd_sn=first, again=random.random() < 0.5)]
    if random.random() < 0.2:
        # Commands that wait for their data close the window.
        steps += [write(0, 1)] * (window + random.choice((-2, -1, 0, 1)))
    distances = (0, 0, 0, 1, 2, 3, -1, -2, window - 1, window, window + 1, 1 << 31, -(1 << 31), 0x7FFFFFFF)
    for _ in range(random.randrange(2, 30)):
        pdu = good(random)
        pdu.cmd_sn = random.choice(distances)
        if random.random() < 0.2:
            pdu.immediate = True
        steps.append(pdu)
    return [*steps, Wait()]


def task_tags(random: Random) -> list[Step]:
    """One task tag for several commands at once, or the reserved one."""
    tag = random.choice((7, 7, RESERVED_TAG))
    steps: list[Step] = []
    for _ in range(random.randrange(2, 6)):
        pdu = random.choice((safe_write, safe_read, unfinished_write, ping, text_request, task_management))(random)
        pdu.tag = tag
        steps.append(pdu)
    return [full(random), Device(at_once=random.random() < 0.5), *steps, AnswerR2T(), Wait()]


# --- Data transfer ----------------------------------------------------------------------------------------------------


def unfinished_write(random: Random) -> Send:
    """A WRITE that still owes data."""
    blocks = random.choice((1, 2, 16, 32, 33, 64, 128, 256, 512))
    lba = random.randrange(_LBA_MAX - 512)
    owed = random.choice((0, 0, BLOCK, min(blocks * BLOCK, 8192)))
    return write(lba, blocks, bytes(min(owed, (blocks - 1) * BLOCK)), final=random.random() < 0.7)


def data_out(random: Random) -> Send:
    """A Data-Out that nobody asked for."""
    return Send(
        opcodes.DATA_OUT,
        random.choice((0x80, 0)),
        tag=random.choice((7, 8, edge(random))),
        word20=random.choice((RESERVED_TAG, 1, 2, edge(random))),
        tail=struct.pack(">4xII4x", random.choice((0, 1, edge(random))), random.choice((0, BLOCK, edge(random)))),
        data=bytes(random.choice((0, 1, BLOCK, 8192, 16384))),
    )


def data_games(random: Random) -> list[Step]:
    """Data-Out with wrong tags, offsets, numbers and amounts; too much, too little, too late."""
    keys = random.choice(
        (
            (),
            (("InitialR2T", "No"), ("FirstBurstLength", "8192")),
            (("ImmediateData", "No"),),
            (("InitialR2T", "No"), ("MaxBurstLength", "4096"), ("FirstBurstLength", "4096")),
            (("MaxOutstandingR2T", "4"), ("MaxBurstLength", "2048")),
        )
    )
    steps: list[Step] = []
    for _ in range(random.randrange(1, 5)):
        pdu = unfinished_write(random)
        pdu.tag = random.choice((7, 8, None))
        if random.random() < 0.2:
            pdu.word20 = edge(random)
        if random.random() < 0.2:
            pdu.data = bytes(random.choice((BLOCK, 8192, 16384, 16388, 32768)))
        if random.random() < 0.1:
            pdu.flags = random.randrange(256)
        steps.append(pdu)
    for _ in range(random.randrange(8)):
        steps.append(random.choice((data_out, data_out, answer, answer, answer, wrong_answer, abort, good))(random))
    random.shuffle(steps)
    slow = [Device(at_once=False)] if random.random() < 0.3 else []
    return [LogIn("full", random.random() < 0.1, random.random() < 0.1, keys=keys), *slow, *steps, Wait()]


def answer(random: Random) -> Step:
    return AnswerR2T(random.randrange(4), pieces=random.choice((1, 1, 2, 5)))


def wrong_answer(random: Random) -> Step:
    moved = {random.choice(("ttt", "data_sn", "offset", "length", "tag")): random.choice((-1, 1, BLOCK))}
    step = AnswerR2T(random.randrange(4), pieces=random.choice((1, 3)), final=random.random() < 0.8)
    return replace(step, **moved)  # type: ignore[arg-type]


def abort(random: Random) -> Send:
    return task_management(random, opcodes.ABORT_TASK, random.choice((7, 8)))


def late_data(random: Random) -> list[Step]:
    """More Data-Out for commands that have all theirs, while they wait for their turn or are with the device."""
    steps: list[Step] = [full(random), Device(at_once=False, held=True)]
    for tag in range(20, 20 + random.randrange(2, 6)):
        blocks = random.choice((1, 128, 256))
        pdu = write(random.randrange(_LBA_MAX - 512), blocks, bytes(blocks * BLOCK if blocks == 1 else 0), tag=tag)
        pdu.flags = 0xA0 | random.choice((1, 2, 3))  # SIMPLE, ORDERED, HEAD OF QUEUE
        steps += [pdu, AnswerR2T(pieces=random.choice((1, 2))), AnswerR2T(), AnswerR2T()]
        if random.random() < 0.7:
            late = data_out(random)
            late.tag = random.randrange(20, tag + 1)
            steps.append(late)
    if random.random() < 0.3:
        steps.append(task_management(random, opcodes.ABORT_TASK, 20))
    return [*steps, Wait(), Device(at_once=False), Wait()]


# --- Text, NOP, task management, everything rare ----------------------------------------------------------------------

_TEXTS = (
    b"SendTargets=All\0",
    b"SendTargets=\0",
    b"SendTargets=iqn.2026-01.io.san-target:attacked\0",
    b"MaxRecvDataSegmentLength=512\0",
    b"MaxRecvDataSegmentLength=16777215\0",
    b"MaxBurstLength=512\0",
    b"X-com.example=1\0",
    b"InitiatorAlias=" + b"a" * 255 + b"\0",
    b"=\0",
    b"\0\0\0\0",
    b"NoEnd=1",
)


def text_data(random: Random) -> bytes:
    if random.random() < 0.2:
        return junk(random, 300)
    data = b"".join(random.choice(_TEXTS) for _ in range(random.randrange(4)))
    if random.random() < 0.1:
        data += b"".join(b"K%d=%d\0" % (number, number) for number in range(random.choice((10, 256, 257))))
    return data[: random.choice((len(data), len(data), random.randrange(len(data) + 1)))]


def text_request(random: Random) -> Send:
    return Send(
        opcodes.TEXT_REQUEST,
        random.choice((0x80, 0x80, 0x80, 0, 0x40, 0xC0)),
        tag=random.choice((None, 5)),
        word20=random.choice((RESERVED_TAG, RESERVED_TAG, 0, 1, edge(random))),
        data=text_data(random),
        immediate=random.random() < 0.3,
        lun=random.choice((0, 0, 1 << 48)),
    )


def texts(random: Random) -> list[Step]:
    """Text exchanges that never end, mix, grow, or ask for what was not offered."""
    stage = random.choice(("full", "discovery"))
    return [LogIn(stage), *(text_request(random) for _ in range(random.randrange(1, 20)))]


def text_flood(random: Random) -> list[Step]:
    """Text without end in one exchange: after 64 KiB it is rejected."""
    size = random.choice((1, 512, 8192))
    more = [Send(opcodes.TEXT_REQUEST, 0x40, tag=5, word20=0, data=b"x" * size) for _ in range(12)]
    stage = random.choice(("full", "discovery"))
    return [LogIn(stage, again=True), Send(opcodes.TEXT_REQUEST, 0x40, tag=5, data=b"A="), *more]


def nops(random: Random) -> list[Step]:
    """NOP-Outs of every form, as answers to pings never sent too."""
    steps: list[Step] = []
    for _ in range(random.randrange(1, 30)):
        pdu = ping(random)
        pdu.tag = random.choice((None, RESERVED_TAG))
        pdu.word20 = random.choice((RESERVED_TAG, RESERVED_TAG, edge(random)))
        pdu.data = bytes(random.choice((0, 4, 8192, 65536)))
        steps.append(pdu)
    return [LogIn(random.choice(("full", "full", "discovery"))), *steps]


def task_management(random: Random, function: int | None = None, referenced: int | None = None) -> Send:
    function = random.randrange(128) if function is None else function
    return Send(
        opcodes.TASK_MANAGEMENT_REQUEST,
        0x80 | function,
        word20=random.choice((7, 8, edge(random))) if referenced is None else referenced,
        tail=struct.pack(">II8x", edge(random), edge(random)),
        immediate=random.random() < 0.7,
        lun=random.choice((0, 0, 0, 1 << 48, edge(random, 64))) if referenced is None else 0,
    )


def task_managements(random: Random) -> list[Step]:
    """Floods of task management, over commands that are with the device, wait for data, or do not exist."""
    level = (("iSCSIProtocolLevel", "2"),) if random.random() < 0.5 else ()
    held = random.random() < 0.5
    steps: list[Step] = [LogIn("full", keys=level), Device(at_once=False, held=held)]
    for _ in range(random.randrange(6)):
        pdu = random.choice((safe_write, safe_read, unfinished_write))(random)
        pdu.tag = random.choice((7, 8, None))
        pdu.flags = pdu.flags & 0xF8 | random.choice((1, 1, 2, 3))
        steps.append(pdu)
    for _ in range(random.randrange(1, 12)):
        # Not TARGET COLD RESET, which by right ends the witness's session: it has a kind of its own.
        functions = (1, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, random.randrange(13, 128))
        steps.append(task_management(random, random.choice(functions)))
    if random.random() < 0.3:
        steps += [task_management(random, opcodes.ABORT_TASK, 7) for _ in range(80)]
    return [*steps, Wait(), Device(at_once=False), Wait()]


def cold_reset(random: Random) -> list[Step]:
    """TARGET COLD RESET with commands under way, and what comes behind it."""
    steps: list[Step] = [full(random), Device(at_once=False, held=random.random() < 0.5)]
    steps += [safe_write(random), unfinished_write(random)]
    steps.append(task_management(random, opcodes.TARGET_COLD_RESET, RESERVED_TAG))
    return [*steps, good(random), Wait(), Device(), Wait()]


def rare(random: Random) -> list[Step]:
    """SNACK, logout, login in full feature phase, and what only targets may send."""
    steps: list[Step] = []
    for _ in range(random.randrange(1, 6)):
        number = random.choice((opcodes.SNACK_REQUEST, opcodes.LOGOUT_REQUEST, opcodes.LOGIN_REQUEST, 0x20, 0x25, 0x3F))
        flags = 0x80 | random.choice((0, 1, 2, 3, 127))
        tail = struct.pack(">4xI8x", 0) if random.random() < 0.5 else random.randbytes(16)
        steps.append(Send(number, flags, word20=edge(random), tail=tail, immediate=random.random() < 0.5))
    return [LogIn(random.choice(("full", "full", "discovery"))), *steps, good(random), Wait()]


def logout(random: Random) -> list[Step]:
    """Logout while commands are under way, twice, and with PDUs behind it."""
    reason = random.choice((0, 0, 1, 2, 3, 127))
    steps: list[Step] = [full(random), Device(at_once=False, held=random.random() < 0.7)]
    steps += [random.choice((safe_write, safe_read, unfinished_write))(random) for _ in range(random.randrange(4))]
    for _ in range(random.choice((1, 1, 2))):
        immediate = random.random() < 0.5
        steps.append(Send(opcodes.LOGOUT_REQUEST, 0x80 | reason, word20=edge(random), immediate=immediate))
        steps.append(good(random))
    return [*steps, Wait(), Device(at_once=False), Wait()]


def slow(random: Random) -> list[Step]:
    """Less than a PDU, and time passes: half a login, half a command, or nothing at all."""
    pdu = random.choice((good, login_request))(random)
    pdu.part = (0, random.randrange(48))
    steps: list[Step] = [any_stage(random), pdu]
    for _ in range(random.randrange(1, 6)):
        steps += [Pass(random.choice((1, 10, 31, 50))), Raw(bytes(random.choice((0, 1))))]
    return [*steps, Pass(80)]


def login_request(random: Random) -> Send:
    """A Login Request behind the login, or in a login under way."""
    return Send(opcodes.LOGIN_REQUEST, random.choice((0x87, 0x81, 0x04, 0)), data=text_data(random), immediate=True)
