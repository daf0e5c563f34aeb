"""Cases in sessions: order, CmdSN, task tags, data nobody asked for, text without end, floods, who takes no answers."""

import struct
from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Final

from initiator_sim.cdb import read16
from initiator_sim.fuzz import craft
from initiator_sim.fuzz.craft import Ground, edge, good, layer, session
from initiator_sim.fuzz.guard import RESETS
from initiator_sim.fuzz.script import AnswerR2T, Await, Begin, Ending, Script, Send, Stage, Step, StopListening
from initiator_sim.parameters import Pair
from san_target.wire import opcodes
from san_target.wire.opcodes import RESERVED_TAG

_WINDOW: Final = 256
_FUNCTIONS: Final = sorted({*range(1, 13), 0, 13, 64, 127} - RESETS)
_TEXTS: Final = (
    b"SendTargets=All\0",
    b"SendTargets=\0",
    b"SendTargets=iqn.2026-01.org.example:nothing\0",
    b"MaxRecvDataSegmentLength=512\0",
    b"MaxRecvDataSegmentLength=0\0",
    b"HeaderDigest=CRC32C\0",
    b"X-org.example=1\0",
    b"=\0",
    b"\0\0\0\0",
    b"NoEnd=1",
)
_TRANSFERS: Final[tuple[tuple[Pair, ...], ...]] = (
    (),
    (("InitialR2T", "No"), ("FirstBurstLength", "8192")),
    (("ImmediateData", "No"),),
    (("InitialR2T", "No"), ("MaxBurstLength", "4096"), ("FirstBurstLength", "4096")),
    (("MaxOutstandingR2T", "4"), ("MaxBurstLength", "2048"), ("FirstBurstLength", "512")),
)


def order(random: Random, ground: Ground) -> Script:
    """Good PDUs shuffled, repeated and left out."""
    steps: list[Step] = [good(random, ground) for _ in range(random.randrange(2, 9))]
    steps += random.sample(steps, len(steps) // 2)
    random.shuffle(steps)
    if random.random() < 0.3:
        steps.insert(random.randrange(len(steps)), Send(layer(opcodes.LOGOUT_REQUEST, reason=random.choice((0, 1, 2)))))
    if random.random() < 0.3:
        steps.insert(random.randrange(len(steps)), craft.login(random, craft.names(ground)))
    return Script(session(random), tuple(steps))


def command_numbers(random: Random, ground: Ground) -> Script:
    """CmdSN games: gaps, replays, both edges of the window, far beyond it, and a start shortly before it wraps."""
    first = random.choice((1, 0, 0xFFFFFFFF, 0xFFFFFFFE, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF - _WINDOW))
    near = (0, 0, 0, 1, 2, -1, -2, _WINDOW - 1, _WINDOW, _WINDOW + 1, 31, 32, 127, 128, 1 << 31, -(1 << 31))
    steps: list[Step] = []
    if random.random() < 0.2:
        # Commands that wait for their data close the window.
        steps += [craft.outgoing(random, ground, 1) for _ in range(random.choice((16, 64, 140)))]
    for _ in range(random.randrange(2, 25)):
        steps.append(replace(good(random, ground), cmd_sn_away=random.choice(near)))
    return Script(Begin(Stage.SESSION, cmd_sn=first), tuple(steps))


def task_tags(random: Random, ground: Ground) -> Script:
    """One task tag for several commands at once, or the reserved one."""
    tag = random.choice((7, 7, 7, RESERVED_TAG))
    steps: list[Step] = []
    for _ in range(random.randrange(2, 8)):
        function = craft.task_management(random, random.choice(_FUNCTIONS), 7)
        unfinished = craft.outgoing(random, ground, random.randrange(1, 64))
        step = random.choice((good(random, ground), unfinished, unfinished, function, _text_request(random)))
        step.pdu.initiator_task_tag = tag
        steps.append(step)
    return Script(session(random), (*steps, Await(), AnswerR2T()))


def task_management(random: Random, ground: Ground) -> Script:
    """Floods of task management over commands that are under way, wait for data, or do not exist. No resets."""
    steps: list[Step] = []
    for _ in range(random.randrange(5)):
        step = random.choice((good(random, ground), craft.outgoing(random, ground, random.randrange(1, 64))))
        step.pdu.initiator_task_tag = random.choice((7, 8, 9))
        steps.append(step)
    for _ in range(random.choice((1, 3, 10, 80))):
        referenced = random.choice((7, 8, 9, edge(random)))
        steps.append(craft.task_management(random, random.choice(_FUNCTIONS), referenced))
    return Script(session(random), (*steps, Await()))


# --- Data that nobody asked for ---------------------------------------------------------------------------------------


def _data_out(random: Random) -> Send:
    fields = {
        "final": random.randrange(2),
        "initiator_task_tag": random.choice((7, 8, edge(random))),
        "target_transfer_tag": random.choice((RESERVED_TAG, 0, 1, 2, edge(random))),
        "data_sn": random.choice((0, 1, edge(random))),
        "buffer_offset": random.choice((0, 512, edge(random))),
        "data": bytes(random.choice((0, 1, 512, 8192, 16384))),
    }
    return Send(layer(opcodes.DATA_OUT, **fields))


def _answer(random: Random) -> AnswerR2T:
    step = AnswerR2T(random.randrange(4), pieces=random.choice((1, 1, 2, 5)))
    if random.random() < 0.5:
        return step
    spoiled = random.choice(("tag_away", "transfer_tag_away", "data_sn_away", "offset_away", "length_away"))
    away = {spoiled: random.choice((-1, 1, 512))}
    return replace(step, final=random.random() < 0.8, **away)


def unsolicited_data(random: Random, ground: Ground) -> Script:
    """Immediate and unsolicited data beyond what was agreed, Data-Out with wrong tags, numbers, offsets and amounts."""
    steps: list[Step] = []
    for _ in range(random.randrange(1, 5)):
        blocks = random.choice((1, 2, 16, 33, 64, 256))
        sent = random.choice((0, 0, ground.block_bytes, 8192, 16388))
        fields = {"data": bytes(sent), "final": random.randrange(2)}
        if random.random() < 0.2:
            fields["expected_data_transfer_length"] = edge(random)
        if random.random() < 0.1:
            fields |= {"write": 0}
        step = craft.outgoing(random, ground, blocks, **fields)
        step.pdu.initiator_task_tag = random.choice((7, 8, 9))
        steps += [step, *([Await()] if random.random() < 0.5 else [])]
    for _ in range(random.randrange(1, 9)):
        abort = craft.task_management(random, opcodes.ABORT_TASK, random.choice((7, 8)))
        steps.append(random.choice((_data_out(random), _data_out(random), _answer(random), _answer(random), abort)))
    if random.random() < 0.5:
        random.shuffle(steps)
    keys = random.choice(_TRANSFERS)
    return Script(session(random, keys=keys), (*steps, Await()))


# --- Text and floods --------------------------------------------------------------------------------------------------


def _text_request(random: Random) -> Send:
    data = b"".join(random.choice(_TEXTS) for _ in range(random.randrange(4)))
    if random.random() < 0.2:
        data += b"".join(b"k%d=%d\0" % (number, number) for number in range(random.choice((10, 256, 257))))
    if random.random() < 0.3:
        data = data[: random.randrange(len(data) + 1)] + craft.junk(random, 40)
    fields = {"final": random.choice((1, 1, 1, 0)), "continue_": int(random.random() < 0.2)}
    fields["target_transfer_tag"] = random.choice((RESERVED_TAG, RESERVED_TAG, 0, 1, edge(random)))
    if random.random() < 0.5:
        fields["initiator_task_tag"] = 5
    return craft.text(random, data, **fields)


def _either(random: Random) -> Begin:
    return Begin(random.choice((Stage.SESSION, Stage.DISCOVERY)))


def text(random: Random, ground: Ground) -> Script:
    """Text exchanges that mix, never end, or ask for what was not offered."""
    return Script(_either(random), tuple(_text_request(random) for _ in range(random.randrange(1, 20))))


def text_flood(random: Random, ground: Ground) -> Script:
    """Text without end in one exchange, or very many small exchanges whose answers are large."""
    if random.random() < 0.5:
        data = b"x" * random.choice((1, 512, 8192))
        fields = {"final": 0, "continue_": 1, "initiator_task_tag": 5, "immediate": 0}
        first = craft.text(random, b"k=", **fields)
        more = craft.text(random, data, **fields | {"target_transfer_tag": 0})
        return Script(_either(random), (first, *[more] * random.choice((10, 100))))
    asked = craft.text(random, b"SendTargets=All\0", immediate=1)
    return Script(_either(random), (asked,) * random.choice((50, 200)))


def ping_flood(random: Random, ground: Ground) -> Script:
    """NOP-Outs of every form and size, also as answers to pings that were never sent."""
    steps: list[Step] = []
    for _ in range(random.choice((3, 30, 100))):
        fields = {"immediate": random.randrange(2), "data": bytes(random.choice((0, 4, 4096, 8192)))}
        fields["target_transfer_tag"] = random.choice((RESERVED_TAG, RESERVED_TAG, edge(random)))
        if random.random() < 0.3:
            fields["initiator_task_tag"] = RESERVED_TAG
        steps.append(Send(layer(opcodes.NOP_OUT, **fields)))
    return Script(_either(random), tuple(steps))


def deaf(random: Random, ground: Ground) -> Script:
    """Reads and pings whose answers nobody takes, until the session is left open or reset."""
    if ground.iqn is None or random.random() < 0.3:
        asked: Sequence[Send] = [Send(layer(opcodes.NOP_OUT, immediate=1, data=bytes(8192)))] * 64
    else:
        blocks = min(ground.blocks, max(1, (1 << 20) // ground.block_bytes))
        cdb = struct.pack(">16s", read16(0, blocks))
        asked = [craft.command(ground, cdb, read_bytes=blocks * ground.block_bytes)] * random.choice((8, 60))
    ending = random.choice((Ending.RESET, Ending.CLOSE, Ending.LINGER))
    return Script(session(random, digests=0.0), (StopListening(), *asked), ending)
