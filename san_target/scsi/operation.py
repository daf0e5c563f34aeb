"""One row of the command table: what a CDB is called, who runs it, and in which states it may run.

The table itself (`LogicalUnit` looks commands up in it) is keyed by (opcode, service action), the service action being
None for opcodes that have none. The rules of legality live in the row, not in the handlers (SPC-4 5.9, SBC-4 4.17).
"""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from san_target.scsi.command import Command, Outcome
    from san_target.scsi.logical_unit import LogicalUnit

Now = Callable[["LogicalUnit", "Command"], "Outcome | None"]
Later = Callable[["LogicalUnit", "Command"], Coroutine[Any, Any, "Outcome"]]
DataOut = Callable[[bytes, int], int]


class Access(Enum):
    """How reservations judge a command (SPC-4 table 66, SBC-4 table 13; SPC-2 5.5.1 for RESERVE(6)).

    ALWAYS        never in conflict, not even with RESERVE(6): INQUIRY, REPORT LUNS, REQUEST SENSE
    STATUS        in conflict only with another nexus's RESERVE(6): TEST UNIT READY, READ CAPACITY
    READ          also in conflict with Exclusive Access types of others
    WRITE         also in conflict with Write Exclusive types of others
    RESERVED_OUT  PERSISTENT RESERVE OUT: as STATUS here; the rules per service action are its handler's
    RESERVE_6     RESERVE(6) and RELEASE(6): never judged here; the handlers decide
    """

    ALWAYS = auto()
    STATUS = auto()
    READ = auto()
    WRITE = auto()
    RESERVED_OUT = auto()
    RESERVE_6 = auto()


@dataclass(frozen=True, slots=True)
class Operation:
    """A command as the device server knows it.

    name          as the standard writes it, e.g. "READ (10)"
    usage         CDB usage map for REPORT SUPPORTED OPERATION CODES (SPC-4 6.35.3): one byte per CDB byte, a bit is 1
                  where the field is evaluated; byte 0 is the opcode, and a service action stands as its own value
    now           answers without waiting, or returns None for "await later"
    later         the way that may wait; None if `now` always answers. One of the two is set
    data_out      (cdb, block_size) -> Data-Out bytes that the CDB calls for; None = no Data-Out
    access        how reservations judge it; `access_of(cdb)` replaces it where that depends on the CDB
    with_attention  runs although a unit attention is pending, which stays pending (SAM-5 5.14.3)
    while_stopped   runs while the unit is stopped or its medium is out
    during_sanitize runs while a SANITIZE is under way, or after one failed (SBC-4 4.11.3)
    writes_medium   changes the medium: refused with WRITE PROTECTED on a read-only or software write protected unit.
                    The handler asks `unit.require_writable()` after its field checks (not the dispatcher before them)
    aborts_safe     `later` may be cancelled at any await: nothing but the blocks it was asked to write can be affected
    """

    name: str
    usage: bytes
    now: Now | None = None
    later: Later | None = None
    data_out: DataOut | None = None
    access: Access = Access.STATUS
    access_of: Callable[[bytes], Access] | None = None
    with_attention: bool = False
    while_stopped: bool = False
    during_sanitize: bool = False
    writes_medium: bool = False
    aborts_safe: bool = False


Operations = dict[tuple[int, int | None], Operation]
