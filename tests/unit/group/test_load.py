"""Rates from readings of counters, smoothed; which reports of others count."""

from collections.abc import Mapping

import pytest

from san_target.group.load import DETAILS_MAX, STALE_S, Meter, Reports, SessionTotals, Totals
from tests.unit.group.load_kit import load


def owner_of(lba: int) -> str:
    return "m1" if lba < 4096 else "m2"


def reading(
    commands: int, regions: Mapping[tuple[int, int], int] | None = None, key: str = "s", sequential: int = 0
) -> SessionTotals:
    return SessionTotals(
        key, f"m1-{key}", "v", "disk", "iqn.x:a", "00", 9.0, commands, commands // 4, commands - commands // 4,
        commands * 4096, 8.0, 100 if regions else 0, sequential, dict(regions or {}), owner_of,
    )  # fmt: skip


def test_rates_are_differences_of_readings() -> None:
    meter = Meter()
    first = meter.measure("m1", 3, 10.0, Totals(cpu_s=5.0), [reading(1000)])
    assert (first.client_iops, first.cpu_share, first.sessions) == (0.0, 0.0, 1)
    totals = Totals(6.0, 40, 40 * 4096, 20, 20 * 4096, 10, 0.05, 0.002, 0.75)
    second = meter.measure(
        "m1", 3, 12.0, totals, [reading(1200, {(0, 2048): 75, (4096, 6144): 25}, sequential=50)], (100, 60)
    )
    assert second.client_iops == pytest.approx(100.0)
    assert second.client_bytes_per_second == pytest.approx(409_600.0)
    assert [second.read_share, second.sequential_share] == pytest.approx([0.25, 0.5])
    assert [second.cpu_share, second.cpu_limit] == [pytest.approx(0.5), 0.75]
    assert [second.forwarded_iops, second.served_iops] == pytest.approx([20.0, 10.0])
    assert second.owned_iops == pytest.approx(100 - 20 + 10)
    assert second.storage_latency_s == pytest.approx(0.005)
    assert second.storage_waits == pytest.approx(5.0)
    assert second.details[0].owners == {"m1": pytest.approx(0.75), "m2": pytest.approx(0.25)}
    assert second.details[0].depth == 8.0
    assert [(one.start_lba, one.end_lba) for one in second.ranges] == [(0, 2048), (4096, 6144)]
    assert second.ranges[0].iops == pytest.approx(37.5)
    assert (second.pool_capacity_bytes, second.pool_free_bytes, second.number) == (100, 60, 2)


def test_a_burst_of_a_second_is_no_change_of_load() -> None:
    meter, commands = Meter(), 0
    for second in range(20):
        commands += 100
        steady = meter.measure("m1", 1, float(second), Totals(), [reading(commands)])
    assert steady.client_iops == pytest.approx(100.0, rel=0.01)
    burst = meter.measure("m1", 1, 20.0, Totals(), [reading(commands + 1000)])
    assert 200 < burst.client_iops < 400
    for second in range(21, 50):
        commands += 1100 if second == 21 else 100
        after = meter.measure("m1", 1, float(second), Totals(), [reading(commands)])
    assert after.client_iops == pytest.approx(100.0, rel=0.02)


def test_a_session_that_is_gone_is_forgotten_and_a_new_one_counts_from_its_login() -> None:
    meter = Meter()
    meter.measure("m1", 1, 0.0, Totals(), [reading(10)])
    assert meter.measure("m1", 1, 1.0, Totals(), []).client_iops == 0.0
    new = meter.measure("m1", 1, 2.0, Totals(), [reading(50, {(0, 2048): 50}, key="t")])
    assert 0 < new.client_iops < 50
    assert new.details[0].owners == {"m1": 1.0}


def test_what_was_touched_counts_by_the_map_of_now() -> None:
    meter = Meter()
    meter.measure("m1", 1, 0.0, Totals(), [reading(0)])
    meter.measure("m1", 1, 1.0, Totals(), [reading(100, {(0, 2048): 100})])
    moved = SessionTotals(
        "s", "m1-s", "v", "disk", "iqn.x:a", "00", 9.0, 100, 25, 75, 0, 0.0, 0, 0, {}, lambda lba: "m9"
    )
    assert meter.measure("m1", 1, 2.0, Totals(), [moved]).details[0].owners == {"m9": 1.0}


def test_only_the_busiest_sessions_are_told() -> None:
    meter = Meter()
    many = [str(number) for number in range(DETAILS_MAX + 20)]
    meter.measure("m1", 1, 0.0, Totals(), [reading(0, key=key) for key in many])
    told = meter.measure("m1", 1, 1.0, Totals(), [reading(int(key), key=key) for key in many])
    assert told.sessions == len(many)
    assert len(told.details) == DETAILS_MAX
    assert min(one.iops for one in told.details) >= 20
    assert told.client_iops == pytest.approx(sum(map(int, many)))


def test_old_reports_do_not_count_and_late_ones_replace_nothing() -> None:
    reports = Reports()
    assert reports.note(load("m1", number=5), 0.0)
    assert not reports.note(load("m1", number=4), 1.0)
    assert not reports.note(load("m1", number=5), 1.0)
    assert reports.note(load("m2"), 2.0)
    assert list(reports.fresh(STALE_S)) == ["m1", "m2"]
    assert list(reports.fresh(STALE_S + 0.1)) == ["m2"]
    assert list(reports.all()) == ["m1", "m2"]
    reports.keep(["m2"])
    assert list(reports.all()) == ["m2"]
