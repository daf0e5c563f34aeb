"""CRC32C header and data digests (RFC 7143 11.2.3, 13.1)."""

from typing import TYPE_CHECKING, Final

from crc32c import crc32c

if TYPE_CHECKING:
    from typing_extensions import Buffer

DIGEST_BYTES: Final = 4


def digest(*buffers: "Buffer") -> bytes:
    """The four digest bytes, in the order of the wire, over the concatenation of the buffers.

    A header digest covers BHS and AHS; a data digest covers the data segment *and its padding* (RFC 7143 11.2.3), so
    the padding bytes belong to the buffers. The CRC's bits go out reflected (RFC 7143 13.1): of what CRC libraries call
    the value, the least significant byte first.
    """
    value = 0
    for buffer in buffers:
        value = crc32c(buffer, value)
    return value.to_bytes(DIGEST_BYTES, "little")
