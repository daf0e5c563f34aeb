"""Many initiators with many sessions in one process, under one workload: start, run, stop, report."""

import asyncio
import gc
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

from initiator_sim.chap import Credentials
from initiator_sim.checker import VerifyingStream
from initiator_sim.client import Initiator
from initiator_sim.group_map import GroupMap, Migrated
from initiator_sim.measure import Interval, Meter
from initiator_sim.nexus import Event, Kind
from initiator_sim.path import Path
from initiator_sim.personalities import Personality
from initiator_sim.reactor import Reactor
from initiator_sim.recorder import Recorder
from initiator_sim.workload import Plan, Stream, Tally

LOGINS_AT_ONCE: Final = 64
INTERVAL_S: Final = 0.5
HANG_S: Final = 45.0
MESSAGES_MAX: Final = 20


@dataclass(frozen=True, slots=True)
class Assignment:
    """What a run is to do. portals: tried in turn by the sessions; keys None = the personality's.

    crashes: a verified run in which the target may lose what was not flushed; `Fleet.target_crashed` says when.
    api: URL of a member's HTTP API, asked for migrations of the disk's data; api_token goes with it.
    strict: a verified run in which a read during a write must find whole blocks, as the members of a group promise.
    """

    portals: tuple[str, ...]
    iqn: str
    plan: Plan
    personality: Personality
    initiators: int = 1
    sessions: int = 1
    seconds: float = 10.0
    lun: int | None = None
    chap: Credentials | None = None
    mutual: Credentials | None = None
    keys: tuple[tuple[str, str], ...] | None = None
    hang_s: float = HANG_S
    verify: bool = False
    crashes: bool = False
    strict: bool = False
    api: str | None = None
    api_token: str | None = None


class Fleet:
    """One run. `streams` and `meter` exist from `log_in` on; events of all paths collect in `events`."""

    def __init__(self, assignment: Assignment) -> None:
        self.assignment = assignment
        self.reactor = Reactor()
        self.meter = Meter(time.perf_counter())
        self.tally = Tally()
        self.paths: list[Path] = []
        self.streams: list[Stream] = []
        self.events: list[Event] = []
        self.hung: list[str] = []
        self.ended_s = 0.0
        self.cpu_s = 0.0
        self.login_s = 0.0
        self.disk_blocks = 0
        self.disk_block_bytes = 0
        self.recorder: Recorder | None = None
        self._start_monotonic_s = 0.0
        self._finished = asyncio.Event()
        self.migrated_blocks = 0

    async def run(self, on_interval: Callable[[Interval], None] | None = None) -> None:
        """Log in, work, log out. Raises what the first login raises: LoginError, OSError, ScsiError, LookupError; and
        ApiError."""
        await self.log_in()
        try:
            async with self._watching_migrations():
                await self.work(on_interval)
        finally:
            await self.log_out()

    @asynccontextmanager
    async def _watching_migrations(self) -> AsyncIterator[None]:
        assignment = self.assignment
        if assignment.api is None:
            yield
            return
        group_map = GroupMap(assignment.api, assignment.iqn, assignment.api_token)
        try:
            await group_map.open()
            following = asyncio.ensure_future(group_map.follow(self._migrated))
            try:
                yield
            finally:
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)
        finally:
            await group_map.close()

    def _migrated(self, migrated: Migrated) -> None:
        self.migrated_blocks += migrated.blocks
        text = f"{migrated.blocks} blocks from {migrated.source} to {migrated.destination}"
        self.events.append(Event(time.monotonic(), Kind.MIGRATED, migrated.destination, text))

    async def log_in(self) -> None:
        assignment = self.assignment
        started_s = time.perf_counter()
        initiators = [self._initiator(number) for number in range(assignment.initiators)]
        async with initiators[0].connect(assignment.portals[0], assignment.iqn, lun=assignment.lun) as disk:
            self.disk_blocks, self.disk_block_bytes = disk.blocks, disk.block_bytes
            lun_value = disk.lun_value
            if assignment.verify and assignment.plan.discard_share and not disk.unmapped_reads_zero:
                raise ValueError("the disk does not promise that discarded blocks read as zeros: nothing to verify")
        self._check(assignment.plan)
        if assignment.verify:
            io_blocks = assignment.plan.block_bytes // self.disk_block_bytes
            self.recorder = Recorder(
                assignment.iqn,
                io_blocks,
                self.disk_block_bytes,
                secrets.randbits(32),
                crashes=assignment.crashes,
                strict=assignment.strict,
            )
            self.recorder.on_violation = lambda text: self.finish()
        gate = asyncio.Semaphore(LOGINS_AT_ONCE)

        async def connect(path: Path) -> None:
            async with gate:
                await path.connect()

        for number in range(assignment.initiators * assignment.sessions):
            portal = assignment.portals[number % len(assignment.portals)]
            path = initiators[number // assignment.sessions].path(portal, assignment.iqn, max(assignment.plan.depth, 1))
            path.on_event = self._event
            self.paths.append(path)
        try:
            await asyncio.gather(*map(connect, self.paths))
        except BaseException:
            for path in self.paths:
                path.abort()
            raise
        self.login_s = time.perf_counter() - started_s
        self.streams = [self.make_stream(number, path, lun_value) for number, path in enumerate(self.paths)]

    def make_stream(self, number: int, path: Path, lun_value: int) -> Stream:
        options: dict[str, Any] = {
            "lun_value": lun_value,
            "disk_blocks": self.disk_blocks,
            "disk_block_bytes": self.disk_block_bytes,
            "meter": self.meter,
            "tally": self.tally,
            "number": number,
        }
        if self.recorder is not None:
            return VerifyingStream(path, self.assignment.plan, recorder=self.recorder, **options)
        return Stream(path, self.assignment.plan, **options)

    def _initiator(self, number: int) -> Initiator:
        assignment = self.assignment
        personality = assignment.personality
        # A simulator that is told a depth means it: the personality's own limit applies to nobody here.
        return Initiator(
            personality.initiator_name + (f"-{number}" if assignment.initiators > 1 else ""),
            replace(personality, queue_depth=max(personality.queue_depth, assignment.plan.depth)),
            chap=assignment.chap,
            mutual=assignment.mutual,
            keys=assignment.keys,
            reactor=self.reactor,
        )

    def _check(self, plan: Plan) -> None:
        if plan.block_bytes % self.disk_block_bytes or plan.block_bytes == 0:
            raise ValueError(f"the disk has blocks of {self.disk_block_bytes} bytes: no I/O of {plan.block_bytes}")
        if self.disk_blocks * self.disk_block_bytes < plan.block_bytes:
            raise ValueError("the disk is smaller than one I/O")
        if self.assignment.crashes and plan.discard_share:
            raise ValueError("discards cannot be verified across crashes: all of them read as the same zeros")

    async def work(self, on_interval: Callable[[Interval], None] | None = None) -> None:
        gc.collect()
        gc.freeze()
        self.meter.restart(time.perf_counter())
        self._start_monotonic_s = time.monotonic()
        cpu_before_s = time.process_time()
        for stream in self.streams:
            stream.start()
        deadline = time.perf_counter() + self.assignment.seconds
        try:
            while (left_s := deadline - time.perf_counter()) > 0 and self._worth_going_on:
                await self._pause(min(INTERVAL_S, left_s))
                interval = self.meter.close_interval(time.perf_counter())
                if on_interval is not None:
                    on_interval(interval)
        finally:
            for stream in self.streams:
                stream.stop()
            self.ended_s = time.perf_counter()
            self.cpu_s = time.process_time() - cpu_before_s
        await self._drain()
        self.meter.close_interval(time.perf_counter())
        if self.recorder is not None and not self.hung:
            await self._read_back(self.recorder)

    def target_crashed(self) -> None:
        """The target is dead at this instant, and what it had not flushed may be lost. ValueError without `crashes`."""
        if self.recorder is not None:
            self.recorder.crashed(Stream.clock())

    def finish(self) -> None:
        """End the work before its time; what was written is still read once more."""
        self._finished.set()

    @property
    def _worth_going_on(self) -> bool:
        return not self._finished.is_set() and any(path.failed is None for path in self.paths)

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._finished.wait()
        except TimeoutError:
            pass

    async def _read_back(self, recorder: Recorder) -> None:
        """Read all that was written once more, then judge the whole history."""
        positions = recorder.written_positions()
        for stream in self.streams:
            if isinstance(stream, VerifyingStream) and stream.path.failed is None:
                stream.read_back(positions)
        await self._drain()
        recorder.check_all()

    async def _drain(self) -> None:
        """Wait for what is under way; what does not come is a hang."""
        try:
            async with asyncio.timeout(self.assignment.hang_s):
                for stream in self.streams:
                    await stream.idle.wait()
        except TimeoutError:
            stuck = [stream for stream in self.streams if stream.in_flight]
            for stream in stuck[:MESSAGES_MAX]:
                self.hung.append(f"{stream.path.address}: {stream.in_flight} commands without an answer at the end")

    async def log_out(self) -> None:
        await asyncio.gather(*(path.close() for path in self.paths))
        gc.unfreeze()

    def _event(self, path: Path, event: Event) -> None:
        self.events.append(event)
        if event.kind is Kind.TIMED_OUT:
            self.hung.append(f"{event.address}: {event.text}")

    # --- results --------------------------------------------------------------------------------------------------

    @property
    def members(self) -> Counter[str]:
        """Sessions by the address that serves them now."""
        return Counter(path.address for path in self.paths)

    @property
    def moves(self) -> int:
        return sum(path.moves for path in self.paths)

    @property
    def violations(self) -> list[str]:
        return [text for path in self.paths for text in path.violations]

    @property
    def failed(self) -> bool:
        """True after any error, hang or broken rule."""
        wrong_data = self.recorder is not None and self.recorder.violation_count
        return bool(self.tally.errors or self.hung or self.violations or wrong_data)

    def event_at_s(self, event: Event) -> float:
        """When an event happened, in seconds from the start of the work."""
        return event.at_s - self._start_monotonic_s

    def report(self) -> dict[str, Any]:
        """Latencies are microseconds, other times seconds, cpu_share 1.0 = this process took a core."""
        assignment, meter = self.assignment, self.meter
        seconds = max(self.ended_s - meter.started_s, 1e-9)
        remarks: Counter[str] = Counter()
        for path in self.paths:
            remarks.update(path.remarks)
            if path.session is not None:
                remarks.update(path.session.remarks)
        transferred = meter.read_latency.number + meter.write_latency.number
        return {
            "iqn": assignment.iqn,
            "personality": assignment.personality.name,
            "workload": assignment.plan.workload,
            "block_bytes": assignment.plan.block_bytes,
            "depth": assignment.plan.depth,
            "initiators": assignment.initiators,
            "sessions": len(self.paths),
            "seconds": round(seconds, 3),
            "reads": meter.read_latency.number,
            "writes": meter.write_latency.number,
            "others": meter.other_latency.number,
            "iops": round(meter.number / seconds, 1),
            "cpu_share": round(self.cpu_s / seconds, 3),
            "bytes_per_second": round(transferred * assignment.plan.block_bytes / seconds),
            "read_latency_us": meter.read_latency.summary(),
            "write_latency_us": meter.write_latency.summary(),
            "other_latency_us": meter.other_latency.summary(),
            "login_s": round(self.login_s, 3),
            "logins": sum(path.logins for path in self.paths),
            "redirects": sum(event.kind is Kind.REDIRECTED for event in self.events),
            "moves": self.moves,
            "longest_pause_s": round(max((event.pause_s for event in self.events), default=0.0), 3),
            "members": dict(self.members),
            "migrated_blocks": self.migrated_blocks,
            "retries": self.tally.retries,
            "reissued": self.tally.reissued,
            "errors": self.tally.errors,
            "error_messages": self.tally.messages,
            "violations": self.violations[:MESSAGES_MAX],
            "hung": self.hung[:MESSAGES_MAX],
            "remarks": dict(remarks),
            "events": [
                {
                    "at_s": round(self.event_at_s(event), 3),
                    "kind": event.kind.name.lower(),
                    "address": event.address,
                    "text": event.text,
                    "pause_s": round(event.pause_s, 3),
                }
                for event in self.events
                if event.kind is not Kind.UP
            ][:1000],
            "intervals": [
                {"at_s": round(one.at_s, 3), "iops": round(one.iops, 1), "p50_us": one.p50_us, "p99_us": one.p99_us}
                for one in meter.intervals
            ],
            "ok": not self.failed,
        } | ({"verify": self.recorder.report()} if self.recorder is not None else {})
