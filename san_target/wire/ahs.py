"""Additional Header Segments: what does not fit the 48 bytes of a SCSI Command's header (RFC 7143 11.2.2)."""

from dataclasses import dataclass
from typing import Final, TypeAlias

from construct import (  # type: ignore[import-untyped]
    BitsInteger,
    BitStruct,
    Bytes,
    GreedyBytes,
    Int16ub,
    Int32ub,
    Padding,
    Struct,
    this,
)

from san_target.wire.errors import PduError

AHS_EXTENDED_CDB: Final = 1
AHS_BIDIRECTIONAL_READ_LENGTH: Final = 2

# AHSLength counts what follows AHSType, without padding to a four-byte word. The two high bits of AHSType are reserved.
AHS: Final = Struct(
    "ahs_length" / Int16ub,
    "type" / BitStruct(Padding(2), "code" / BitsInteger(6)),
    "specific" / Bytes(this.ahs_length),
    Padding((1 - this.ahs_length) % 4),
)
EXTENDED_CDB: Final = Struct(Padding(1), "cdb_tail" / GreedyBytes)
EXPECTED_BIDIRECTIONAL_READ_LENGTH: Final = Struct(Padding(1), "expected_read_data_length" / Int32ub)

AHS_BYTES_MAX: Final = 255 * 4
"""TotalAHSLength is one byte that counts words."""
CDB_BYTES_MAX: Final = 260
"""The longest CDB: SPC-4 4.3.3, a variable length CDB of 8 + 252 bytes."""
_BHS_CDB_BYTES: Final = 16
_BIDIRECTIONAL_AHS_LENGTH: Final = 5


@dataclass(slots=True, frozen=True)
class ExtendedCdb:
    """The bytes of a CDB beyond the 16 in the header (RFC 7143 11.2.2.3)."""

    cdb_tail: bytes


@dataclass(slots=True, frozen=True)
class ExpectedBidirectionalReadLength:
    """How many bytes a bidirectional command expects to read (RFC 7143 11.2.2.4)."""

    expected_read_data_length: int


AdditionalHeader: TypeAlias = ExtendedCdb | ExpectedBidirectionalReadLength


def parse_ahs(data: bytes) -> list[AdditionalHeader]:
    """The additional headers of one SCSI Command, in the order sent; `data` is all of them with their padding.

    Raises PduError where a length does not fit its type or the data, for a type that RFC 7143 11.2.2.1 reserves, and
    for a second header of one type: a command has one CDB and one read length.
    """
    if len(data) > AHS_BYTES_MAX or len(data) % 4:
        raise PduError(f"additional headers of {len(data)} bytes: not words, or more than {AHS_BYTES_MAX}")
    found: dict[int, AdditionalHeader] = {}
    position = 0
    while position < len(data):
        length = Int16ub.parse(data[position : position + 2])
        end = position + 3 + length
        if length == 0 or end > len(data):
            raise PduError(f"additional header of AHSLength {length} at byte {position} of {len(data)}")
        code = data[position + 2] & 0x3F
        if code in found:
            raise PduError(f"two additional headers of type {code}")
        found[code] = _parse_ahs_specific(code, bytes(data[position + 3 : end]))
        position = end + (-end) % 4
    return list(found.values())


def _parse_ahs_specific(code: int, specific: bytes) -> AdditionalHeader:
    """`specific` is what AHSLength counts: a reserved byte, then the content."""
    if code == AHS_EXTENDED_CDB:
        # A CDB that fits the header must not use this type (RFC 7143 11.2.2.3).
        if not 1 <= len(specific) - 1 <= CDB_BYTES_MAX - _BHS_CDB_BYTES:
            raise PduError(f"extended CDB with {len(specific) - 1} bytes beyond the first {_BHS_CDB_BYTES}")
        return ExtendedCdb(EXTENDED_CDB.parse(specific).cdb_tail)
    if code == AHS_BIDIRECTIONAL_READ_LENGTH:
        if len(specific) != _BIDIRECTIONAL_AHS_LENGTH:
            raise PduError(f"bidirectional read length with AHSLength {len(specific)}")
        return ExpectedBidirectionalReadLength(
            EXPECTED_BIDIRECTIONAL_READ_LENGTH.parse(specific).expected_read_data_length
        )
    raise PduError(f"additional header of reserved type {code}")


def build_ahs(*headers: AdditionalHeader) -> bytes:
    """The additional headers with their padding: a whole number of words, for total_ahs_length = len // 4."""
    segments = bytearray()
    for header in headers:
        if isinstance(header, ExtendedCdb):
            code, specific = AHS_EXTENDED_CDB, EXTENDED_CDB.build({"cdb_tail": header.cdb_tail})
        else:
            code = AHS_BIDIRECTIONAL_READ_LENGTH
            specific = EXPECTED_BIDIRECTIONAL_READ_LENGTH.build(
                {"expected_read_data_length": header.expected_read_data_length}
            )
        segments += AHS.build({"ahs_length": len(specific), "type": {"code": code}, "specific": specific})
    return bytes(segments)
