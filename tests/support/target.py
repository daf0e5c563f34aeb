"""A target process under test: the same handle for a member of san-target and for tgt.

Tests that hold for any good target take this handle, so that tgt can show that a test itself is sound.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import random
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

# Below the kernel's range for outgoing connections, so that none of those can take a port found free here.
PORTS = range(10000, 32000)
_port_candidates = itertools.cycle(random.Random(os.getpid()).sample(PORTS, len(PORTS)))
START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 30


def is_free(port: int) -> bool:
    """True when nobody holds that TCP port of 127.0.0.1."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


class Claims:
    """Ports that processes on this machine have set aside, however long they take to listen on them.

    The lock on byte N of a file that all share is the claim to port N; the kernel gives it back when its process ends.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)

    def claim(self, port: int) -> bool:
        """False when another process has it; this process may claim it again."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
        except OSError:
            return False
        return True


_claims = Claims(Path(tempfile.gettempdir()) / f"san-target-test-ports-{os.getuid()}")
_in_rows: set[int] = set()  # ports given above another one: nobody listens on them as soon as on that


def free_port(*offsets: int) -> int:
    """A TCP port of 127.0.0.1 that nobody has, nor those `offsets` above it; each call gives another one.

    It stays free for this process: no other one that asks here gets it.
    """
    for port in itertools.islice(_port_candidates, len(PORTS)):
        row = [port + offset for offset in (0, *offsets)]
        if _in_rows.isdisjoint(row) and all(_claims.claim(one) and is_free(one) for one in row):
            _in_rows.update(row if offsets else ())
            return port
    raise RuntimeError(f"no free port in {PORTS}")


def wait_for(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Poll until `condition()`; AssertionError that names `what` when it stays false."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s} s"
        time.sleep(0.05)


@dataclass(frozen=True)
class Chap:
    """A CHAP user and its secret (12 to 16 characters, which every initiator takes)."""

    user: str
    secret: str


@dataclass(frozen=True)
class Options:
    """How a volume is served."""

    block_size: int = 512
    chap: Chap | None = None
    mutual_chap: Chap | None = None
    read_only: bool = False
    removable: bool = False


PLAIN = Options()


@dataclass(frozen=True)
class Volume:
    """A logical unit as initiators address it; `portal` is HOST:PORT."""

    name: str
    iqn: str
    lun: int
    portal: str
    size_bytes: int
    options: Options

    @property
    def url(self) -> str:
        """As libiscsi and QEMU take it. One-way CHAP is in it; libiscsi has no other place in a URL."""
        user = f"{self.options.chap.user}%{self.options.chap.secret}@" if self.options.chap else ""
        return f"iscsi://{user}{self.portal}/{self.iqn}/{self.lun}"


class Target(ABC):
    """One process that serves volumes on one portal; its files and its log are in `directory`."""

    name: str

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory.resolve()
        self.portal = f"127.0.0.1:{free_port()}"
        self.log_file = directory / f"{self.name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    # ---- what a kind of target is

    @abstractmethod
    def _command(self) -> Sequence[str]:
        """The command line of the process, which stays in the foreground."""

    def _environment(self) -> dict[str, str]:
        return dict(os.environ)

    @abstractmethod
    def _is_ready(self) -> bool:
        """True when it serves."""

    @abstractmethod
    def create_volume(self, name: str, size_bytes: int, options: Options = PLAIN) -> Volume: ...

    @abstractmethod
    def backing_file(self, volume: Volume) -> Path:
        """The file that holds the blocks of a volume."""

    # ---- its life

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} was not started"
        return self._process.pid

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def diagnosis(self) -> str:
        """What to look at when a test with this target fails."""
        return self.log[-20_000:]

    def start(self) -> None:
        """Start the process and wait until it serves."""
        assert self._process is None, f"{self.name} runs already"
        self._log_start = self.log_file.stat().st_size if self.log_file.exists() else 0
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                env=self._environment(),
            )
        wait_for(self._ready_or_dead, START_TIMEOUT_S, f"{self.name} serves; its log:\n{self.log}")

    def _ready_or_dead(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            status, self._process = self._process.returncode, None
            raise AssertionError(f"{self.name} ended at start with status {status}; its log:\n{self.log}")
        return self._is_ready()

    def log_since_start(self) -> str:
        return self.log_file.read_bytes()[self._log_start :].decode(errors="replace")

    def kill(self) -> None:
        """kill -9."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        assert self._process is not None, f"{self.name} was not started"
        self._process.send_signal(signal.SIGTERM)
        try:
            status = self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.name} did not end within {STOP_TIMEOUT_S} s; its log:\n{self.log}") from None
        self._process = None
        return status

    def restart(self) -> None:
        """Start again on the same ports with the same volumes, after `kill` or `stop`."""
        self.start()

    def allocated_bytes(self, volume: Volume) -> int:
        """Disk space that the volume takes on this host."""
        return self.backing_file(volume).stat().st_blocks * 512
