"""How fast a volume migrates between two members, and what applications that use it meanwhile see of that.

    python -m tests.bench.migration [--size-mib 1024] [--seconds 4] [--only idle|loaded|mirror|sparse]... [--quick]

Two members on this machine, files on a tmpfs so that no disk is measured, and a volume full of data. The load is the
simulated initiator's, at the first member: random reads and writes of 4 KiB (half of each), every read and the whole
history verified. Latencies are those of commands as the initiator sees them.

idle     there and back, without any load
loaded   before, during and after a migration, under a moderate load (a bounded rate) and under as much as there can be;
         and with a limit of 50 MiB/s
mirror   a piece of 4 MiB that is held in the midst of its copy by a tiny limit: all writes go to both members
sparse   a volume of 1 TiB with little in it

Prints tables as docs/migration.md shows them. Exit status 1: a block was wrong, or a command failed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from initiator_sim.client import Initiator
from initiator_sim.fleet import Assignment, Fleet
from initiator_sim.personalities import OPEN_ISCSI
from initiator_sim.workload import Plan
from tests.support.group import Group, running
from tests.support.target import Volume

MIB = 1 << 20
PIECE_BYTES = 4 * MIB
POLL_S = 0.25
PATIENCE_S = 240.0
LIMIT_MIB = 50
PARTS = ("idle", "loaded", "mirror", "sparse")
MODERATE = Plan("randrw", read_share=0.5, depth=4, rate=1000.0)
UNBOUNDED = Plan("randrw", read_share=0.5, depth=8)
WRITES = Plan("randwrite", depth=1)


class LoadFailed(Exception):
    """A command failed, or a block was wrong."""


@dataclass(frozen=True)
class Seen:
    """What applications saw for a while. us: microseconds; cpu_us: of both members, for each command."""

    iops: float
    read_us: dict[str, float]
    write_us: dict[str, float]
    cpu_us: float

    @property
    def slowest_ms(self) -> float:
        return max(self.read_us["max"], self.write_us["max"]) / 1000


@dataclass(frozen=True)
class Moved:
    """One migration that has ended."""

    seconds: float
    mib_per_s: float
    mirrored_writes: int
    restarts: int


def cpu_s(group: Group) -> float:
    """User and system time of all members."""
    ticks = 0
    for member in group:
        fields = Path(f"/proc/{member.pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


async def under(group: Group, volume: Volume, plan: Plan, meanwhile: Callable[[], Awaitable[None]]) -> Seen:
    """A verified load for as long as `meanwhile` takes, at the portal of that volume. LoadFailed."""
    wanted = Assignment(
        (volume.portal,), volume.iqn, plan, OPEN_ISCSI, seconds=2 * PATIENCE_S, verify=True, strict=True
    )
    fleet = Fleet(wanted)
    running_load = asyncio.ensure_future(fleet.run())
    try:
        meter = fleet.meter
        while not (meter.number or meter.reads_s or meter.writes_s) and not running_load.done():
            await asyncio.sleep(0.02)
        meter.close_interval(time.perf_counter())
        before, before_s, began_s = meter.number, cpu_s(group), time.perf_counter()
        await meanwhile()
        # What is read back at the end is no application's doing.
        meter.close_interval(time.perf_counter())
        seconds, done, used_s = time.perf_counter() - began_s, meter.number - before, cpu_s(group) - before_s
        seen = Seen(
            done / seconds, meter.read_latency.summary(), meter.write_latency.summary(), used_s * 1e6 / max(1, done)
        )
    finally:
        fleet.finish()
        await running_load
    report = fleet.report()
    if not report["ok"] or report["errors"] or report["verify"]["violation_count"]:
        raise LoadFailed(f"{report}\n{group.diagnosis()}")
    return seen


async def start(group: Group, volume: Volume, to: str, limit: int = 0) -> str:
    """limit: bytes per second. The migration's id."""
    body = {"volume": volume.name, "to": to, "limit_bytes_per_second": limit}
    (one,) = await asyncio.to_thread(group[0].ask, "POST", "/migrations", body)
    return str(one["id"])


async def shown(group: Group, migration: str) -> dict[str, Any]:
    found: dict[str, Any] = await asyncio.to_thread(group[0].ask, "GET", f"/migrations/{migration}")
    return found


async def migrate(group: Group, volume: Volume, to: str, limit: int = 0) -> Moved:
    """All of it, to its end."""
    began_s = time.perf_counter()
    migration = await start(group, volume, to, limit)
    while (one := await shown(group, migration))["state"] != "done":
        if time.perf_counter() - began_s > PATIENCE_S:
            raise AssertionError(f"it does not end: {one}\n{group.diagnosis()}")
        await asyncio.sleep(POLL_S)
    seconds = time.perf_counter() - began_s
    return Moved(seconds, one["bytes_copied"] / MIB / seconds, one["mirrored_writes"], one["restarts"])


async def fill(volume: Volume, first_byte: int = 0, length_bytes: int | None = None) -> None:
    """With data that is nowhere the same."""
    async with Initiator("iqn.2026-01.org.example:filler", OPEN_ISCSI).connect(volume.portal, volume.iqn) as disk:
        end = first_byte + (volume.size_bytes if length_bytes is None else length_bytes)
        for offset in range(first_byte, end, MIB):
            await disk.write(offset // disk.block_bytes, os.urandom(min(MIB, end - offset)))


def row(*cells: object) -> None:
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def seen_row(what: str, when: str, seen: Seen, moved: Moved | None = None) -> None:
    latencies = [f"{each['p50']:,.0f} / {each['p99']:,.0f}" for each in (seen.read_us, seen.write_us)]
    speed = f"{moved.mib_per_s:,.0f}" if moved else ""
    row(what, when, speed, f"{seen.iops:,.0f}", *latencies, f"{seen.slowest_ms:.0f}")


def loaded_head() -> None:
    row("load", "when", "MiB/s", "IOPS", "reads p50 / p99 us", "writes p50 / p99 us", "slowest ms")
    row(*["---"] * 7)


async def idle(group: Group, volume: Volume) -> None:
    row("without load", "MiB/s", "seconds")
    row(*["---"] * 3)
    for to in ("m2", "m1"):
        moved = await migrate(group, volume, to)
        row(f"to {to}", f"{moved.mib_per_s:,.0f}", f"{moved.seconds:.1f}")


async def loaded(group: Group, volume: Volume, name: str, plan: Plan, seconds: float, limit: int = 0) -> None:
    """Initiators stay at the first member: at the source first, at a third one that forwards at last."""

    def hold() -> Awaitable[None]:
        return asyncio.sleep(seconds)

    found: list[Moved] = []

    async def go() -> None:
        found.append(await migrate(group, volume, "m2", limit))

    seen_row(name, "before: blocks are there", await under(group, volume, plan, hold))
    seen_row(name, "during", await under(group, volume, plan, go), found[-1])
    seen_row(name, "after: blocks are elsewhere", await under(group, volume, plan, hold))
    print(f"<!-- mirrored writes {found[-1].mirrored_writes}, restarts {found[-1].restarts} -->", flush=True)
    await migrate(group, volume, "m1")


async def mirror(group: Group, seconds: float) -> None:
    """One piece, of which one MiB is copied every eight seconds."""
    volume = group.create_volume("piece", PIECE_BYTES, members="m1")
    await fill(volume)

    def hold() -> Awaitable[None]:
        return asyncio.sleep(seconds)

    row("writes of 4 KiB, one at a time", "IOPS", "p50 us", "p99 us", "CPU-us per write, both members")
    row(*["---"] * 5)

    def tell(what: str, seen: Seen) -> None:
        row(
            what,
            f"{seen.iops:,.0f}",
            f"{seen.write_us['p50']:,.0f}",
            f"{seen.write_us['p99']:,.0f}",
            f"{seen.cpu_us:.0f}",
        )

    tell("without a migration", await under(group, volume, WRITES, hold))
    migration = await start(group, volume, "m2", MIB // 8)
    await asyncio.sleep(0.5)
    tell("into the piece under way", await under(group, volume, WRITES, hold))
    await asyncio.to_thread(group[0].ask, "POST", f"/migrations/{migration}/cancel")
    while (one := await shown(group, migration))["state"] != "cancelled":
        if one["state"] == "done":
            raise AssertionError("the piece was moved before it was measured")
        await asyncio.sleep(POLL_S)
    if one["pieces_done"]:
        raise AssertionError(f"the piece was moved before it was measured: {one}")
    await migrate(group, volume, "m2")
    tell("forwarded, for comparison", await under(group, volume, WRITES, hold))


async def sparse(group: Group, size_bytes: int) -> None:
    volume = group.create_volume("sparse", size_bytes, members="m1")
    for number in range(8):
        await fill(volume, size_bytes // 8 * number, MIB)
    moved = await migrate(group, volume, "m2")
    row("a volume of", "with data", "seconds")
    row(*["---"] * 3)
    row(f"{size_bytes / (1 << 30):,.0f} GiB", "8 MiB in 8 places", f"{moved.seconds:.1f}")


async def measure(group: Group, options: argparse.Namespace) -> None:
    parts, seconds = options.only or PARTS, options.seconds
    if "idle" in parts or "loaded" in parts:
        volume = group.create_volume("disk", options.size_mib * MIB, members="m1")
        await fill(volume)
    if "idle" in parts:
        await idle(group, volume)
    if "loaded" in parts:
        loaded_head()
        await loaded(group, volume, f"{MODERATE.rate:.0f} a second", MODERATE, seconds)
        await loaded(group, volume, "unbounded", UNBOUNDED, seconds)
        await loaded(group, volume, f"the first, --rate {LIMIT_MIB}M", MODERATE, seconds, LIMIT_MIB * MIB)
    if "mirror" in parts:
        await mirror(group, seconds)
    if "sparse" in parts:
        await sparse(group, options.sparse_gib << 30)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size-mib", type=int, default=1024)
    parser.add_argument("--sparse-gib", type=int, default=1024)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each load without a migration")
    parser.add_argument("--only", action="append", choices=PARTS)
    parser.add_argument("--directory", type=Path, default=Path("/dev/shm"), help="where the pools lie")
    parser.add_argument("--quick", action="store_true", help="little of everything, to see that it works")
    options = parser.parse_args()
    if options.quick:
        options.size_mib, options.sparse_gib, options.seconds = 16, 64, 0.5
    return options


def main() -> int:
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))  # so that nothing is left behind
    with (
        tempfile.TemporaryDirectory(prefix="bench-", dir=options.directory) as place,
        running(Group(Path(place), 2)) as group,
    ):
        try:
            asyncio.run(measure(group, options))
        except LoadFailed as error:
            print(error, file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
