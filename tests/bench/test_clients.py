"""The comparison of the clients runs, and 200 initiators with 4 sessions each run in one process."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.tool("gcc", "libiscsi.h", "qemu-img", "qemu-iscsi")
def test_a_short_comparison(tmp_path: Path) -> None:
    words = ["--rounds", "1", "--seconds", "0.5", "--size-mib", "32", "--many", "--directory", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.clients", *words], capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^initiator-sim drives \d+\.\d\d times", done.stdout, re.MULTILINE), done.stdout
    assert re.search(r"^200 initiators with 4 sessions each in one process: .* MiB$", done.stdout, re.MULTILINE)
