"""A run that failed: shortened, and told so that anybody can repeat it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from tests.simulation.world import Result, Scenario, simulate

RUNS_MAX: Final = 40
LINES: Final = 60
WRONG_SHOWN: Final = 5


class Shortened:
    """The shortest run that failed so far: result, scenario. runs: how many more may be tried."""

    def __init__(self, result: Result, scenario: Scenario, runs: int) -> None:
        self.result = result
        self.scenario = scenario
        self.runs = runs

    def fails(self, numbers: Sequence[int], scenario: Scenario) -> bool:
        """Does it still fail with these faults of the seed's, in this scenario? Then it is the shortest."""
        if self.runs == 0:
            return False
        self.runs -= 1
        found = simulate(self.result.seed, scenario, numbers)
        if found.wrong:
            self.result, self.scenario = found, scenario
        return bool(found.wrong)


def shorten(result: Result, scenario: Scenario, runs_max: int = RUNS_MAX) -> tuple[Result, Scenario]:
    """The same failure with fewer faults, initiators and operations, as far as so many runs find it."""
    best = Shortened(result, scenario, runs_max)
    _drop_faults(best)
    for tried in _less_load(scenario):
        for changes in tried:
            if best.fails(best.result.numbers, replace(best.scenario, **changes)):
                break
    return best.result, best.scenario


def _drop_faults(best: Shortened) -> None:
    """Half of them, quarters, single ones, as long as some are left out and there are runs."""
    size = max(1, len(best.result.numbers) // 2)
    while best.result.numbers and best.runs:
        start, before = 0, len(best.result.numbers)
        while start < len(best.result.numbers) and best.runs:
            numbers = best.result.numbers
            if not best.fails([*numbers[:start], *numbers[start + size :]], best.scenario):
                start += size
        if size == 1 and len(best.result.numbers) in (before, 0):
            return
        size = max(1, size // 2)


def _less_load(scenario: Scenario) -> Iterator[list[dict[str, int | float]]]:
    """Changes to be tried, the largest first; of each list the first that still fails counts."""
    yield [{"duration_s": scenario.duration_s / share} for share in (8, 4, 2)]
    yield [{"hosts_max": 1}, {"hosts_max": 2}]
    yield [{"depth_max": 1}, {"depth_max": 2}, {"depth_max": 4}]


def commit() -> str:
    """The commit that was simulated, and whether there are changes on top of it."""
    root = Path(__file__).resolve().parent
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
        found = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()


def again(result: Result, scenario: Scenario) -> str:
    """The command that repeats a run."""
    chosen = ",".join(str(number) for number in result.numbers)
    options = f'--scenario {scenario.name} --faults "{chosen}" --duration {scenario.duration_s:g}'
    if scenario.hosts_max != Scenario.hosts_max:
        options += f" --hosts {scenario.hosts_max}"
    if scenario.depth_max != Scenario.depth_max:
        options += f" --depth {scenario.depth_max}"
    return f"make simulate SEED={result.seed} ARGS='{options}'"


def tell(result: Result, scenario: Scenario, lines: int = LINES) -> str:
    """All that is needed to find out what happened."""
    shown = [f"seed {result.seed}, scenario {scenario.name}, commit {commit()}: {len(result.wrong)} wrong"]
    shown += [f"  {line}" for wrong in result.wrong[:WRONG_SHOWN] for line in wrong.splitlines()]
    shown += ["faults:" if result.faults else "without any fault of the seed's"]
    shown += [f"  {fault}" for fault in result.faults]
    lines = min(lines, len(result.last))
    shown += [f"the last {lines} lines of {result.steps} steps, {result.virtual_s:.3f} s of virtual time:"]
    shown += [f"  {line}" for line in result.last[len(result.last) - lines :]]
    shown += [f"again: {again(result, scenario)}"]
    return "\n".join(shown)


def failure(result: Result, scenario: Scenario) -> str:
    """Of a run that failed: the shortest that fails in its place."""
    return tell(*shorten(result, scenario))
