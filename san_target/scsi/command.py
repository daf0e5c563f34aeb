"""One SCSI command on its way through a logical unit, and how it ended.

`session` makes a `Command` when everything the initiator sends for it has arrived; `scsi` answers with an `Outcome`.
Neither knows PDUs: tags, sequence numbers and residual flags stay in `session`.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from typing_extensions import Buffer

    from san_target.scsi.nexus import Nexus

# SAM-5 5.3.1 status codes
GOOD = 0x00
CHECK_CONDITION = 0x02
CONDITION_MET = 0x04
BUSY = 0x08
RESERVATION_CONFLICT = 0x18
TASK_SET_FULL = 0x28
ACA_ACTIVE = 0x30
TASK_ABORTED = 0x40

# Task attributes as iSCSI codes them (RFC 7143 11.3.1)
UNTAGGED, SIMPLE, ORDERED, HEAD_OF_QUEUE, ACA = range(5)


class Command:
    """A command descriptor block with its data, as received over one I_T nexus.

    cdb            the whole CDB (16 bytes as a rule; longer with an extended-CDB AHS)
    data_out       all Data-Out bytes that arrived (may be shorter or longer than the CDB asks for)
    data_out_expected  how many the initiator said it has (the expected data transfer length of a write); None = as
                   many as arrived. Tells commands that take an exact length from those that were cut to what they take
    lun            logical unit number as an int (already decoded from the 8-byte field)
    attribute      one of SIMPLE, ORDERED, ...
    heard_s        when its initiator was last heard before it was begun, in the time of its session's host
    hear_again     asks the initiator for a sign of life, and returns when it came; None: nobody can be asked
    aborted        set by task management: the command must stop at its next safe point and its outcome is dropped
    """

    __slots__ = (
        "aborted",
        "attribute",
        "cdb",
        "data_out",
        "data_out_expected",
        "hear_again",
        "heard_s",
        "lun",
        "nexus",
    )

    def __init__(
        self, nexus: "Nexus", cdb: bytes, data_out: "Buffer" = b"", lun: int = 0, attribute: int = SIMPLE
    ) -> None:
        self.nexus = nexus
        self.cdb = cdb
        self.data_out = data_out
        self.data_out_expected: int | None = None
        self.lun = lun
        self.attribute = attribute
        self.aborted = False
        self.heard_s = 0.0
        self.hear_again: Callable[[], Awaitable[float]] | None = None


class Outcome:
    """How a command ended.

    data_in is cut to the allocation length or transfer length of the CDB, but not to the initiator's expected data
    transfer length: `session` computes residuals (RFC 7143 11.4.5). sense is fixed or descriptor format, b"" if none.
    """

    __slots__ = ("data_in", "sense", "status")

    def __init__(self, status: int = GOOD, data_in: "Buffer" = b"", sense: bytes = b"") -> None:
        self.status = status
        self.data_in = data_in
        self.sense = sense

    def __repr__(self) -> str:
        return f"Outcome({self.status:#04x}, {len(memoryview(self.data_in))} bytes, sense={self.sense.hex()})"


OUTCOME_GOOD = Outcome()
