"""A partition map of a million ranges: memory, look-up, change and load, and how long the event loop is held up.

    python -m tests.bench.large_map [--ranges 1000000] [--directory DIR]

The map lies in an SQLite store in DIR (default: a temporary directory, on tmpfs if there is one) and is followed as a
member follows it. Of everything that belongs to the event loop the longest single hold-up is given, since that is what
other connections wait for. Times are CPU times of the thread that does the work, so that a busy machine does not change
them much; those of the store are by the wall clock.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import random
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from san_target.group.follower import StoreFollower
from san_target.group.map_records import KEYS_AT_ONCE, entry_of, start_lba
from san_target.metadata.schema import PlacementRecord, decode, encode, map_key
from san_target.metadata.sqlite import SqliteStore
from san_target.metadata.store import Event, Item, Put
from san_target.volume.partition_map import PartitionMap, Placement
from san_target.volume.stored_map import StoredMap

VOLUME = "0" * 32
RANGE_BLOCKS = 8192  # 4 MiB: a piece of a migration
MEMBERS = ("m1", "m2", "m3")
SAMPLES = 100_000
CHANGES = 1_000


@dataclass(slots=True)
class Figures:
    """(what, value, unit) in the order they were measured."""

    rows: list[tuple[str, float, str]] = field(default_factory=list)

    def note(self, what: str, value: float, unit: str) -> None:
        self.rows.append((what, value, unit))
        print(f"{what:<58} {value:>12,.2f} {unit}", flush=True)


def record_of(number: int) -> PlacementRecord:
    """Ranges with neighbours of other owners and generations, as after many small migrations."""
    return PlacementRecord(
        end_lba=(number + 1) * RANGE_BLOCKS, owner=MEMBERS[number % len(MEMBERS)], generation=number % 1000
    )


def resident_bytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def mean_us(calls: int, function: Callable[[int], object]) -> float:
    began_s = time.thread_time()
    for number in range(calls):
        function(number)
    return (time.thread_time() - began_s) / calls * 1e6


def measure_in_memory(ranges: int, figures: Figures) -> None:
    before_bytes, began_s = resident_bytes(), time.thread_time()
    made = PartitionMap(RANGE_BLOCKS, Placement(MEMBERS[0]))
    for number in range(1, ranges):
        made.append(number * RANGE_BLOCKS, record_of(number))
        if number % 500 == 0:
            made.snapshot()
    snapshot = made.snapshot()
    figures.note("build in memory, snapshot included", time.thread_time() - began_s, "s")
    figures.note("memory, snapshot included", (resident_bytes() - before_bytes) / ranges, "bytes per range")

    chance = random.Random(1)
    lbas = [chance.randrange(snapshot.blocks - 8) for _ in range(SAMPLES)]
    figures.note("look up the owner of a block", mean_us(SAMPLES, lambda index: snapshot.find(lbas[index])), "us")
    figures.note("segments of 8 blocks", mean_us(SAMPLES, lambda index: snapshot.segments(lbas[index], 8)), "us")

    def change(index: int) -> None:
        start = lbas[index] // RANGE_BLOCKS * RANGE_BLOCKS
        made.replace(start, start + RANGE_BLOCKS, Placement("m9", generation=5000 + index))
        made.snapshot()

    figures.note("place one range anew, with the next snapshot", mean_us(CHANGES, change), "us")
    small = PartitionMap(RANGE_BLOCKS, Placement("m1")).snapshot()
    at = [lba % RANGE_BLOCKS for lba in lbas]
    figures.note(
        "for comparison: look-up in a map of one range", mean_us(SAMPLES, lambda index: small.find(at[index])), "us"
    )


class Follower:
    """A consumer that keeps one map, as a member does for each of its volumes."""

    def __init__(self) -> None:
        self.map = StoredMap()

    def begin(self) -> None:
        self.map = StoredMap()

    def read(self, items: Sequence[Item]) -> None:
        for item in items:
            entry = entry_of(item)
            self.map.append(entry.start, entry.placement, entry.revision)
        self.map.completed()

    def complete(self, revision: int) -> None:
        self.map.whole()

    def take(self, revision: int, events: Sequence[Event]) -> None:
        changes = {
            start_lba(event.key): None if event.item is None else decode(PlacementRecord, event.item.value, event.key)
            for event in events
        }
        self.map.apply(changes, revision)
        self.map.whole()


@contextlib.asynccontextmanager
async def held_up(figures: Figures, what: str) -> AsyncIterator[None]:
    """Notes the longest time in which the event loop did not come round."""
    worst_s, ending = 0.0, False

    async def watch() -> None:
        nonlocal worst_s
        last_s = time.thread_time()
        while not ending:
            await asyncio.sleep(0)
            now_s = time.thread_time()
            worst_s, last_s = max(worst_s, now_s - last_s), now_s

    watching = asyncio.ensure_future(watch())
    try:
        yield
    finally:
        ending = True
        await watching
        figures.note(f"{what}: longest hold-up of the event loop", worst_s * 1e3, "ms")


async def measure_in_store(ranges: int, directory: Path, figures: Figures) -> None:
    store = SqliteStore(directory / "large-map.sqlite")
    await store.open()
    try:
        began_s = time.perf_counter()
        for start in range(0, ranges, KEYS_AT_ONCE):
            numbers = range(start, min(start + KEYS_AT_ONCE, ranges))
            puts = [Put(map_key(VOLUME, number * RANGE_BLOCKS), encode(record_of(number))) for number in numbers]
            await store.transact([], puts)
        figures.note("write into the store", time.perf_counter() - began_s, "s")
        before_bytes, began_s, began_cpu_s = resident_bytes(), time.perf_counter(), time.thread_time()
        consumer, follower = Follower(), StoreFollower(store)
        follower.add(("maps",), consumer)
        async with held_up(figures, "load from the store"):
            await follower.load()
        figures.note("load from the store, on the event loop", time.thread_time() - began_cpu_s, "s")
        figures.note("load from the store, by the wall clock", time.perf_counter() - began_s, "s")
        figures.note("memory after that", (resident_bytes() - before_bytes) / ranges, "bytes per range")
        gc.collect()
        gc.freeze()  # as a member does when it begins to serve
        following = asyncio.ensure_future(follower.follow())
        chance, began_s = random.Random(2), time.perf_counter()
        async with held_up(figures, "follow changes"):
            for number in range(CHANGES):
                index = chance.randrange(ranges)
                record = PlacementRecord(
                    end_lba=(index + 1) * RANGE_BLOCKS, owner=MEMBERS[number % 3], generation=10_000 + number
                )
                changed = await store.transact([], [Put(map_key(VOLUME, index * RANGE_BLOCKS), encode(record))])
                await follower.until(changed.revision)
        elapsed_ms = (time.perf_counter() - began_s) / CHANGES * 1e3
        figures.note("one range changed in the store and followed, by the wall clock", elapsed_ms, "ms")
        if len(consumer.map) != ranges:
            raise AssertionError(f"{len(consumer.map)} ranges were followed, not {ranges}")
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    finally:
        await store.close()


def measure(ranges: int, directory: Path) -> Figures:
    figures = Figures()
    measure_in_memory(ranges, figures)
    asyncio.run(measure_in_store(ranges, directory, figures))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description="A partition map of many ranges.")
    parser.add_argument("--ranges", type=int, default=1_000_000)
    parser.add_argument("--directory", type=Path, help="where the store lies while it is measured")
    options = parser.parse_args()
    usual = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=options.directory or usual) as directory:
        measure(options.ranges, Path(directory))


if __name__ == "__main__":
    main()
