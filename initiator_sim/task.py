"""One SCSI command as an initiator sees it: what was asked, and what came of it."""

from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from typing_extensions import Buffer

GOOD: Final = 0x00
CHECK_CONDITION: Final = 0x02
CONDITION_MET: Final = 0x04
BUSY: Final = 0x08
RESERVATION_CONFLICT: Final = 0x18
TASK_SET_FULL: Final = 0x28
ACA_ACTIVE: Final = 0x30
TASK_ABORTED: Final = 0x40
NO_STATUS: Final = -1

STATUS_NAMES: Final = {
    GOOD: "GOOD",
    CHECK_CONDITION: "CHECK CONDITION",
    CONDITION_MET: "CONDITION MET",
    BUSY: "BUSY",
    RESERVATION_CONFLICT: "RESERVATION CONFLICT",
    TASK_SET_FULL: "TASK SET FULL",
    ACA_ACTIVE: "ACA ACTIVE",
    TASK_ABORTED: "TASK ABORTED",
}

SIMPLE: Final = 1
ORDERED: Final = 2
HEAD_OF_QUEUE: Final = 3

_FINAL: Final = 0x80
_READ: Final = 0x40
_WRITE: Final = 0x20


class Failure(Enum):
    """Why a task ended without a SCSI status."""

    ABORTED = "aborted by task management"
    REJECTED = "rejected by the target"
    TARGET_FAILURE = "the target reported an internal failure"
    PATH_LOST = "no path to the target"


class Task:
    """A command; it may be used again once it has ended.

    on_done(task) is called when it ended. read_bytes: how much is expected to be read; write_data: what is written.
    With keep_data, `data` outlives on_done; otherwise it is only valid during on_done. `started` belongs to the user.

    After the end: status (NO_STATUS where there is none, then `failure` says why), data (what was read), sense (raw
    sense data or b""), residual (bytes, negative = overflow).
    """

    __slots__ = (
        "_gathered",
        "cdb",
        "context",
        "data",
        "data_sn",
        "dirty",
        "failure",
        "flags",
        "itt",
        "keep_data",
        "lun",
        "on_done",
        "r2t_sn",
        "read_bytes",
        "received_bytes",
        "residual",
        "sense",
        "sent_cmd_sn",
        "started",
        "status",
        "write_data",
    )

    def __init__(
        self,
        cdb: bytes,
        on_done: "Callable[[Task], None]",
        *,
        lun: int = 0,
        read_bytes: int = 0,
        write_data: "Buffer | None" = None,
        attribute: int = SIMPLE,
        keep_data: bool = False,
    ) -> None:
        if read_bytes and write_data is not None:
            raise ValueError("bidirectional commands are not supported")
        self.cdb = cdb.ljust(16, b"\0")
        self.on_done = on_done
        self.lun = lun
        self.read_bytes = read_bytes
        self.write_data = None if write_data is None else memoryview(write_data).cast("B")
        self.flags = _FINAL | attribute | (_READ if read_bytes else 0) | (_WRITE if write_data is not None else 0)
        self.keep_data = keep_data
        self.context: object = None
        self.started = 0.0
        self.itt = 0
        self.sent_cmd_sn = 0
        self.reset()

    def reset(self) -> None:
        """Forget the last answer, before the command is sent (again).

        Where `dirty` is false, status and received_bytes are all there is to forget, and data that does not count.
        """
        self.dirty = False
        self.status = NO_STATUS
        self.failure: Failure | None = None
        self.sense = b""
        self.residual = 0
        self.data: memoryview | bytes = b""
        self.received_bytes = 0
        self.data_sn = 0
        self.r2t_sn = 0
        self._gathered: bytearray | None = None

    @property
    def good(self) -> bool:
        return self.status == GOOD

    def take_part(self, data: memoryview) -> None:
        """One of several Data-In PDUs, in order."""
        if self._gathered is None:
            self._gathered = bytearray()
            self.dirty = True
        self._gathered += data
        self.received_bytes += len(data)

    def take_last(self, data: memoryview) -> None:
        """The last, mostly the only, Data-In PDU."""
        self.received_bytes += len(data)
        if self._gathered is not None:
            self._gathered += data
            self.data = bytes(self._gathered) if self.keep_data else memoryview(self._gathered)
        elif self.keep_data:
            self.data = bytes(data)
        else:
            self.data = data

    def gathered(self) -> None:
        """The status came in a PDU of its own, after the data, if there was any."""
        self.data = b"" if self._gathered is None else bytes(self._gathered)
