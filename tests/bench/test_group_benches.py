"""The measurements of a group of real members run, each for some seconds; their figures are no verdict here."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cpu_quota import NoQuota, cpu_quota

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


def run(module: str, *words: str) -> str:
    """What it prints; it must end well."""
    command = [sys.executable, "-m", f"tests.bench.{module}", "--quick", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, f"status {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-8000:]}"
    return done.stdout


def test_balance_tells_efficiency_and_throughput_over_time() -> None:
    output = run("balance", "--rate", "50", "--data", "first")
    assert len(re.findall(r"^ +\d+ s +[01]\.\d{3} +\d+ IOPS .* CPU m1", output, re.MULTILINE)) >= 2, output
    assert "verified: True" in output


def test_migration_measures_every_part(tmp_path: Path) -> None:
    output = run("migration", "--directory", str(tmp_path))
    for what in ("to m1", "unbounded", "during", "into the piece under way", "64 GiB"):
        assert re.search(rf"^\| .*{what}", output, re.MULTILINE), output
    assert "mirrored writes" in output


def test_a_process_gets_its_share_of_a_cpu_only() -> None:
    """What it used in a while is told by itself: the share holds however busy the machine is."""
    work = "import time; input(); end = time.monotonic() + 1\nwhile time.monotonic() < end: pass\n"
    code = work + "print(time.process_time())"
    busy = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        with cpu_quota(busy.pid, 0.1):
            output, _ = busy.communicate("\n", timeout=60)
    except NoQuota as error:
        pytest.skip(str(error))
    finally:
        busy.kill()
        busy.wait()
    assert 0.0 < float(output) < 0.5
