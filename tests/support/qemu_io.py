"""QEMU's block layer with its own iSCSI initiator (libiscsi) as a verified load: qemu-io, driven command by command.

One process, hence one session, that stays. Each command is written to it and its answer awaited; every read must find
the pattern that was written last. QEMU reconnects by itself, as it does under a virtual machine.
"""

from __future__ import annotations

import os
import random
import select
import subprocess
import threading
import time
from types import TracebackType

from tests.support.tools import find

PROMPT = b"qemu-io> "
PATIENCE_S = 90.0
PLACE_BYTES = 64 << 10
FLUSH_EVERY = 20
# QEMU says so, and repeats its command: after a lost session (libiscsi comes back as a new nexus), and where a member
# died with a command in its hands.
REPEATED = (
    "qemu-io: iSCSI CheckCondition: SENSE KEY:UNIT_ATTENTION(6)",
    "qemu-io: iSCSI Busy/TaskSetFull/TimeOut (retry",
)


class QemuIoFailed(AssertionError):
    """A command failed, or a read found something else than was written last; the message is qemu-io's own."""


class QemuIoLoad:
    """Zeros all of a volume, then writes, reads, discards and flushes at places of 64 KiB drawn by chance, one command
    after the other, until it is left; then reads all of it. What goes wrong is raised there: QemuIoFailed.
    """

    def __init__(self, url: str, size_bytes: int, seed: int) -> None:
        self._draws = random.Random(seed)
        self._patterns = dict.fromkeys(range(size_bytes // PLACE_BYTES), 0)
        self._process = subprocess.Popen(
            [find("qemu-io"), "-f", "raw", "-n", url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work)
        self._problem: Exception | None = None
        self.ends_s: list[float] = []
        """When each command ended, by time.monotonic()."""

    def __enter__(self) -> QemuIoLoad:
        self._answer()
        self._command(f"write -z -u 0 {len(self._patterns) * PLACE_BYTES}")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        try:
            if self._problem is None and value is None:
                self._read_all()
        finally:
            self._process.kill()
            self._process.communicate()
        if self._problem is not None and value is None:
            raise self._problem

    def _work(self) -> None:
        try:
            while not self._over.is_set():
                self._next()
                self.ends_s.append(time.monotonic())
        except Exception as problem:  # told where the load is ended
            self._problem = problem

    def _next(self) -> None:
        place = self._draws.randrange(len(self._patterns))
        where = f"{place * PLACE_BYTES} {PLACE_BYTES}"
        kind = self._draws.random()
        if kind < 0.5:
            self._command(f"read -P {self._patterns[place]} {where}")
            return
        self._patterns[place] = 0 if kind < 0.55 else self._draws.randrange(1, 256)
        self._command(f"write -P {self._patterns[place]} {where}" if self._patterns[place] else f"write -z -u {where}")
        if len(self.ends_s) % FLUSH_EVERY == 0:
            self._command("flush")

    def _read_all(self) -> None:
        for place, pattern in self._patterns.items():
            self._command(f"read -P {pattern} {place * PLACE_BYTES} {PLACE_BYTES}")

    def _command(self, command: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(command.encode() + b"\n")
        self._process.stdin.flush()
        told = [line for line in self._answer().splitlines() if not line.startswith(REPEATED)]
        name = command.split()[0]
        begins = {"read": ["read "], "write": ["wrote "], "flush": []}[name]
        if [line[: len(word)] for line, word in zip(told, begins, strict=False)] != begins or (told and not begins):
            raise QemuIoFailed(f"{command}: {told}")

    def _answer(self) -> str:
        """All up to the next prompt."""
        assert self._process.stdout is not None
        received, deadline = b"", time.monotonic() + PATIENCE_S
        while not received.endswith(PROMPT):
            readable, _, _ = select.select([self._process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            data = os.read(self._process.stdout.fileno(), 1 << 16) if readable else b""
            if not data:
                raise QemuIoFailed(f"qemu-io {'ended' if readable else 'hangs'}: {received.decode(errors='replace')}")
            received += data
        return received.removesuffix(PROMPT).decode(errors="replace").strip()
