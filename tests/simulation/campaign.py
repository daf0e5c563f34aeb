"""Many runs over several processes: seeds for `make simulate-long`, mutants for `make simulate-mutants`.

Processes are handed names and numbers only: what runs is looked up there.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tests.simulation.mutants import MUTANTS, mutated
from tests.simulation.report import failure
from tests.simulation.scenarios import SCENARIOS, USUAL
from tests.simulation.steps import STEPS
from tests.simulation.world import simulate

FAILURES_MAX: Final = 10
TOLD_EVERY_S: Final = 30.0
CHUNK: Final = 4
RUNS_OF_A_PROCESS: Final = 50


@dataclass(frozen=True)
class Done:
    """Of one run. wrong: "" or all there is to be told."""

    seed: int
    scenario: str
    commands: int
    virtual_s: float
    wrong: str


def _pool(jobs: int) -> Any:
    return multiprocessing.get_context("spawn").Pool(jobs, maxtasksperchild=RUNS_OF_A_PROCESS)


def run_one(task: tuple[int, str]) -> Done:
    seed, name = task
    scenario = SCENARIOS[name]
    result = simulate(seed, scenario)
    wrong = failure(result, scenario) if result.wrong else ""
    return Done(seed, name, result.commands, result.virtual_s, wrong)


def shared_out(first: int, count: int, scenarios: Sequence[str] = ()) -> Iterator[tuple[int, str]]:
    """`count` runs: seeds one after the other, each with the next scenario; of the steps of migrations, one in four."""
    steps = list(STEPS)
    usual = list(scenarios) or list(USUAL)
    for seed in range(first, first + count):
        if not scenarios and seed % 4 == 3:
            yield seed, steps[seed // 4 % len(steps)]
        else:
            yield seed, usual[(seed - seed // 4) % len(usual)]


def run_many(tasks: Sequence[tuple[int, str]], jobs: int, say: Callable[[str], None]) -> bool:
    """Run all, tell what fails as it comes, and how far it is now and then. False: something failed."""
    began_s = told_s = time.monotonic()
    ended = commands = 0
    virtual_s = 0.0
    failed: list[Done] = []
    with _pool(jobs) as pool:
        for done in pool.imap_unordered(run_one, tasks, chunksize=CHUNK):
            ended += 1
            commands += done.commands
            virtual_s += done.virtual_s
            if done.wrong:
                failed.append(done)
                say(f"{done.wrong}\n")
                if len(failed) >= FAILURES_MAX:
                    say("so many fail that the rest is left out")
                    break
            if time.monotonic() - told_s > TOLD_EVERY_S:
                told_s = time.monotonic()
                say(f"{ended} of {len(tasks)} runs, {len(failed)} failed, {told_s - began_s:.0f} s")
    say(
        f"{ended} runs, {len(failed)} failed; {commands} commands in {virtual_s:.0f} s of virtual time, "
        f"{time.monotonic() - began_s:.0f} s of real time"
    )
    if failed:
        say("failed: " + ", ".join(f"{each.scenario} {each.seed}" for each in failed))
    return not failed


def find_mutant(task: tuple[str, int, int]) -> tuple[str, int | None, str]:
    """(mutant, the first of the seeds that finds it or None, what was wrong)."""
    name, first, count = task
    scenario = SCENARIOS[MUTANTS[name].scenario]
    for seed in range(first, first + count):
        with mutated(name):
            result = simulate(seed, scenario)
        if result.wrong:
            return name, seed, result.wrong[0].splitlines()[0]
    return name, None, ""


def find_mutants(names: Sequence[str], first: int, count: int, jobs: int, say: Callable[[str], None]) -> bool:
    """Look for each mutant from seeds that nobody chose. False: one was not found."""
    missed = []
    with _pool(jobs) as pool:
        for name, seed, wrong in pool.imap_unordered(find_mutant, [(name, first, count) for name in names]):
            mutant = MUTANTS[name]
            if seed is None:
                missed.append(name)
                say(f"[{mutant.number}] {name}: NOT FOUND in {count} seeds of {mutant.scenario}")
            else:
                say(f"[{mutant.number}] {name}: found by seed {seed} of {mutant.scenario}: {wrong[:90]}")
    say(f"{len(names) - len(missed)} of {len(names)} mutants found" + (f"; not: {', '.join(missed)}" if missed else ""))
    return not missed
