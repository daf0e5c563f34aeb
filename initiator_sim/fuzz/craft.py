"""What all kinds of cases are made of: numbers at which something begins or ends, and good PDUs to spoil."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Final

from initiator_sim.cdb import inquiry, read16, read_capacity16
from initiator_sim.fuzz.script import Begin, Send, Stage
from initiator_sim.packets import ISCSI
from initiator_sim.parameters import Pair
from san_target.wire import opcodes

INITIATOR_OPCODES: Final = (
    opcodes.NOP_OUT,
    opcodes.SCSI_COMMAND,
    opcodes.TASK_MANAGEMENT_REQUEST,
    opcodes.LOGIN_REQUEST,
    opcodes.TEXT_REQUEST,
    opcodes.DATA_OUT,
    opcodes.LOGOUT_REQUEST,
    opcodes.SNACK_REQUEST,
)
_VERIFY_16: Final = 0x8F
_BYTCHK: Final = 0x02
_WRITE_16: Final = 0x8A
_SIMPLE: Final = 1


@dataclass(frozen=True, slots=True)
class Ground:
    """What is attacked. iqn None = only the portal; lun_value as in PDUs; destructive = blocks may be written."""

    iqn: str | None
    initiator_name: str
    lun_value: int = 0
    block_bytes: int = 512
    blocks: int = 1
    destructive: bool = False


def edge(random: Random, bits: int = 32) -> int:
    """A number of so many bits, more often than not beside a power of two or at either end."""
    if random.random() < 0.4:
        return random.getrandbits(bits)
    return (1 << random.randrange(bits + 1)) + random.choice((-1, -1, 0, 1)) & (1 << bits) - 1


def tame(data: bytes) -> bytes:
    """Random bytes with none in them that could begin a SCSI command or a task management function."""
    return bytes(byte ^ 0x08 if byte & opcodes.OPCODE_MASK in (1, 2) else byte for byte in data)


def junk(random: Random, longest: int) -> bytes:
    return tame(random.randbytes(random.randrange(longest + 1)))


def layer(opcode: int, **fields: Any) -> ISCSI:
    """The scapy layer of an opcode of RFC 7143."""
    return ISCSI.by_opcode[opcode](**fields)


# --- How connections begin --------------------------------------------------------------------------------------------


def session(random: Random, *, digests: float = 0.15, keys: Sequence[Pair] = ()) -> Begin:
    """A session in the full feature phase; each digest with that probability."""
    return Begin(Stage.SESSION, random.random() < digests, random.random() < digests, tuple(keys))


def anywhere(random: Random) -> Begin:
    """Any stage, most often the last."""
    stage = random.choice((Stage.CONNECTED, Stage.DISCOVERY, Stage.SESSION, Stage.SESSION, Stage.SESSION))
    if stage is Stage.CONNECTED:
        return Begin(stage)
    return Begin(stage, random.random() < 0.2, random.random() < 0.2)


# --- Good PDUs --------------------------------------------------------------------------------------------------------


def command(
    ground: Ground, cdb: bytes, *, read_bytes: int = 0, write_bytes: int = 0, data: bytes = b"", **fields: Any
) -> Send:
    """A SCSI command; `data` is sent with it, of write_bytes."""
    usual: dict[str, Any] = {
        "final": 1,
        "read": int(read_bytes > 0),
        "write": int(write_bytes > 0),
        "attribute": _SIMPLE,
        "lun": ground.lun_value,
        "expected_data_transfer_length": read_bytes or write_bytes,
        "cdb": cdb.ljust(16, b"\0"),
        "data": data,
    }
    return Send(layer(opcodes.SCSI_COMMAND, **(usual | fields)))


def place(random: Random, ground: Ground, blocks: int) -> int:
    """An LBA where so many blocks are, if the volume has them at all."""
    return random.randrange(max(1, ground.blocks - blocks + 1))


def read(random: Random, ground: Ground) -> Send:
    blocks = random.choice((1, 1, 8, random.randrange(1, 64)))
    return command(ground, read16(place(random, ground, blocks), blocks), read_bytes=blocks * ground.block_bytes)


def look(random: Random, ground: Ground) -> Send:
    """Something small that every disk answers."""
    cdb, length = random.choice(((inquiry(), 255), (read_capacity16(), 32), (bytes(6), 0)))
    return command(ground, cdb, read_bytes=length)


def outgoing(random: Random, ground: Ground, blocks: int, **fields: Any) -> Send:
    """A command that takes data from the initiator: it is only compared (VERIFY, BYTCHK 01b), or maybe written."""
    writes = ground.destructive and random.random() < 0.7
    operation, flags = (_WRITE_16, 0) if writes else (_VERIFY_16, _BYTCHK)
    cdb = struct.pack(">BBQIBB", operation, flags, place(random, ground, blocks), blocks, 0, 0)
    return command(ground, cdb, write_bytes=blocks * ground.block_bytes, **fields)


def outgoing_whole(random: Random, ground: Ground) -> Send:
    """The same with all its data at once."""
    blocks = random.randrange(1, 5)
    return outgoing(random, ground, blocks, data=bytes(blocks * ground.block_bytes))


def ping(random: Random) -> Send:
    return Send(layer(opcodes.NOP_OUT, immediate=random.randrange(2), data=junk(random, 64)))


def good(random: Random, ground: Ground) -> Send:
    """Something that a well-behaved initiator would send."""
    if ground.iqn is None or random.random() < 0.3:
        return ping(random)
    return random.choice((read, look, outgoing_whole))(random, ground)


def text(random: Random, data: bytes, **fields: Any) -> Send:
    usual: dict[str, Any] = {"final": 1, "immediate": random.randrange(2), "data": data}
    return Send(layer(opcodes.TEXT_REQUEST, **(usual | fields)))


def task_management(random: Random, function: int, referenced: int = opcodes.RESERVED_TAG) -> Send:
    fields = {"function": function, "referenced_task_tag": referenced, "immediate": int(random.random() < 0.7)}
    return Send(layer(opcodes.TASK_MANAGEMENT_REQUEST, **fields))


def names(ground: Ground, kind: str | None = None) -> list[Pair]:
    """The keys that say who logs in where."""
    pairs = [("InitiatorName", ground.initiator_name)]
    if ground.iqn is not None and kind != "Discovery":
        pairs.append(("TargetName", ground.iqn))
    kind = kind or ("Discovery" if ground.iqn is None else "Normal")
    return [*pairs, ("SessionType", kind)]


def written(pairs: Sequence[Pair]) -> bytes:
    """Keys and values as text, whether they are allowed or not."""
    return "".join(f"{key}={value}\0" for key, value in pairs).encode()


def isid(random: Random) -> bytes:
    """RFC 7143 11.12.5: the random format, of a kind that neither scripts' own logins nor witnesses use."""
    return b"\x80\xfe" + random.randbytes(4)


def login(random: Random, pairs: Sequence[Pair] | bytes, **fields: Any) -> Send:
    """A Login Request that asks for the full feature phase from the operational stage, unless fields say otherwise."""
    data = pairs if isinstance(pairs, bytes) else written(pairs)
    usual: dict[str, Any] = {"transit": 1, "current_stage": 1, "next_stage": 3, "isid": isid(random), "data": data}
    return Send(layer(opcodes.LOGIN_REQUEST, **(usual | {"initiator_task_tag": 1, "cid": 1} | fields)))
