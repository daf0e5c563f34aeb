"""The load generator iscsi_load.c: building it and running it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
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
    """The program, compiled when its source is newer; at no time is there half a program for another process to run."""
    if not PROGRAM.exists() or PROGRAM.stat().st_mtime < SOURCE.stat().st_mtime:
        PROGRAM.parent.mkdir(exist_ok=True)
        made = PROGRAM.with_suffix(f".{os.getpid()}")
        flags = ["-O2", "-Wall", "-Wextra", "-o", str(made)]
        subprocess.run([find("gcc"), *flags, str(SOURCE), "-liscsi", "-lpthread"], check=True)
        made.replace(PROGRAM)
    return PROGRAM


def stamp_file(path: Path, size_mib: int) -> None:
    """A file in which every 4 KiB block begins with its own offset."""
    subprocess.run([build(), "--stamp-file", path, "--size", str(size_mib)], check=True)


def run(
    url: str, pid: int, seconds: float, verify: bool = False, other_pids: Sequence[int] = (), **options: Any
) -> Load:
    """Run one load on `url`, counting the CPU time of process `pid`. `options`: the client's (mode, bs, qd, ...).

    other_pids: processes that work for the same commands; their CPU time counts with its.
    """
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    words += ["--verify"] if verify else []
    command = [str(build()), *words, "--seconds", str(seconds), "--pid", str(pid), url]
    before_s = sum(map(_cpu_s, other_pids))
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60, check=False)
    if done.returncode != 0:
        raise LoadFailed(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    measured = msgspec.json.decode(done.stdout, type=Load)
    if not other_pids:
        return measured
    # They also worked while the load warmed up, which is not in `iops`.
    used_s = (sum(map(_cpu_s, other_pids)) - before_s) * seconds / (seconds + options.get("warmup", 0))
    extra_us = used_s * 1e6 / (measured.iops * seconds)
    return msgspec.structs.replace(measured, target_cpu_us_per_io=measured.target_cpu_us_per_io + extra_us)


def _cpu_s(pid: int) -> float:
    """User and system time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
