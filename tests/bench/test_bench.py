"""The benchmark's own arithmetic, and one short run of it with tgt."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from tests.bench.bench import OURS, PEER, missed_goals, summarize, table
from tests.bench.load import Latency, Load

WORKLOAD = "randread-4k-qd32"


def loads(*figures: tuple[float, float]) -> list[Load]:
    """One Load for each (IOPS, CPU-us per I/O)."""
    return [Load(iops, iops / 250, Latency(1, 1, 2, 3), cpu, 1, 1, 1, 0, 0) for iops, cpu in figures]


def test_medians_and_ratios_to_tgt() -> None:
    ours, peer = summarize(
        {WORKLOAD: {OURS: loads((900, 4), (210, 5), (200, 6)), PEER: loads((100, 10), (90, 11), (2, 99))}}
    )
    assert (ours.iops, ours.target_cpu_us_per_io) == (210, 5)
    assert (peer.iops, peer.target_cpu_us_per_io) == (90, 11)
    assert ours.iops_ratio == pytest.approx(210 / 90)
    assert ours.cpu_ratio == pytest.approx(5 / 11)
    assert (peer.iops_ratio, peer.cpu_ratio) == (None, None)
    assert "| randread-4k-qd32 | san-target | 210 |" in table([ours, peer])


def test_goals() -> None:
    good = summarize({WORKLOAD: {OURS: loads((200, 5)), PEER: loads((100, 10))}})
    assert missed_goals(good) == []
    slow = summarize({WORKLOAD: {OURS: loads((199, 5.1)), PEER: loads((100, 10))}})
    assert missed_goals(slow) == [
        "randread-4k-qd32: 1.99x the IOPS of tgt, wanted 2.0x",
        "randread-4k-qd32: 0.51x the CPU of tgt, wanted 0.5x",
    ]


@pytest.mark.slow
@pytest.mark.tool("gcc", "libiscsi.h", "tgtd", "tgtadm", "qemu-img", "qemu-iscsi")
def test_a_short_run_measures_every_workload(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    contestants = [PEER] if request.config.getoption("--target") == "tgt" else [PEER, OURS]
    words = [word for contestant in contestants for word in ("--contestant", contestant)]
    words += ["--rounds", "1", "--seconds", "0.2", "--size-mib", "32", "--json", str(tmp_path / "report.json")]
    words += ["--directory", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.bench", *words], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = msgspec.json.decode((tmp_path / "report.json").read_bytes())
    assert {summary["contestant"] for summary in report["medians"]} == set(contestants)
    assert all(summary["iops"] > 0 for summary in report["medians"])
