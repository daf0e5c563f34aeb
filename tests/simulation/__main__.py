"""Run simulations from the command line: `make simulate SEED=n` and `make simulate-long`."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from dataclasses import replace

from tests.simulation.mutants import MUTANTS, mutated
from tests.simulation.report import failure, tell
from tests.simulation.scenarios import SCENARIOS
from tests.simulation.world import Result, Scenario, simulate

_FAILURES_MAX = 5


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make simulate", description="a group and its initiators under virtual time")
    parser.add_argument("--seed", type=int, help="run this seed and print what happens")
    parser.add_argument(
        "--seeds", type=int, nargs=2, metavar=("FIRST", "COUNT"), help="run many, print those that fail"
    )
    parser.add_argument(
        "--scenario", choices=sorted(SCENARIOS), action="append", help="default: group; may be repeated"
    )
    parser.add_argument("--faults", help='only these of the faults that the seed brings: "0,3", or "" for none')
    parser.add_argument("--duration", type=float, help="seconds of load")
    parser.add_argument("--mutant", choices=sorted(MUTANTS), help="with this rule dropped from the product")
    parser.add_argument("--quiet", action="store_true", help="do not print the trace")
    parser.add_argument("--jobs", type=int, default=multiprocessing.cpu_count(), help="processes for --seeds")
    return parser.parse_args()


def _one(arguments: argparse.Namespace, scenario: Scenario) -> bool:
    numbers = None
    if arguments.faults is not None:
        numbers = [int(number) for number in arguments.faults.split(",") if number]
    with mutated(arguments.mutant):
        result = simulate(arguments.seed, scenario, numbers, show=not arguments.quiet)
    print(tell(result, scenario, 0) if result.wrong else _good(result))
    return not result.wrong


def _good(result: Result) -> str:
    return (
        f"seed {result.seed}, scenario {result.scenario}: all is well; {result.commands} commands, "
        f"{result.virtual_s:.1f} s of virtual time, {result.steps} steps, trace {result.digest}"
    )


def _quietly(task: tuple[int, Scenario]) -> tuple[int, int, float, str]:
    """(seed, commands, virtual seconds, what is wrong)."""
    seed, scenario = task
    result = simulate(seed, scenario)
    return seed, result.commands, result.virtual_s, failure(result, scenario) if result.wrong else ""


def _many(first: int, count: int, scenarios: list[Scenario], jobs: int) -> bool:
    began_s = time.monotonic()
    tasks = [(seed, scenario) for seed in range(first, first + count) for scenario in scenarios]
    failed = commands = 0
    virtual_s = 0.0
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        for _, done, seconds, wrong in pool.imap_unordered(_quietly, tasks, chunksize=4):
            commands += done
            virtual_s += seconds
            if wrong:
                failed += 1
                print(f"{wrong}\n", flush=True)
                if failed >= _FAILURES_MAX:
                    break
    seconds = time.monotonic() - began_s
    print(
        f"{len(tasks)} runs, {failed} failed; {commands} commands in {virtual_s:.0f} s of virtual time, "
        f"{seconds:.0f} s of real time"
    )
    return failed == 0


def main() -> int:
    arguments = _arguments()
    scenarios = [SCENARIOS[name] for name in arguments.scenario or ["group"]]
    if arguments.duration is not None:
        scenarios = [replace(each, duration_s=arguments.duration) for each in scenarios]
    if arguments.seeds is not None:
        return 0 if _many(*arguments.seeds, scenarios, arguments.jobs) else 1
    if arguments.seed is None:
        print("give --seed or --seeds", file=sys.stderr)
        return 2
    passed = [_one(arguments, scenario) for scenario in scenarios]
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
