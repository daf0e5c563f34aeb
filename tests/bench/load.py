"""The load generator iscsi_load.c: building it and running it."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import msgspec

from tests.support.tools import find

SOURCE = Path(__file__).with_name("iscsi_load.c")
PROGRAM = SOURCE.parent / "build" / "iscsi_load"


class Latency(msgspec.Struct, frozen=True):
    """Of one command, in microseconds."""

    mean: float
    p50: float
    p99: float
    p999: float


class Load(msgspec.Struct, frozen=True):
    """What one run measured: commands a second, 10^6 bytes a second, CPU time of target and client per command."""

    iops: float
    mb_s: float
    lat_us: Latency
    target_cpu_us_per_io: float
    client_cpu_us_per_io: float
    target_cores: float
    client_cores: float
    errors: int
    bad_stamps: int


class LoadFailed(Exception):
    """The client could not connect, or commands failed, or blocks held something else than was written."""


def build() -> Path:
    """The program, compiled when its source is newer."""
    if not PROGRAM.exists() or PROGRAM.stat().st_mtime < SOURCE.stat().st_mtime:
        PROGRAM.parent.mkdir(exist_ok=True)
        flags = ["-O2", "-Wall", "-Wextra", "-o", str(PROGRAM)]
        subprocess.run([find("gcc"), *flags, str(SOURCE), "-liscsi", "-lpthread"], check=True)
    return PROGRAM


def stamp_file(path: Path, size_mib: int) -> None:
    """A file in which every 4 KiB block begins with its own offset."""
    subprocess.run([build(), "--stamp-file", path, "--size", str(size_mib)], check=True)


def run(url: str, pid: int, seconds: float, verify: bool = False, **options: Any) -> Load:
    """Run one load on `url`, counting the CPU time of process `pid`. `options`: the client's (mode, bs, qd, ...)."""
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    words += ["--verify"] if verify else []
    command = [str(build()), *words, "--seconds", str(seconds), "--pid", str(pid), url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60, check=False)
    if done.returncode != 0:
        raise LoadFailed(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return msgspec.json.decode(done.stdout, type=Load)
