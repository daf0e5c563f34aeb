"""The frames between two members, as they lie on the wire. Pure.

A link carries requests one way and answers the other way: a fixed header, then raw payload. Integers are big-endian.
The header ends with a CRC32C over what precedes it and holds another one over the payload; a frame with a wrong one
ends the link, because then neither lengths nor data can be believed.

Every header is written down twice: as a declaration, which is the specification, and as a precompiled struct, which is
what runs. A property test holds both to the same bytes.
"""

from enum import IntEnum
from struct import Struct
from typing import Any, Final

import construct  # type: ignore[import-untyped]
import msgspec
from construct import Bytes, Const, Int8ub, Int16ub, Int32ub, Int64ub, Padding
from crc32c import crc32c

MAGIC: Final = b"SP"
REQUEST_KIND: Final = 1
ANSWER_KIND: Final = 2

PAYLOAD_BYTES_MAX: Final = 8 << 20
"""Of a request, and of an answer that is GOOD: the longest transfer of one SCSI command."""
REFUSAL_BYTES_MAX: Final = 4096
"""Of any other answer: a reason, or where the blocks are instead."""

NO_VOLUME: Final = bytes(16)

Payload = bytes | bytearray | memoryview


class FrameError(Exception):
    """What the other side sent cannot be a frame of this protocol, or breaks its rules: the link must end."""


class Operation(IntEnum):
    """What a request asks for. PREPARE to CANCEL are the steps of a migration, between its source and destination."""

    NOP = 0
    READ = 1
    WRITE = 2
    WRITE_SAME = 3
    UNMAP = 4
    FLUSH = 5
    COMPARE_AND_WRITE = 6
    OR_WRITE = 7
    WRITE_ATOMIC = 8
    ALLOCATION = 9
    PREFETCH = 10
    SANITIZE_OVERWRITE = 11
    SANITIZE_ERASE = 12
    CONTROL = 13
    PREPARE = 14
    COPY = 15
    MIRROR = 16
    MIRROR_UNMAP = 17
    SEAL = 18
    HANDOVER = 19
    CANCEL = 20


class Status(IntEnum):
    """How a request ended. LOST and above are said by the requester's own link and never lie on a wire.

    MOVED               the blocks have another owner; detail = the store revision at which the owner knows this
    RECHECK             the volume's epoch is newer than the request's: judge the command again; detail = the epoch
    FENCED              whoever sent this may not change anything here any more
    STALE_TICK          stamped too long ago; detail = the owner's tick
    BUSY                cannot be served now, may be later
    OUT_OF_SPACE, WRITE_PROTECTED     as `volume.device` says
    MEDIUM_ERROR        detail = the first LBA that is lost or cannot be read or written
    MISCOMPARE          detail = the first byte offset that differs
    WRONG_INCARNATION   a lease or a map belongs to another life of a member
    UNKNOWN_VOLUME      not here; it may have been deleted
    MALFORMED           the fields of the request make no sense
    FAILED              anything else; the payload holds the reason as text

    LOST                the link ended after the request was handed over: it may have been executed
    TIMED_OUT           there was no answer in time: it may have been executed, or be so later
    UNSENT              the link ended before the request left: it was not executed
    """

    GOOD = 0
    MOVED = 1
    RECHECK = 2
    FENCED = 3
    STALE_TICK = 4
    BUSY = 5
    OUT_OF_SPACE = 6
    MEDIUM_ERROR = 7
    WRITE_PROTECTED = 8
    MISCOMPARE = 9
    WRONG_INCARNATION = 10
    UNKNOWN_VOLUME = 11
    MALFORMED = 12
    FAILED = 13
    LOST = 0xF0
    TIMED_OUT = 0xF1
    UNSENT = 0xF2


OPERATION_LAST: Final = int(max(Operation))
WIRE_STATUS_LAST: Final = int(Status.FAILED)
GOOD: Final = int(Status.GOOD)

FLAG_DURABLE: Final = 0x01
"""On stable storage before the answer (FUA)."""
FLAG_RETRY: Final = 0x02
"""Sent before under the same request id, and may have been executed then."""


class Request(msgspec.Struct, gc=False):
    """One request.

    volume_id       the 16 bytes of the volume's id, NO_VOLUME where none is concerned
    lba, blocks     in logical blocks
    answer_bytes    how much payload is wanted in a GOOD answer, and the most that may come
    generation      under which the requester believes the other member to own the blocks; in the steps of a migration
                    that of the placement to come, which names the migration
    epoch           the volume's epoch at which the command was judged; in the steps of a migration the attempt
    revision        the store revision of the requester's map
    tick            the owner's tick that the requester knew when it last heard from the initiator
    request_id      0: the link gives one, and writes it here. Unique for one life of the requesting member
    acknowledged    what the owner remembers of requests with smaller ids is not needed any more
    """

    operation: int
    volume_id: bytes = NO_VOLUME
    lba: int = 0
    blocks: int = 0
    payload: Payload = b""
    answer_bytes: int = 0
    generation: int = 0
    epoch: int = 0
    revision: int = 0
    tick: int = 0
    flags: int = 0
    request_id: int = 0
    acknowledged: int = 0


class Answer(msgspec.Struct, gc=False):
    """One answer. detail: see `Status`. tick: the owner's, filled in when it is sent."""

    request_id: int
    status: int = GOOD
    detail: int = 0
    payload: Payload = b""
    tick: int = 0


# --- The specification ------------------------------------------------------------------------------------------------

REQUEST_HEADER: Final = construct.Struct(
    "magic" / Const(MAGIC),
    "kind" / Const(REQUEST_KIND, Int8ub),
    "operation" / Int8ub,
    "flags" / Int16ub,
    Padding(2),
    "payload_bytes" / Int32ub,
    "payload_crc" / Int32ub,
    "request_id" / Int64ub,
    "volume_id" / Bytes(16),
    "lba" / Int64ub,
    "blocks" / Int64ub,
    "generation" / Int64ub,
    "epoch" / Int64ub,
    "revision" / Int64ub,
    "tick" / Int64ub,
    "acknowledged" / Int64ub,
    "answer_bytes" / Int32ub,
    "header_crc" / Int32ub,  # CRC32C of the 100 bytes before
)

ANSWER_HEADER: Final = construct.Struct(
    "magic" / Const(MAGIC),
    "kind" / Const(ANSWER_KIND, Int8ub),
    "status" / Int8ub,
    "payload_bytes" / Int32ub,
    "payload_crc" / Int32ub,
    "request_id" / Int64ub,
    "detail" / Int64ub,
    "tick" / Int64ub,
    "header_crc" / Int32ub,  # CRC32C of the 36 bytes before
)


def header_fields(declaration: Any, header: bytes) -> dict[str, int | bytes]:
    """A header read by its declaration: for people, traces and tests. FrameError if it is none."""
    try:
        parsed = declaration.parse(header)
    except construct.ConstructError as error:
        raise FrameError(f"no header: {error}") from None
    return {name: value for name, value in parsed.items() if not name.startswith("_")}


# --- What runs --------------------------------------------------------------------------------------------------------

_REQUEST_FORMAT: Final = ">2sBBH2xIIQ16sQQQQQQQI"
_ANSWER_FORMAT: Final = ">2sBBIIQQQ"
REQUEST_STRUCT: Final = Struct(_REQUEST_FORMAT + "I")
ANSWER_STRUCT: Final = Struct(_ANSWER_FORMAT + "I")
REQUEST_BYTES: Final = REQUEST_STRUCT.size
ANSWER_BYTES: Final = ANSWER_STRUCT.size
CRC_BYTES: Final = 4
_PACK_REQUEST: Final = Struct(_REQUEST_FORMAT).pack
_PACK_ANSWER: Final = Struct(_ANSWER_FORMAT).pack


def pack_request(request: Request) -> bytes:
    """The header of a request. struct.error for a field that is out of its range."""
    payload = request.payload
    header = _PACK_REQUEST(
        MAGIC,
        REQUEST_KIND,
        request.operation,
        request.flags,
        len(payload),
        crc32c(payload) if payload else 0,
        request.request_id,
        request.volume_id,
        request.lba,
        request.blocks,
        request.generation,
        request.epoch,
        request.revision,
        request.tick,
        request.acknowledged,
        request.answer_bytes,
    )
    return header + crc32c(header).to_bytes(CRC_BYTES, "big")


def pack_answer(answer: Answer, tick: int) -> bytes:
    """The header of an answer. struct.error for a field that is out of its range."""
    payload = answer.payload
    header = _PACK_ANSWER(
        MAGIC,
        ANSWER_KIND,
        answer.status,
        len(payload),
        crc32c(payload) if payload else 0,
        answer.request_id,
        answer.detail,
        tick,
    )
    return header + crc32c(header).to_bytes(CRC_BYTES, "big")
