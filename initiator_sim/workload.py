"""What a session does to a disk: patterns of reads, writes, discards and flushes, bound by depth or by rate.

The commands of a stream are made once and used again and again: an I/O costs no new task, future or timer.
"""

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from struct import Struct
from typing import Final

from initiator_sim import cdb as cdbs
from initiator_sim.measure import Meter
from initiator_sim.path import Path
from initiator_sim.sense import Verdict, describe, judge
from initiator_sim.task import Failure, Task

WORKLOADS: Final = ("randread", "randwrite", "randrw", "read", "write")
ERRORS_SHOWN_MAX: Final = 20
_GATE_S: Final = 0.002
_ZIPF_RANKS_MAX: Final = 1 << 16
_SPREAD: Final = 0x9E3779B1  # an odd number: neighbours in rank are no neighbours on the disk
_READ_FLAGS: Final = 0xC1  # F, R, SIMPLE (RFC 7143 11.3.1)
_WRITE_FLAGS: Final = 0xA1  # F, W, SIMPLE
_NO_DATA_FLAGS: Final = 0x81
_RW16: Final = Struct(">BBQIBB2x").pack
_clock = time.perf_counter


@dataclass(frozen=True, slots=True)
class Plan:
    """A workload. block_bytes is the size of one I/O, a multiple of the disk's block.

    read_share        share of reads among reads and writes, for randrw
    zipf              0 = uniform; else the exponent: 1.1 sends about half of all I/O to a thousandth of the disk
    rate              I/Os a second and session; 0 = as many as `depth` allows
    discard_share     share of UNMAP among all I/Os
    flush_every       a SYNCHRONIZE CACHE after so many writes of a session; 0 = none
    burst_s, pause_s  work for burst_s, rest for pause_s; 0 = no rests
    """

    workload: str = "randread"
    block_bytes: int = 4096
    depth: int = 32
    read_share: float = 0.7
    zipf: float = 0.0
    rate: float = 0.0
    discard_share: float = 0.0
    flush_every: int = 0
    burst_s: float = 0.0
    pause_s: float = 0.0
    seed: int = 0

    @property
    def reads(self) -> float:
        """The share of reads among reads and writes."""
        return {"randread": 1.0, "read": 1.0, "randwrite": 0.0, "write": 0.0}.get(self.workload, self.read_share)


def positions(plan: Plan, granules: int, seed: int, start: int) -> Iterator[int]:
    """An endless choice of I/O-sized pieces of the disk, 0 to granules - 1. Sequential ones begin at `start`."""
    if plan.workload in ("read", "write"):
        return _sequential(granules, start)
    if plan.zipf:
        return _zipf(random.Random(seed), granules, plan.zipf)
    return _uniform(random.Random(seed).random, granules)


def _sequential(granules: int, start: int) -> Iterator[int]:
    while True:
        yield from range(start, granules)
        start = 0


def _uniform(draw: Callable[[], float], granules: int) -> Iterator[int]:
    while True:
        yield int(draw() * granules)


def _zipf(source: random.Random, granules: int, exponent: float) -> Iterator[int]:
    ranks = range(min(granules, _ZIPF_RANKS_MAX))
    weights = list(accumulate((rank + 1) ** -exponent for rank in ranks))
    while True:
        for rank in source.choices(ranks, cum_weights=weights, k=4096):
            yield rank * _SPREAD % granules


class Tally:
    """What went wrong, or nearly, in all streams of a run."""

    def __init__(self) -> None:
        self.retries = 0
        self.reissued = 0
        self.errors = 0
        self.messages: list[str] = []

    def error(self, message: str) -> None:
        self.errors += 1
        if len(self.messages) < ERRORS_SHOWN_MAX:
            self.messages.append(message)


class Stream:
    """The I/O of one session. `start`, then `stop`; `idle` is set when nothing is under way any more."""

    def __init__(
        self,
        path: Path,
        plan: Plan,
        *,
        lun_value: int,
        disk_blocks: int,
        disk_block_bytes: int,
        meter: Meter,
        tally: Tally,
        number: int,
    ) -> None:
        self.path = path
        self.plan = plan
        self.tally = tally
        self.idle = asyncio.Event()
        self.lun_value = lun_value
        self.io_blocks = plan.block_bytes // disk_block_bytes
        granules = disk_blocks // self.io_blocks
        seed = plan.seed * 1_000_003 + number
        self._next_position = positions(plan, granules, seed, granules * (number % 16) // 16).__next__
        self._draw = random.Random(seed + 1).random
        self._reads = plan.reads
        self._simple = plan.reads == 1.0 and not plan.discard_share
        # Nothing but reads, one after the other, and nobody looks at what they find.
        self._plain = self._simple and not (plan.rate or plan.burst_s) and type(self).finished is Stream.finished
        self._enqueue = path.enqueue
        self._gated = bool(plan.rate or plan.burst_s)
        self._held = self._gated  # commands that end wait for the gate, instead of beginning the next I/O
        self._payload = memoryview(random.Random(seed + 2).randbytes(plan.block_bytes))
        self._add_read = meter.reads_s.append
        self._add_write = meter.writes_s.append
        self._add_other = meter.others_s.append
        self._writes_since_flush = 0
        self._resting: list[Task] = []
        self._in_flight = 0
        self._stopping = False
        self._tokens = 0.0
        self._gate_at_s = 0.0
        self._started_at_s = 0.0
        self._refusals: dict[Task, tuple[float, int]] = {}
        """Of a task: when its I/O began, and how often that one was refused."""
        path.on_reissue = self._reissued

    # --- start and stop -------------------------------------------------------------------------------------------

    def start(self) -> None:
        tasks = [Task(b"", self._done, lun=self.lun_value) for _ in range(self.plan.depth)]
        self._started_at_s = self._gate_at_s = _clock()
        if self._gated:
            self._resting = tasks
            self._gate()
            return
        for task in tasks:
            self._begin(task, _clock())
        self.path.plan_flush()

    @staticmethod
    def clock() -> float:
        """Seconds; one clock for all streams."""
        return _clock()

    def stop(self) -> None:
        """Begin nothing new."""
        self._stopping = True
        self._plain = False
        if self._in_flight == 0:
            self.idle.set()

    @property
    def in_flight(self) -> int:
        return self._in_flight

    def _gate(self) -> None:
        """Let rested commands go as rate and bursts allow."""
        if self._stopping:
            return
        now = _clock()
        plan = self.plan
        cycle_s = plan.burst_s + plan.pause_s
        working = not plan.burst_s or (now - self._started_at_s) % cycle_s < plan.burst_s
        self._held = bool(plan.rate) or not working
        if working:
            # After a stall no more than one depth is caught up.
            earned = (now - self._gate_at_s) * plan.rate if plan.rate else float(plan.depth)
            self._tokens = min(self._tokens + earned, float(plan.depth))
            while self._resting and self._tokens >= 1.0:
                self._tokens -= 1.0
                self._begin(self._resting.pop(), now)
            self.path.plan_flush()
        self._gate_at_s = now
        asyncio.get_running_loop().call_later(_GATE_S, self._gate)

    # --- one I/O --------------------------------------------------------------------------------------------------

    def _begin(self, task: Task, now: float) -> None:
        self._in_flight += 1
        self.prepare(task)
        task.started = now
        self.path.enqueue(task)

    def prepare(self, task: Task) -> None:
        """Choose the next I/O and write it into the task."""
        if self._simple:
            task.flags = _READ_FLAGS
            task.read_bytes = self.plan.block_bytes
            task.cdb = _RW16(0x88, 0, self._next_position() * self.io_blocks, self.io_blocks, 0, 0)
            return
        plan = self.plan
        if plan.flush_every and self._writes_since_flush >= plan.flush_every:
            self._writes_since_flush = 0
            self.make_flush(task)
            return
        position = self._next_position()
        if plan.discard_share and self._draw() < plan.discard_share:
            self.make_discard(task, position)
        elif self._reads == 1.0 or (self._reads and self._draw() < self._reads):
            self.make_read(task, position)
        else:
            self._writes_since_flush += 1
            self.make_write(task, position, self._payload)

    def make_read(self, task: Task, position: int) -> None:
        task.flags = _READ_FLAGS
        task.read_bytes = self.plan.block_bytes
        task.write_data = None
        task.cdb = _RW16(0x88, 0, position * self.io_blocks, self.io_blocks, 0, 0)

    def make_write(self, task: Task, position: int, data: memoryview) -> None:
        task.flags = _WRITE_FLAGS
        task.read_bytes = 0
        task.write_data = data
        task.cdb = _RW16(0x8A, 0, position * self.io_blocks, self.io_blocks, 0, 0)

    def make_discard(self, task: Task, position: int) -> None:
        parameters = cdbs.unmap_parameters((position * self.io_blocks, self.io_blocks))
        task.flags = _WRITE_FLAGS
        task.read_bytes = 0
        task.write_data = memoryview(parameters)
        task.cdb = cdbs.unmap(len(parameters)).ljust(16, b"\0")

    def make_flush(self, task: Task) -> None:
        task.flags = _NO_DATA_FLAGS
        task.read_bytes = 0
        task.write_data = None
        task.cdb = cdbs.synchronize_cache().ljust(16, b"\0")

    def _done(self, task: Task) -> None:
        now = _clock()
        if task.status:
            self._not_good(task, now)
            return
        if self._plain:
            self._add_read(now - task.started)
            task.cdb = _RW16(0x88, 0, self._next_position() * self.io_blocks, self.io_blocks, 0, 0)
            task.started = now
            self._enqueue(task)
            return
        self.finished(task, now)
        if task.read_bytes:
            self._add_read(now - task.started)
        elif task.cdb[0] == 0x8A:
            self._add_write(now - task.started)
        else:
            self._add_other(now - task.started)
        self._next(task, now)

    def _next(self, task: Task, now: float) -> None:
        if self._stopping or self._held:
            self._rest(task)
            return
        self.prepare(task)
        task.started = now
        self.path.enqueue(task)

    def finished(self, task: Task, now: float) -> None:
        """A command ended with GOOD: what a verifying stream looks at."""

    def given_up(self, task: Task, now: float) -> None:
        """A command ended in an error, or will be sent again: what it did is not known."""

    def _rest(self, task: Task) -> None:
        self._in_flight -= 1
        self._resting.append(task)
        if self._stopping and self._in_flight == 0:
            self.idle.set()

    def _not_good(self, task: Task, now: float) -> None:
        verdict = judge(task)
        self.given_up(task, now)
        wait_s = self._wait_after_busy_s(task) if verdict is Verdict.RETRY_LATER else None
        if verdict is Verdict.RETRY:
            self.tally.retries += 1
            self.again(task, now)
        elif wait_s is not None:
            self.tally.retries += 1
            asyncio.get_running_loop().call_later(wait_s, self._again_later, task)
        else:
            self.tally.error(f"{self.path.address}: {task.cdb[:1].hex()}h ended with {describe(task)}")
            if task.failure is Failure.PATH_LOST:
                self._stopping = True
                self._plain = False
            self._next(task, now)

    def _wait_after_busy_s(self, task: Task) -> float | None:
        began_s, refusals = self._refusals.get(task, (0.0, 0))
        refusals = refusals + 1 if began_s == task.started else 1
        self._refusals[task] = task.started, refusals
        return self.path.personality.wait_after_busy_s(refusals)

    def again(self, task: Task, now: float) -> None:
        self.path.enqueue(task)

    def _again_later(self, task: Task) -> None:
        self.again(task, _clock())
        self.path.plan_flush()

    def _reissued(self, task: Task) -> None:
        self.tally.reissued += 1
