"""Latencies and throughput of a run: cheap to record, summed up once per interval."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

# Up to here a latency is kept to the microsecond, above it to 1 part in 256.
_EXACT_US: Final = 1024


def _bucket(latency_us: int) -> int:
    if latency_us < _EXACT_US:
        return latency_us
    shift = latency_us.bit_length() - 9
    return (latency_us >> shift) << shift


class Histogram:
    """How many commands took how many microseconds."""

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()
        self.total_us = 0
        self.number = 0
        self.max_us = 0

    def add(self, latencies_s: Iterable[float]) -> "Histogram":
        for latency_us, count in Counter(map(int, map((1e6).__mul__, latencies_s))).items():
            self.counts[_bucket(latency_us)] += count
            self.total_us += latency_us * count
            self.number += count
            if latency_us > self.max_us:
                self.max_us = latency_us
        return self

    def percentile(self, share: float) -> int:
        """The latency in microseconds that `share` (0 to 1) of all commands did not exceed; 0 without any."""
        wanted = share * self.number
        seen = 0
        for latency_us in sorted(self.counts):
            seen += self.counts[latency_us]
            if seen >= wanted:
                return latency_us
        return 0

    @property
    def mean_us(self) -> float:
        return self.total_us / self.number if self.number else 0.0

    def summary(self) -> dict[str, float]:
        """Microseconds."""
        return {
            "mean": round(self.mean_us, 1),
            "p50": self.percentile(0.5),
            "p95": self.percentile(0.95),
            "p99": self.percentile(0.99),
            "p999": self.percentile(0.999),
            "max": self.max_us,
        }


@dataclass(frozen=True, slots=True)
class Interval:
    """One interval of a run. at_s counts from its start to the end of the interval."""

    at_s: float
    length_s: float
    reads: int
    writes: int
    others: int
    p50_us: int
    p99_us: int
    max_us: int

    @property
    def iops(self) -> float:
        return (self.reads + self.writes + self.others) / self.length_s


class Meter:
    """Takes latencies in seconds: append them to reads_s, writes_s, others_s; `close_interval` sums them up."""

    def __init__(self, now: float) -> None:
        self.reads_s: list[float] = []
        self.writes_s: list[float] = []
        self.others_s: list[float] = []
        self.read_latency = Histogram()
        self.write_latency = Histogram()
        self.other_latency = Histogram()
        self.intervals: list[Interval] = []
        self.restart(now)

    def restart(self, now: float) -> None:
        """The measured time begins now."""
        self.started_s = now
        self._interval_start_s = now

    def close_interval(self, now: float) -> Interval:
        everything = Histogram()
        for values, histogram in (
            (self.reads_s, self.read_latency),
            (self.writes_s, self.write_latency),
            (self.others_s, self.other_latency),
        ):
            histogram.add(values)
            everything.add(values)
        interval = Interval(
            at_s=now - self.started_s,
            length_s=max(now - self._interval_start_s, 1e-9),
            reads=len(self.reads_s),
            writes=len(self.writes_s),
            others=len(self.others_s),
            p50_us=everything.percentile(0.5),
            p99_us=everything.percentile(0.99),
            max_us=everything.max_us,
        )
        # The lists are the ones that the workload appends to: they are emptied, never replaced.
        self.reads_s.clear()
        self.writes_s.clear()
        self.others_s.clear()
        self._interval_start_s = now
        self.intervals.append(interval)
        return interval

    @property
    def number(self) -> int:
        return self.read_latency.number + self.write_latency.number + self.other_latency.number
