"""iSCSI TransportIDs: initiator ports as persistent reservations name them (SPC-4 7.6.4.6).

Format 01b is a port: "<iSCSI name>,i,0x<ISID as 12 hexadecimal digits>"; format 00b is a device: the name alone. Both
are null-terminated, padded to a multiple of 4 bytes and at least 20 bytes long after the 4-byte header.
"""

import struct
from typing import NamedTuple

from san_target.scsi.sense import invalid_field_in_parameter_list

PROTOCOL_ISCSI = 0x5
FORMAT_DEVICE = 0
FORMAT_PORT = 1
HEADER_BYTES = 4
NAME_BYTES_MIN = 20
# 223 bytes of name (RFC 7143 4.2.7.1), ",i,0x", 12 digits and the terminator, padded.
NAME_BYTES_MAX = 244
SEPARATOR = ",i,0x"


class TransportId(NamedTuple):
    """text: a port name where is_port, else an iSCSI name; both in lower case, as names are compared (RFC 3722)."""

    text: str
    is_port: bool


def encode(initiator_port: str) -> bytes:
    """The TransportID of a port name, padded."""
    name = initiator_port.encode("utf-8") + b"\0"
    length = max(NAME_BYTES_MIN, -(-len(name) // 4) * 4)
    return struct.pack(">BxH", FORMAT_PORT << 6 | PROTOCOL_ISCSI, length) + name.ljust(length, b"\0")


def decode(data: bytes, offset: int) -> tuple[TransportId, int]:
    """The TransportID at this offset of a parameter list, and the offset after it.

    Raises CheckCondition (INVALID FIELD IN PARAMETER LIST, pointing at what is wrong).
    """
    if offset + HEADER_BYTES > len(data):
        raise invalid_field_in_parameter_list(offset)
    kind, length = struct.unpack_from(">BxH", data, offset)
    if kind & 0x0F != PROTOCOL_ISCSI or kind & 0x30 or kind >> 6 not in (FORMAT_DEVICE, FORMAT_PORT):
        raise invalid_field_in_parameter_list(offset)
    end = offset + HEADER_BYTES + length
    if length % 4 or not NAME_BYTES_MIN <= length <= NAME_BYTES_MAX or end > len(data):
        raise invalid_field_in_parameter_list(offset + 2)
    name, terminator, padding = data[offset + HEADER_BYTES : end].partition(b"\0")
    if not terminator or not name or any(padding):
        raise invalid_field_in_parameter_list(offset + HEADER_BYTES)
    try:
        text = name.decode("utf-8").lower()
    except UnicodeDecodeError:
        raise invalid_field_in_parameter_list(offset + HEADER_BYTES) from None
    is_port = kind >> 6 == FORMAT_PORT
    if is_port != _names_a_port(text):
        raise invalid_field_in_parameter_list(offset + HEADER_BYTES)
    return TransportId(text, is_port), end


def _names_a_port(text: str) -> bool:
    name, separator, isid = text.rpartition(SEPARATOR)
    return bool(name and separator) and len(isid) == 12 and all(digit in "0123456789abcdef" for digit in isid)
