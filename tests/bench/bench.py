"""Speed and cost per I/O of a member, beside tgt on the same machine.

    python -m tests.bench.bench [--rounds 3] [--seconds 3] [--size-mib 1024] [--workload NAME]... [--check]

All contestants serve a volume of the same size from the same tmpfs, filled with the same stamped blocks, and run at
the same time; only one at a time has load. Rounds are interleaved (every contestant, then the next round), so that a
machine that slows down does so for all; medians over the rounds count. Method and results: docs/benchmarks.md.

--json FILE writes every run's figures; --check: exit status 1 when a ratio to tgt misses its goal.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import msgspec

from tests.bench import load
from tests.bench.forwarded import Forwarded
from tests.support.member import Member
from tests.support.target import Target, Volume
from tests.support.tgt import Tgt
from tests.support.tools import run as run_tool

WARM_UP_S = 0.5
OURS = "san-target"
FORWARDED = "san-target-forwarded"
PEER = "tgt"
PEER_AIO = "tgt-aio"


@dataclass(frozen=True)
class Workload:
    """One load, and its goal against tgt: at least this many times its IOPS, at most this part of its CPU per I/O.

    forwarded_ratio_min: the same for a member that forwards everything to another one.
    """

    mode: str
    block_bytes: int
    depth: int
    connections: int = 1
    iops_ratio_min: float | None = None
    cpu_ratio_max: float | None = None
    forwarded_ratio_min: float | None = None


WORKLOADS: dict[str, Workload] = {
    "randread-4k-qd32": Workload("randread", 4096, 32, iops_ratio_min=2.0, cpu_ratio_max=0.5, forwarded_ratio_min=1.0),
    "randwrite-4k-qd32": Workload("randwrite", 4096, 32, iops_ratio_min=2.0, cpu_ratio_max=0.5),
    "randread-4k-qd1": Workload("randread", 4096, 1, iops_ratio_min=0.9),
    "randwrite-4k-qd1": Workload("randwrite", 4096, 1, iops_ratio_min=0.9),
    "read-256k-qd8": Workload("read", 262144, 8, iops_ratio_min=1.5),
    "write-256k-qd8": Workload("write", 262144, 8, iops_ratio_min=1.5),
    "randread-4k-qd1-conns32": Workload("randread", 4096, 1, connections=32),
}

Loads = dict[str, dict[str, list[load.Load]]]  # by workload, by contestant, one a round


class Summary(msgspec.Struct, frozen=True):
    """Medians of one contestant under one workload; ratios are to tgt (None for tgt itself, or without it)."""

    workload: str
    contestant: str
    iops: float
    mb_s: float
    p50_us: float
    p99_us: float
    target_cpu_us_per_io: float
    iops_ratio: float | None = None
    cpu_ratio: float | None = None


def start_contestant(name: str, directory: Path, member_options: Iterable[str]) -> Target:
    """A target of that name, not yet running."""
    if name == OURS:
        return Member(directory, *member_options)
    if name == FORWARDED:
        return Forwarded(directory, *member_options)
    return Tgt(directory, "aio" if name == PEER_AIO else "rdwr")


def measure(
    contestants: Mapping[str, tuple[Target, Volume]], workloads: Iterable[str], options: argparse.Namespace
) -> Loads:
    """All rounds of all workloads."""
    loads: Loads = {}
    for name in workloads:
        workload = WORKLOADS[name]
        loads[name] = {contestant: [] for contestant in contestants}
        for number in range(options.rounds):
            for contestant, (target, volume) in contestants.items():
                done = load.run(
                    volume.url,
                    target.pid,
                    options.seconds,
                    mode=workload.mode,
                    bs=workload.block_bytes,
                    qd=workload.depth,
                    conns=workload.connections,
                    warmup=WARM_UP_S,
                    engine=options.engine,
                    other_pids=target.other_pids if isinstance(target, Forwarded) else (),
                )
                loads[name][contestant].append(done)
                told = f"{name} round {number + 1} {contestant}: {done.iops:,.0f} IOPS, {done.target_cpu_us_per_io} us"
                print(told, file=sys.stderr, flush=True)
    return loads


def summarize(loads: Loads) -> list[Summary]:
    """Medians and ratios, in the order of the runs."""
    summaries = []
    for workload, by_contestant in loads.items():
        medians = {name: medians_of(workload, name, rounds) for name, rounds in by_contestant.items()}
        peer = medians.get(PEER)
        for name, own in medians.items():
            if peer is not None and name != PEER:
                own = msgspec.structs.replace(
                    own,
                    iops_ratio=own.iops / peer.iops,
                    cpu_ratio=own.target_cpu_us_per_io / peer.target_cpu_us_per_io,
                )
            summaries.append(own)
    return summaries


def medians_of(workload: str, contestant: str, rounds: list[load.Load]) -> Summary:
    return Summary(
        workload,
        contestant,
        iops=median(one.iops for one in rounds),
        mb_s=median(one.mb_s for one in rounds),
        p50_us=median(one.lat_us.p50 for one in rounds),
        p99_us=median(one.lat_us.p99 for one in rounds),
        target_cpu_us_per_io=median(one.target_cpu_us_per_io for one in rounds),
    )


def missed_goals(summaries: Iterable[Summary]) -> list[str]:
    """What a member should reach against tgt and did not."""
    missed = []
    for summary in summaries:
        goal = WORKLOADS[summary.workload]
        least = goal.forwarded_ratio_min
        if summary.contestant == FORWARDED and least and summary.iops_ratio is not None and summary.iops_ratio < least:
            missed.append(f"{summary.workload}: forwarded {summary.iops_ratio:.2f}x the IOPS of tgt, wanted {least}x")
        if summary.contestant != OURS or summary.iops_ratio is None or summary.cpu_ratio is None:
            continue
        if goal.iops_ratio_min is not None and summary.iops_ratio < goal.iops_ratio_min:
            missed.append(
                f"{summary.workload}: {summary.iops_ratio:.2f}x the IOPS of tgt, wanted {goal.iops_ratio_min}x"
            )
        if goal.cpu_ratio_max is not None and summary.cpu_ratio > goal.cpu_ratio_max:
            missed.append(f"{summary.workload}: {summary.cpu_ratio:.2f}x the CPU of tgt, wanted {goal.cpu_ratio_max}x")
    return missed


def table(summaries: Iterable[Summary]) -> str:
    """A Markdown table, as docs/benchmarks.md shows it."""
    head = ["workload", "target", "IOPS", "MB/s", "p50 us", "p99 us", "CPU-us per I/O", "IOPS to tgt", "CPU to tgt"]
    rows = [head, ["---"] * len(head)]
    for one in summaries:
        ratios = ["" if ratio is None else f"{ratio:.2f}" for ratio in (one.iops_ratio, one.cpu_ratio)]
        figures = [f"{one.iops:,.0f}", f"{one.mb_s:,.0f}", f"{one.p50_us:.0f}", f"{one.p99_us:.0f}"]
        rows.append([one.workload, one.contestant, *figures, f"{one.target_cpu_us_per_io:.1f}", *ratios])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--size-mib", type=int, default=1024)
    parser.add_argument("--workload", action="append", choices=list(WORKLOADS))
    parser.add_argument("--contestant", action="append", choices=[OURS, FORWARDED, PEER, PEER_AIO])
    parser.add_argument("--engine", choices=["raw", "libiscsi"], default="raw", help="the client's iSCSI code")
    parser.add_argument("--member-option", action="append", default=[], help="such as --member-option=--busy-poll=50us")
    parser.add_argument("--directory", type=Path, default=Path("/dev/shm"), help="where the volumes lie")
    parser.add_argument("--json", type=Path, help="also write every run's figures there")
    parser.add_argument("--check", action="store_true")
    return parser.parse_args()


def prepare(name: str, target: Target, stamped: Path, size_mib: int, stack: ExitStack) -> Volume:
    """Start a target with one volume, fill it through iSCSI, and verify what it reads back."""
    stack.callback(target.kill)
    target.start()
    volume = target.create_volume("bench", size_mib << 20)
    run_tool(["qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", stamped, volume.url], timeout_s=600)
    load.run(volume.url, target.pid, 1.0, verify=True, mode="randread", bs=4096, qd=32)
    print(f"{name}: filled and verified", file=sys.stderr, flush=True)
    return volume


def run_all(options: argparse.Namespace) -> Loads:
    contestants: dict[str, tuple[Target, Volume]] = {}
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-", dir=options.directory)))
        stamped = directory / "stamped"
        load.stamp_file(stamped, options.size_mib)
        for name in options.contestant or [OURS, FORWARDED, PEER, PEER_AIO]:
            target = start_contestant(name, directory / name, options.member_option)
            contestants[name] = target, prepare(name, target, stamped, options.size_mib, stack)
        stamped.unlink()
        loads = measure(contestants, options.workload or list(WORKLOADS), options)
        for target, volume in contestants.values():  # every block still holds its stamp after all the writes
            load.run(volume.url, target.pid, 1.0, verify=True, mode="randread", bs=4096, qd=32)
    return loads


def main() -> int:
    options = arguments()
    loads = run_all(options)
    summaries = summarize(loads)
    print(f"{os.cpu_count()} CPUs, {options.rounds} rounds of {options.seconds} s, {options.engine} client\n")
    print(table(summaries))
    if options.json:
        report = {"rounds": loads, "medians": summaries}
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
    missed = missed_goals(summaries)
    for line in missed:
        print(f"missed: {line}", file=sys.stderr)
    return int(bool(missed) and options.check)


if __name__ == "__main__":
    sys.exit(main())
