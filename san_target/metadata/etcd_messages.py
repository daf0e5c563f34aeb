"""The part of etcd's v3 API that the store speaks: its messages as protocol buffers, written and read here.

Field numbers are those of etcd's rpc.proto and kv.proto (3.4; never changed since). Fields that are not named here are
skipped when read. Pure: bytes in, values out.
"""

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Annotated, TypeVar, get_args, get_origin, get_type_hints

VARINT, EIGHT_BYTES, LENGTH_DELIMITED, FOUR_BYTES = 0, 1, 2, 5  # wire types


class MessageError(Exception):
    """Bytes that are no message of this kind."""


class Message:
    """Each field is annotated with its number. A list is a repeated field; None and default values are not written."""

    def encode(self) -> bytes:
        parts: list[bytes] = []
        for number, (name, _, repeated) in _fields_of(type(self)).items():
            value = getattr(self, name)
            for one in value if repeated else (value,):
                if isinstance(one, int):  # bool too
                    if one:
                        parts.append(_varint(number << 3 | VARINT) + _varint(one))
                elif one is not None:
                    data = one if isinstance(one, bytes) else one.encode()
                    if data or isinstance(one, Message):
                        parts.append(_varint(number << 3 | LENGTH_DELIMITED) + _varint(len(data)) + data)
        return b"".join(parts)


M = TypeVar("M", bound=Message)
_FIELDS: dict[type[Message], dict[int, tuple[str, type, bool]]] = {}


def _fields_of(kind: type[Message]) -> dict[int, tuple[str, type, bool]]:
    """number -> (attribute, type of one value, whether it is a list of such)."""
    if kind not in _FIELDS:
        fields = {}
        for name, annotated in get_type_hints(kind, include_extras=True).items():
            declared, number = get_args(annotated)
            # What is left: a type, or one that may be None.
            one = get_args(declared)[0] if get_args(declared) else declared
            fields[number] = (name, one, get_origin(declared) is list)
        _FIELDS[kind] = dict(sorted(fields.items()))
    return _FIELDS[kind]


def decode(kind: type[M], data: bytes) -> M:
    """MessageError for what is no such message."""
    message, fields = kind(), _fields_of(kind)
    position, end = 0, len(data)
    while position < end:
        position = _take_field(message, fields, data, position)
    return message


def decode_in_steps(kind: type[M], data: bytes, step_fields: int) -> Generator[None, None, M]:
    """`decode`, which pauses after so many fields: one that is repeated thousands of times takes its time."""
    message, fields = kind(), _fields_of(kind)
    position, end, taken = 0, len(data), 0
    while position < end:
        position = _take_field(message, fields, data, position)
        taken += 1
        if taken % step_fields == 0:
            yield
    return message


def _take_field(message: Message, fields: dict[int, tuple[str, type, bool]], data: bytes, position: int) -> int:
    """Read the field that begins here into the message; returns where it ends."""
    value: int | bytes
    try:
        tag, position = _read_varint(data, position)
        wire_type = tag & 7
        if wire_type == VARINT:
            value, position = _read_varint(data, position)
        elif wire_type == LENGTH_DELIMITED:
            length, start = _read_varint(data, position)
            position = start + length
            value = data[start:position]
        elif wire_type in (EIGHT_BYTES, FOUR_BYTES):
            position += 8 if wire_type == EIGHT_BYTES else 4
        else:
            raise MessageError(f"unknown wire type {wire_type}")
    except IndexError:
        raise MessageError("a message is cut short") from None
    if position > len(data):
        raise MessageError("a message is cut short")
    found = fields.get(tag >> 3)
    if found is not None and wire_type in (VARINT, LENGTH_DELIMITED):
        name, expected, repeated = found
        if repeated:
            getattr(message, name).append(_value(expected, value))
        else:
            setattr(message, name, _value(expected, value))
    return position


def _value(kind: type, raw: int | bytes) -> object:
    if isinstance(raw, int):
        if kind is int:
            return raw - (1 << 64) if raw >> 63 else raw  # int64 in two's complement
        if kind is bool:
            return bool(raw)
    elif kind is bytes:
        return raw
    elif kind is str:
        return raw.decode(errors="replace")
    elif issubclass(kind, Message):
        return decode(kind, raw)
    raise MessageError("a field has another type than expected")


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    """(value, position after it). IndexError where the data ends."""
    byte = data[position]
    if byte < 0x80:  # most of them
        return byte, position + 1
    value, shift = byte & 0x7F, 7
    while True:
        position += 1
        byte = data[position]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position + 1
        shift += 7
        if shift > 63:
            raise MessageError("a number has more than 64 bits")


PUT, DELETE = 0, 1  # Event.EventType
COMPARE_MOD_REVISION = 2  # Compare.CompareTarget

# kv.proto -------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class KeyValue(Message):
    key: Annotated[bytes, 1] = b""
    create_revision: Annotated[int, 2] = 0
    mod_revision: Annotated[int, 3] = 0
    value: Annotated[bytes, 5] = b""
    lease: Annotated[int, 6] = 0


@dataclass(slots=True)
class KeyEvent(Message):
    """type: PUT or DELETE; of a deletion `kv` has key and mod_revision only."""

    type: Annotated[int, 1] = PUT
    kv: Annotated[KeyValue, 2] = field(default_factory=KeyValue)


# rpc.proto ------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Header(Message):
    """Of every answer: who gave it, and the store revision and raft term that it knew then."""

    cluster_id: Annotated[int, 1] = 0
    member_id: Annotated[int, 2] = 0
    revision: Annotated[int, 3] = 0
    raft_term: Annotated[int, 4] = 0


@dataclass(slots=True)
class Answer(Message):
    """What all answers have."""

    header: Annotated[Header, 1] = field(default_factory=Header)


@dataclass(slots=True)
class RangeRequest(Message):
    """Keys in [key, range_end), or `key` alone. revision: 0 = now. Linearizable: `serializable` is never set."""

    key: Annotated[bytes, 1] = b""
    range_end: Annotated[bytes, 2] = b""
    limit: Annotated[int, 3] = 0
    revision: Annotated[int, 4] = 0
    keys_only: Annotated[bool, 8] = False
    count_only: Annotated[bool, 9] = False


@dataclass(slots=True)
class RangeAnswer(Answer):
    kvs: Annotated[list[KeyValue], 2] = field(default_factory=list)
    more: Annotated[bool, 3] = False


@dataclass(slots=True)
class PutRequest(Message):
    key: Annotated[bytes, 1] = b""
    value: Annotated[bytes, 2] = b""
    lease: Annotated[int, 3] = 0


@dataclass(slots=True)
class DeleteRequest(Message):
    key: Annotated[bytes, 1] = b""


@dataclass(slots=True)
class Operation(Message):
    """One of the two."""

    put: Annotated[PutRequest | None, 2] = None
    delete: Annotated[DeleteRequest | None, 3] = None


@dataclass(slots=True)
class RevisionCompare(Message):
    """True if the key's mod_revision equals this; 0, also when it is not written, means: there is no such key."""

    key: Annotated[bytes, 3] = b""
    mod_revision: Annotated[int, 6] = 0
    target: Annotated[int, 2] = COMPARE_MOD_REVISION


@dataclass(slots=True)
class TxnRequest(Message):
    compare: Annotated[list[RevisionCompare], 1] = field(default_factory=list)
    success: Annotated[list[Operation], 2] = field(default_factory=list)


@dataclass(slots=True)
class TxnAnswer(Answer):
    succeeded: Annotated[bool, 2] = False


@dataclass(slots=True)
class WatchCreate(Message):
    key: Annotated[bytes, 1] = b""
    range_end: Annotated[bytes, 2] = b""
    start_revision: Annotated[int, 3] = 0
    progress_notify: Annotated[bool, 4] = False
    fragment: Annotated[bool, 8] = False


@dataclass(slots=True)
class WatchRequest(Message):
    create: Annotated[WatchCreate, 1] = field(default_factory=WatchCreate)


@dataclass(slots=True)
class WatchAnswer(Answer):
    """fragment: more events of the same revisions follow in the next answer."""

    created: Annotated[bool, 3] = False
    canceled: Annotated[bool, 4] = False
    compact_revision: Annotated[int, 5] = 0
    cancel_reason: Annotated[str, 6] = ""
    fragment: Annotated[bool, 7] = False
    events: Annotated[list[KeyEvent], 11] = field(default_factory=list)


@dataclass(slots=True)
class LeaseGrant(Message):
    """ttl: whole seconds; etcd may grant more, never less."""

    ttl: Annotated[int, 1] = 0


@dataclass(slots=True)
class LeaseRequest(Message):
    """For renewal (KeepAlive) and revocation."""

    id: Annotated[int, 1] = 0


@dataclass(slots=True)
class LeaseAnswer(Answer):
    """ttl: 0 = the lease has ended."""

    id: Annotated[int, 2] = 0
    ttl: Annotated[int, 3] = 0


@dataclass(slots=True)
class AuthenticateRequest(Message):
    name: Annotated[str, 1] = ""
    password: Annotated[str, 2] = ""


@dataclass(slots=True)
class AuthenticateAnswer(Answer):
    token: Annotated[str, 2] = ""
