"""The tasks of a session: from a SCSI Command PDU to its response, and who waits for their end. Pure."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from san_target.scsi.command import Command
    from san_target.session.transfer import DataOutTransfer


class Task:
    """One SCSI command of one session (SAM-5 4.9; RFC 7143 4.2.2.2).

    read_expected, write_expected   expected data transfer lengths in bytes; 0 where the direction is not used
    write_wanted                    Data-Out bytes that the CDB calls for, whatever was expected: for residuals
    immediate                       the I bit: the command took no CmdSN
    executing                       its command is with the logical unit
    read_bytes                      memory that its Data-In may take, whatever was expected
    granted_bytes                   memory granted for Data-Out that was asked for
    """

    __slots__ = (
        "command",
        "executing",
        "granted_bytes",
        "immediate",
        "itt",
        "lun_field",
        "read_bytes",
        "read_expected",
        "skip_now",
        "transfer",
        "waiters",
        "write_expected",
        "write_wanted",
    )

    def __init__(self, command: "Command", itt: int, lun_field: int, immediate: bool) -> None:
        self.command = command
        self.itt = itt
        self.lun_field = lun_field
        self.immediate = immediate
        self.read_expected = 0
        self.read_bytes = 0
        self.granted_bytes = 0
        self.write_expected = 0
        self.write_wanted = 0
        self.transfer: DataOutTransfer | None = None
        self.executing = False
        self.skip_now = False
        self.waiters: list[TaskBarrier] = []

    @property
    def buffered_bytes(self) -> int:
        """Memory that this task may take, in bytes."""
        return self.read_bytes + (self.transfer.wanted if self.transfer is not None else 0)

    def ended(self) -> None:
        """Tell everyone who waits for this task."""
        if not self.waiters:
            return
        waiters, self.waiters = self.waiters, []
        for barrier in waiters:
            barrier.one_ended()


class TaskBarrier:
    """Calls `done` once all of some tasks have ended; at once if there are none.

    A task management response, a logout and the end of a session are final only when every task concerned has truly
    ended: a task with the storage cannot be called back, only waited for (RFC 7143 4.2.3.3).
    """

    __slots__ = ("_done", "_left")

    def __init__(self, tasks: Iterable[Task], done: Callable[[], None]) -> None:
        waiting_for = list(tasks)
        self._done = done
        self._left = len(waiting_for)
        for task in waiting_for:
            task.waiters.append(self)
        if not waiting_for:
            done()

    def one_ended(self) -> None:
        self._left -= 1
        if self._left == 0:
            self._done()
