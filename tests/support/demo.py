"""`san-target demo` as its reader runs it."""

from __future__ import annotations

import re
import signal
import subprocess
from pathlib import Path

from tests.support.member import COMMAND
from tests.support.target import START_TIMEOUT_S, free_port, wait_for

ADMIN_OFFSET = 20
PEER_OFFSET = 40
MEMBERS_USUAL = 3


class Demo:
    """One run of the demo; its output goes to files in `directory`, its data to a directory below."""

    def __init__(self, directory: Path, base_port: int, *options: str) -> None:
        self.portal = f"127.0.0.1:{base_port}"
        self._output, self._errors = directory / "demo.out", directory / "demo.err"
        words = [str(COMMAND), "demo", "--dir", str(directory / "data"), "--base-port", str(base_port), *options]
        with self._output.open("wb") as output, self._errors.open("wb") as errors:
            self._process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=output, stderr=errors)
        self.pid = self._process.pid

    @property
    def output(self) -> str:
        return self._output.read_text()

    @property
    def errors(self) -> str:
        return self._errors.read_text()

    def wait_until_ready(self, line: str = "ready") -> None:
        """Until the line that begins with `line` has been printed."""

        def told() -> bool:
            assert self._process.poll() is None, f"the demo ended: {self.output}{self.errors}"
            return any(printed.startswith(line) for printed in self.output.splitlines(keepends=True) if "\n" in printed)

        wait_for(told, START_TIMEOUT_S, "the demo is ready")

    def commands(self, program: str) -> list[str]:
        """The command lines of `program` that the how-to shows, as they stand there."""
        return re.findall(rf"(?:^|\s)({re.escape(program)} .+)$", self.output, re.MULTILINE)

    def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and return the exit status."""
        self._process.send_signal(how)
        return self.wait()

    def wait(self, timeout_s: float = 60) -> int:
        return self._process.wait(timeout_s)

    def kill(self) -> None:
        """End what a failed test left running, gently first, so that the demo can end its members."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


def free_base_port() -> int:
    """A base port for as many members as a demo starts unless told otherwise."""
    offsets = [kind + index for kind in (0, ADMIN_OFFSET, PEER_OFFSET) for index in range(MEMBERS_USUAL)]
    return free_port(*offsets[1:])


def children(pid: int) -> set[int]:
    """The processes started by `pid`, and by those."""
    direct = {int(word) for task in Path(f"/proc/{pid}/task").glob("*/children") for word in task.read_text().split()}
    return direct.union(*(children(child) for child in direct))


def runs(pid: int) -> bool:
    """True while the process exists and has not ended (a zombie has)."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False
    return not re.search(r"^State:\s+Z", status, re.MULTILINE)
