"""A long run of hostile cases: `python -m tests.hostile.long_run --cases 200000 --seed 1`.

Progress goes to stderr; at the end stand cases, time and outcomes by kind, and the memory of this process at the start
and at the end. Exit status 1 if anything failed: then seed, chain and the smallest sequence of steps that still fails
were printed, and `--seed S --chain N --cases 1` runs that chain again.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import re
import sys
import time
from collections import Counter
from pathlib import Path

from tests.hostile.campaign import KINDS, Result, campaign

RESIDENT_GROWTH_BYTES_MAX = 64 << 20
_WARM_UP_CASES = 4000


def resident_bytes() -> int:
    """Memory of this process that is in use (Linux)."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) << 10


class Progress:
    """A line each five seconds; remembers the memory once everything has been imported and used."""

    def __init__(self, cases: int) -> None:
        self._cases = cases
        self._began_s = self._shown_s = time.monotonic()
        self.resident_at_first = 0

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        if not self.resident_at_first and done >= _WARM_UP_CASES:
            gc.collect()
            self.resident_at_first = resident_bytes()
        if now - self._shown_s >= 5:
            self._shown_s = now
            rate = done / (now - self._began_s)
            left = max(0, self._cases - done) / rate
            sys.stderr.write(f"{done:>8} cases  {rate:6.0f}/s  {left:4.0f} s left\n")


def summary(result: Result, seconds: float) -> str:
    lines = [f"{'kind':<22}{'cases':>9}{'ms each':>9}  outcomes"]
    for kind in sorted(result.cases):
        count = result.cases[kind]
        outcomes = result.outcomes[kind]
        shown = ", ".join(f"{name} {seen}" for name, seen in outcomes.most_common(4))
        lines.append(f"{kind:<22}{count:>9}{result.seconds[kind] / count * 1000:>9.2f}  {shown}")
    total: Counter[str] = Counter()
    for outcomes in result.outcomes.values():
        total.update(outcomes)
    lines += ["", f"{'outcome':<72}{'times':>9}"]
    lines += [f"{name:<72}{seen:>9}" for name, seen in sorted(total.items())]
    cases = result.cases.total()
    used = f"{seconds:.0f} s ({time.process_time():.0f} s of one core)"
    lines += ["", f"{cases} cases in {used}, {cases / seconds:.0f} a second: {len(result.failures)} failed"]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="Hostile input against the target, case after case.")
    parser.add_argument("--cases", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--chain", type=int, default=0, help="the first chain of cases")
    parser.add_argument("--kind", action="append", help="only this kind of case (repeatable)")
    options = parser.parse_args()
    kinds = [kind for kind in KINDS if not options.kind or kind.name in options.kind]
    if not kinds:
        parser.error(f"kinds are: {', '.join(kind.name for kind in KINDS)}")
    progress = Progress(options.cases)
    began = time.monotonic()
    result = asyncio.run(campaign(options.seed, options.cases, kinds, options.chain, progress=progress))
    sys.stdout.write(f"seed {options.seed}\n{summary(result, time.monotonic() - began)}\n")
    for failure in result.failures:
        sys.stdout.write(f"\n{failure}\n")
    failed = bool(result.failures)
    if progress.resident_at_first:
        gc.collect()
        grown = resident_bytes() - progress.resident_at_first
        at_first = progress.resident_at_first
        sys.stdout.write(
            f"resident memory {at_first >> 20} MiB after {_WARM_UP_CASES} cases, {grown >> 10:+} KiB since\n"
        )
        failed |= grown > RESIDENT_GROWTH_BYTES_MAX
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
