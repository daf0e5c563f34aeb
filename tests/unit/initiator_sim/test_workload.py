"""Patterns of I/O, and the sums of a run."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest

from initiator_sim.measure import Histogram, Meter
from initiator_sim.workload import WORKLOADS, Plan, positions


def take(plan: Plan, granules: int, count: int, start: int = 0) -> list[int]:
    return list(islice(positions(plan, granules, plan.seed, start), count))


@pytest.mark.parametrize("workload", WORKLOADS)
@pytest.mark.parametrize("zipf", [0.0, 1.1])
@pytest.mark.parametrize("granules", [1, 7, 1000])
def test_positions_stay_on_the_disk(workload: str, zipf: float, granules: int) -> None:
    assert set(take(Plan(workload, zipf=zipf), granules, 5000)) <= set(range(granules))


def test_sequential_positions_wrap_around() -> None:
    assert take(Plan("read"), 4, 6, start=2) == [2, 3, 0, 1, 2, 3]


def test_a_seed_gives_the_same_positions_again() -> None:
    assert take(Plan(seed=3), 1000, 50) == take(Plan(seed=3), 1000, 50)
    assert take(Plan(seed=3), 1000, 50) != take(Plan(seed=4), 1000, 50)


def test_uniform_positions_reach_everything() -> None:
    assert len(set(take(Plan(), 100, 5000))) == 100


def test_zipf_has_hot_spots_apart_from_each_other() -> None:
    counts = Counter(take(Plan(zipf=1.1), 1 << 20, 20000))
    hottest = [position for position, _ in counts.most_common(10)]
    assert sum(counts[position] for position in hottest) > 20000 * 0.25
    assert min(abs(one - other) for one in hottest for other in hottest if one != other) > 100


@pytest.mark.parametrize(("workload", "reads"), [("randread", 1), ("read", 1), ("randwrite", 0), ("randrw", 0.25)])
def test_the_share_of_reads(workload: str, reads: float) -> None:
    assert Plan(workload, read_share=0.25).reads == reads


def test_percentiles() -> None:
    histogram = Histogram().add((number + 0.5) / 1e6 for number in range(1, 1001))
    assert [histogram.percentile(share) for share in (0.5, 0.99, 1.0)] == [500, 990, 1000]
    assert (histogram.max_us, histogram.number, histogram.mean_us) == (1000, 1000, 500.5)


def test_long_latencies_are_kept_to_within_a_percent() -> None:
    histogram = Histogram().add([1.234567])
    assert histogram.percentile(0.5) == pytest.approx(1_234_567, rel=0.01)
    assert histogram.max_us == pytest.approx(1_234_567, abs=1)


def test_nothing_measured() -> None:
    assert Histogram().summary() == {"mean": 0, "p50": 0, "p95": 0, "p99": 0, "p999": 0, "max": 0}


def test_intervals_sum_up() -> None:
    meter = Meter(10.0)
    append = meter.reads_s.append  # as the streams hold it over all intervals
    append(0.001)
    meter.writes_s.append(0.002)
    first = meter.close_interval(10.5)
    append(0.003)
    second = meter.close_interval(11.0)
    assert (first.reads, first.writes, first.iops, second.reads, second.at_s) == (1, 1, 4.0, 1, 1.0)
    assert (meter.number, meter.read_latency.number) == (3, 2)
