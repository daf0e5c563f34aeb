"""What the simulated initiator costs: beside the C load client at the same member, and with many initiators at once.

    python -m tests.bench.clients [--rounds 5] [--seconds 3] [--many] [--check]

Client and member are pinned to a core each (`--cores CLIENT,MEMBER`), so that both clients have the same share of the
machine; rounds are interleaved, and medians count. --many adds one run of 200 initiators with 4 sessions each.
--check: exit status 1 when the simulated initiator misses its goal. Results: docs/initiator-sim.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench import load
from tests.support.member import Member
from tests.support.target import Volume
from tests.support.tools import run as run_tool

IOPS_RATIO_MIN = 0.6
BLOCK_BYTES = 4096
DEPTH = 32
SIZE_MIB = 256
WARM_UP_S = 0.3
INITIATORS, SESSIONS = 200, 4
SIMULATOR = Path(sys.executable).with_name("initiator-sim")


@dataclass(frozen=True)
class Round:
    """What one client did: commands a second, and its CPU time for each."""

    iops: float
    cpu_us_per_io: float


def pin(pid: int, core: int) -> None:
    """All threads that a process has now, and those it starts later."""
    for thread in (Path("/proc") / str(pid) / "task").iterdir():
        os.sched_setaffinity(int(thread.name), {core})


def run(command: Sequence[object], core: int) -> tuple[Any, int]:
    """(the JSON document that a command prints, the most memory it took in bytes); it runs on one core."""
    process = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, preexec_fn=lambda: os.sched_setaffinity(0, {core})
    )
    assert process.stdout is not None
    with process.stdout as pipe:
        output = pipe.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise load.LoadFailed(f"{' '.join(map(str, command))}: status {process.returncode}\n{output.decode()}")
    return json.loads(output), usage.ru_maxrss * 1024


def c_client(volume: Volume, pid: int, seconds: float, core: int) -> Round:
    options = ["--mode", "randread", "--bs", BLOCK_BYTES, "--qd", DEPTH, "--engine", "raw", "--warmup", WARM_UP_S]
    found, _ = run([load.build(), *options, "--seconds", seconds, "--pid", pid, volume.url], core)
    return Round(found["iops"], found["client_cpu_us_per_io"])


def simulator(volume: Volume, seconds: float, core: int, *options: object) -> tuple[Round, dict[str, Any], int]:
    """(what it did, its report, the most memory it took in bytes)."""
    usual = ["run", volume.portal, volume.iqn, "--block", BLOCK_BYTES, "--depth", DEPTH, "--seconds", seconds]
    report, memory_bytes = run([SIMULATOR, *usual, "--json", *options], core)
    assert report["ok"], report
    return Round(report["iops"], report["cpu_share"] / report["iops"] * 1e6), report, memory_bytes


def compare(member: Member, volume: Volume, options: argparse.Namespace) -> float:
    """Print the rounds and their medians; the ratio of IOPS, the simulated initiator to the C client."""
    client_core, _ = options.cores
    rounds: dict[str, list[Round]] = {"C client": [], "initiator-sim": []}
    for number in range(options.rounds):
        rounds["C client"].append(c_client(volume, member.pid, options.seconds, client_core))
        rounds["initiator-sim"].append(simulator(volume, options.seconds, client_core)[0])
        told = ", ".join(f"{name} {done[-1].iops:,.0f} IOPS" for name, done in rounds.items())
        print(f"round {number + 1}: {told}", file=sys.stderr, flush=True)
    print("| client | IOPS | CPU-us per I/O |\n| --- | --- | --- |")
    for name, done in rounds.items():
        print(f"| {name} | {median(one.iops for one in done):,.0f} | {median(one.cpu_us_per_io for one in done):.1f} |")
    ratio: float = median(ours.iops / theirs.iops for ours, theirs in zip(*reversed(rounds.values()), strict=True))
    print(f"\ninitiator-sim drives {ratio:.2f} times the IOPS of the C client (median of the rounds)")
    return ratio


def many(volume: Volume, options: argparse.Namespace) -> None:
    crowd = ["--initiators", INITIATORS, "--sessions", SESSIONS, "--depth", 1]
    done, report, memory_bytes = simulator(volume, options.seconds, options.cores[0], *crowd)
    print(
        f"{INITIATORS} initiators with {SESSIONS} sessions each in one process: "
        f"logged in within {report['login_s']:.1f} s, {done.iops:,.0f} IOPS at depth 1, "
        f"p99 {report['read_latency_us']['p99'] / 1000:.1f} ms, {memory_bytes / 2**20:.0f} MiB"
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--size-mib", type=int, default=SIZE_MIB)
    parser.add_argument("--cores", type=lambda text: tuple(map(int, text.split(","))), default=None, metavar="C,M")
    parser.add_argument("--many", action="store_true")
    parser.add_argument("--directory", type=Path, default=Path("/dev/shm"), help="where the volume lies")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    if options.cores is None:
        usable = sorted(os.sched_getaffinity(0))
        options.cores = usable[-1], usable[0]
    return options


def main() -> int:
    options = arguments()
    with tempfile.TemporaryDirectory(prefix="bench-", dir=options.directory) as directory:
        member = Member(Path(directory) / "member")
        try:
            member.start()
            pin(member.pid, options.cores[1])
            volume = member.create_volume("bench", options.size_mib << 20)
            stamped = Path(directory) / "stamped"
            load.stamp_file(stamped, options.size_mib)
            run_tool(["qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", stamped, volume.url], timeout_s=600)
            ratio = compare(member, volume, options)
            if options.many:
                many(volume, options)
        finally:
            member.kill()
    if ratio < IOPS_RATIO_MIN:
        print(f"missed: wanted {IOPS_RATIO_MIN} times", file=sys.stderr)
    return int(options.check and ratio < IOPS_RATIO_MIN)


if __name__ == "__main__":
    sys.exit(main())
