"""What people see of a run: the live view, the report, the plot."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from initiator_sim import plot
from initiator_sim.fleet import Assignment, Fleet
from initiator_sim.group_map import Migrated
from initiator_sim.measure import Interval
from initiator_sim.personalities import ESXI
from initiator_sim.view import LiveView, microseconds, show_report, sparkline
from initiator_sim.workload import Plan
from san_target.storage.faulty import Fault, Rule, Script
from tests.support.faulty_target import faulty_target


def paper() -> Console:
    return Console(file=io.StringIO(), width=110, height=40)


def text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


async def run(script: Script, seen: Console) -> Fleet:
    """A short run with a lost connection and migrated blocks, shown on `seen`."""
    async with faulty_target(script, 2048, 512) as target:
        plan = Plan("randrw", read_share=0.5, depth=4)
        fleet = Fleet(Assignment((target.portal,), target.iqn, plan, ESXI, sessions=2, seconds=1.6, verify=True))
        view = LiveView(fleet, paper())
        seen.print(view.render())

        def interval(one: Interval) -> None:
            view.interval(one)
            seen.print(view.render())

        running = asyncio.ensure_future(fleet.run(interval))
        await asyncio.sleep(0.7)
        fleet.paths[0].drop_connection()
        fleet._migrated(Migrated("m1", "m2", 8192))
        await running
        return fleet


@pytest.fixture(scope="module")
def sound() -> tuple[dict[str, Any], str]:
    """(the report of a sound run, all that its live view showed)."""
    seen = paper()
    return asyncio.run(run(Script(), seen)).report(), text(seen)


def test_the_live_view_shows_load_latency_members_and_events(sound: tuple[dict[str, Any], str]) -> None:
    report, seen = sound
    assert "logging in 2 session(s)" in seen
    for shown in ("IOPS", "p99", "p50", "connection lost", "logged in again", "data migrated", "moves 0", "errors 0"):
        assert shown in seen
    [address] = report["members"]
    assert f"{address} " in seen


def test_the_report_sums_up(sound: tuple[dict[str, Any], str]) -> None:
    report, _ = sound
    console = paper()
    show_report(report, console)
    for shown in ("no error", "2 of 1 initiator(s)", "8,192 blocks have another owner", "verified", "longest pause"):
        assert shown in text(console)


@pytest.mark.parametrize(
    ("rule", "shown"),
    [(Rule("read", Fault.ERROR, after=100), "error: "), (Rule("write", Fault.LOST, times=-1), "wrong data")],
)
def test_the_report_says_what_is_wrong(rule: Rule, shown: str) -> None:
    report = asyncio.run(run(Script([rule]), paper())).report()
    console = paper()
    show_report(report, console)
    assert not report["ok"]
    assert "FAILED" in text(console)
    assert shown in text(console)


def test_equal_errors_are_one_line(sound: tuple[dict[str, Any], str]) -> None:
    console = paper()
    show_report({**sound[0], "error_messages": ["[a] no space", "[a] no space", "lost"], "ok": False}, console)
    assert "error: [a] no space (2 times)" in text(console)
    assert text(console).count("error: ") == 2


@pytest.mark.parametrize("suffix", plot.SUFFIXES)
def test_a_plot_is_drawn_with_its_marks(sound: tuple[dict[str, Any], str], tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / f"run{suffix}"
    plot.plot(sound[0], file)
    drawn = file.read_bytes()
    if suffix == ".png":
        assert drawn.startswith(b"\x89PNG")
    else:
        for label in ("IOPS", "latency, ms", "data migrated", "connection lost", "logged in again"):
            assert f"<!-- {label} -->".encode() in drawn


def test_small_things() -> None:
    from collections import deque

    assert sparkline(deque([0.0, 5.0, 10.0])) == " ▄█"
    assert [microseconds(value) for value in (12, 1200, 2_500_000)] == ["12 µs", "1.2 ms", "2.50 s"]
