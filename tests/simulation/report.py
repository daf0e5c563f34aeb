"""A run that failed: shortened, and told so that anybody can repeat it."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from tests.simulation.world import Result, Scenario, simulate

RUNS_MAX: Final = 40
LINES: Final = 40
WRONG_SHOWN: Final = 5


def shorten(result: Result, scenario: Scenario, runs_max: int = RUNS_MAX) -> tuple[Result, Scenario]:
    """The same failure with fewer faults and less of a load, as far as so many runs find it."""
    runs = runs_max

    def fails(numbers: Sequence[int], tried: Scenario) -> Result | None:
        nonlocal runs
        if runs == 0:
            return None
        runs -= 1
        found = simulate(result.seed, tried, numbers)
        return found if found.wrong else None

    best, best_scenario = result, scenario
    size = max(1, len(best.numbers) // 2)
    while best.numbers:
        start = 0
        before = len(best.numbers)
        while start < len(best.numbers):
            found = fails([*best.numbers[:start], *best.numbers[start + size :]], best_scenario)
            if found is None:
                start += size
            else:
                best = found
        if size == 1 and len(best.numbers) in (before, 0):
            break
        size = max(1, size // 2)
    for duration_s in (scenario.duration_s / 8, scenario.duration_s / 4, scenario.duration_s / 2):
        shorter = replace(best_scenario, duration_s=duration_s)
        found = fails(best.numbers, shorter)
        if found is not None:
            best, best_scenario = found, shorter
            break
    return best, best_scenario


def commit() -> str:
    """The commit that was simulated, and whether there are changes on top of it."""
    root = Path(__file__).resolve().parent
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
        found = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()


def tell(result: Result, scenario: Scenario, lines: int = LINES) -> str:
    """All that is needed to find out what happened."""
    shown = [f"seed {result.seed}, scenario {scenario.name}, commit {commit()}: {len(result.wrong)} wrong"]
    shown += [f"  {line}" for wrong in result.wrong[:WRONG_SHOWN] for line in wrong.splitlines()]
    shown += ["faults:" if result.faults else "without any fault"]
    shown += [f"  {fault}" for fault in result.faults]
    shown += [f"the last of {result.steps} steps, {result.virtual_s:.3f} s of virtual time:"]
    shown += [f"  {line}" for line in result.last[-lines:]]
    chosen = ",".join(str(number) for number in result.numbers)
    arguments = f'--scenario {scenario.name} --faults "{chosen}" --duration {scenario.duration_s:g}'
    shown += [f"again: make simulate SEED={result.seed} ARGS='{arguments}'"]
    return "\n".join(shown)


def failure(result: Result, scenario: Scenario) -> str:
    """Of a run that failed: the shortest that fails in its place."""
    return tell(*shorten(result, scenario))
