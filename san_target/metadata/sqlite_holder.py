"""Who holds the write lock of an SQLite store, and the end of one that is stopped while it does.

A member that is stopped (SIGSTOP) in the midst of a transaction keeps everybody from renewing leases, for as long as it
is stopped [23]. So its peers end it, with SIGKILL: for the store that is a crash, which takes the transaction back, and
the member starts again as after any crash. Only this is ended: a process of the same user and the same interpreter,
which has been seen stopped by a signal (not by a debugger, not waiting for a disk) and holding the lock, all the time
for `patience_s`.
"""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import structlog

log = structlog.get_logger()

# https://www.sqlite.org/walformat.html: the write lock is byte 120 of the shared memory file.
WRITE_LOCK_BYTE = 120
LOCKS = Path("/proc/locks")
LOOK_GAP_MAX_S = 1.0  # between two looks that count as one observation: longer, and this process itself was held up


@dataclass(frozen=True, slots=True)
class Holder:
    """started_ticks: since boot, tells a process from a later one with the same id."""

    pid: int
    started_ticks: int
    is_stopped: bool
    executable: str


def find_holder(database: Path) -> Holder | None:
    """The process that holds the write lock; None: nobody, or nobody that can be looked at.

    Read from /proc: to open the file here, and close it again, would give up the locks of this process (POSIX).
    """
    shared_memory = Path(f"{database}-shm")
    try:
        file = shared_memory.stat()
        for line in LOCKS.read_text().splitlines():
            words = line.split()
            # "3: POSIX ADVISORY WRITE 4711 fe:00:2147203 120 120"; "->" in place of a kind is one who waits.
            if len(words) != 8 or words[1] != "POSIX" or words[3] != "WRITE":
                continue
            if words[5].rpartition(":")[2] != str(file.st_ino) or int(words[6]) != WRITE_LOCK_BYTE:
                continue
            pid = int(words[4])
            if _has_open(pid, file):
                return _holder(pid)
    except (OSError, ValueError):
        pass  # no /proc, another user's process, or one that has just ended
    return None


def _has_open(pid: int, file: os.stat_result) -> bool:
    """Inode numbers alone may be those of another file system."""
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found = descriptor.stat()
        except OSError:
            continue
        if (found.st_dev, found.st_ino) == (file.st_dev, file.st_ino):
            return True
    return False


def _holder(pid: int) -> Holder:
    # proc(5): the name is in parentheses and may hold any character; state is the first field after it, start the 20th.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return Holder(pid, int(fields[19]), fields[0] == "T", os.readlink(f"/proc/{pid}/exe"))


class StoppedHolder:
    """Watches for a stopped holder of a store's lock, and ends it. Used by one thread, while it waits for the lock."""

    def __init__(self, database: Path, patience_s: float) -> None:
        self._database = database
        self._patience_s = patience_s
        self._seen: Holder | None = None
        self._since_s = self._looked_s = float("-inf")

    def look(self) -> None:
        """Call this often while waiting."""
        now_s, holder = time.monotonic(), find_holder(self._database)
        if holder is None or not holder.is_stopped or holder.executable != os.readlink("/proc/self/exe"):
            self._seen = None
        elif holder != self._seen or now_s - self._looked_s > LOOK_GAP_MAX_S:
            self._seen, self._since_s = holder, now_s
        elif now_s - self._since_s >= self._patience_s:
            self._end(holder)
            self._seen = None
        self._looked_s = now_s

    def _end(self, holder: Holder) -> None:
        try:
            # From here on the descriptor means this process, even if its id is given to another.
            process = os.pidfd_open(holder.pid)
        except OSError:
            return
        try:
            if find_holder(self._database) == holder:
                signal.pidfd_send_signal(process, signal.SIGKILL)
                log.warning(
                    "ended a process that was stopped while it held the store's lock",
                    pid=holder.pid,
                    store=str(self._database),
                )
        except OSError as error:
            log.warning("a stopped process holds the store's lock", pid=holder.pid, reason=error.strerror)
        finally:
            os.close(process)
