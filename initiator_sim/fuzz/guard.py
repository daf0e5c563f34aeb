"""Nothing leaves a hostile connection that could change what a volume holds, however it is read.

PDUs begin at multiples of four bytes of the stream: header, additional headers, padded data and digests are all whole
words (RFC 7143 11.2). What lies about lengths moves the border between two PDUs, but only by words. So every word is
looked at as if a PDU began there.
"""

import re
from typing import Final

from san_target.wire import opcodes

_CDB_AT: Final = 32
_BEGINS: Final = re.compile(rb"[\x01\x02]")
_OPCODE_OF_BYTE: Final = bytes(byte & opcodes.OPCODE_MASK for byte in range(256))

# SPC-4 annex E, SBC-3 5: what only looks, compares or moves heads. 60h to 7Dh were never assigned.
HARMLESS: Final = frozenset(
    {
        *(0x00, 0x01, 0x03, 0x08, 0x0B, 0x12, 0x1A, 0x1C),  # TEST UNIT READY ... MODE SENSE (6), RECEIVE DIAGNOSTIC
        *(0x25, 0x28, 0x2B, 0x2F, 0x34, 0x35, 0x37, 0x3C),  # READ CAPACITY (10), READ (10), VERIFY (10), flush ...
        *(0x4D, 0x5A, 0x5E),  # LOG SENSE, MODE SENSE (10), PERSISTENT RESERVE IN
        *range(0x60, 0x7E),
        *(
            0x84,
            0x88,
            0x8F,
            0x90,
            0x91,
            0x9E,
        ),  # RECEIVE COPY RESULTS, READ (16), VERIFY (16), flush, READ CAPACITY (16)
        *(0xA0, 0xA3, 0xA8, 0xAF, 0xB7),  # REPORT LUNS, MAINTENANCE IN, READ (12), VERIFY (12), READ DEFECT DATA (12)
    }
)
# What changes blocks and nothing else: no reservations, mode pages, firmware, nor other volumes.
WRITES: Final = frozenset({0x0A, 0x2A, 0x2E, 0x41, 0x42, 0x89, 0x8A, 0x8E, 0x93, 0x9C, 0xAA, 0xAE})
# They end commands of other initiators by right, who would notice.
RESETS: Final = frozenset(
    {
        opcodes.CLEAR_TASK_SET,
        opcodes.LOGICAL_UNIT_RESET,
        opcodes.TARGET_WARM_RESET,
        opcodes.TARGET_COLD_RESET,
    }
)


class Guard:
    """Of one connection. `destructive` lets writes pass."""

    def __init__(self, destructive: bool) -> None:
        self._allowed = HARMLESS | WRITES if destructive else HARMLESS
        self._tail = b""
        self._sent_bytes = 0

    def admits(self, data: bytes) -> bool:
        """May these bytes follow those admitted before? Those it does not admit must not be sent."""
        stream = self._tail + data
        start = -(self._sent_bytes - len(self._tail)) % 4
        words = stream[start::4].translate(_OPCODE_OF_BYTE)
        for found in _BEGINS.finditer(words):
            at = start + 4 * found.start()
            if words[found.start()] == opcodes.SCSI_COMMAND:
                if at + _CDB_AT < len(stream) and stream[at + _CDB_AT] not in self._allowed:
                    return False
            elif at + 1 < len(stream) and stream[at + 1] & 0x7F in RESETS:
                return False
        self._sent_bytes += len(data)
        self._tail = stream[-_CDB_AT:]
        return True
