"""Simulations from the command line: `make simulate SEED=n`, `make simulate-long` and `make simulate-mutants`."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from dataclasses import replace
from functools import partial

from tests.simulation.campaign import find_mutants, run_many, shared_out
from tests.simulation.mutants import MUTANTS, mutated
from tests.simulation.report import shorten, tell
from tests.simulation.scenarios import SCENARIOS
from tests.simulation.world import Result, Scenario, simulate

MUTANT_SEEDS = 60


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulation",
        description="a group and its initiators under virtual time",
        epilog="scenarios: "
        + ", ".join(name for name in SCENARIOS if "/" not in name)
        + "; and step/POINT/DISTURBANCE",
    )
    parser.add_argument("--seed", type=int, help="run this seed and print what happens")
    parser.add_argument("--seeds", type=int, nargs=2, metavar=("FIRST", "COUNT"), help="many runs; print what fails")
    parser.add_argument("--mutants", action="store_true", help="look for the mutants, with seeds from --seeds")
    parser.add_argument("--scenario", action="append", help="may be repeated; default: group, or all with --seeds")
    parser.add_argument("--faults", help='only these of the faults that the seed brings: "0,3", or "" for none')
    parser.add_argument("--duration", type=float, help="seconds of load")
    parser.add_argument("--hosts", type=int, help="at most so many initiators")
    parser.add_argument("--depth", type=int, help="at most so many commands of one at a time")
    parser.add_argument("--mutant", choices=sorted(MUTANTS), help="with this rule dropped from the product")
    parser.add_argument("--quiet", action="store_true", help="do not print the trace")
    parser.add_argument("--shorten", action="store_true", help="if it fails, print the shortest run that does")
    parser.add_argument("--jobs", type=int, default=multiprocessing.cpu_count(), help="processes for --seeds")
    arguments = parser.parse_args()
    for name in arguments.scenario or ():
        if name not in SCENARIOS:
            parser.error(f"there is no scenario {name!r}")
    if arguments.seed is None and arguments.seeds is None and not arguments.mutants:
        parser.error("give --seed, --seeds or --mutants")
    return arguments


def _changed(arguments: argparse.Namespace, scenario: Scenario) -> Scenario:
    if arguments.duration is not None:
        scenario = replace(scenario, duration_s=arguments.duration)
    if arguments.hosts is not None:
        scenario = replace(scenario, hosts_max=arguments.hosts)
    if arguments.depth is not None:
        scenario = replace(scenario, depth_max=arguments.depth)
    return scenario


def _one(arguments: argparse.Namespace, scenario: Scenario) -> bool:
    numbers = None
    if arguments.faults is not None:
        numbers = [int(number) for number in arguments.faults.split(",") if number]
    with mutated(arguments.mutant):
        result = simulate(arguments.seed, scenario, numbers, show=not (arguments.quiet or arguments.shorten))
        found = shorten(result, scenario) if result.wrong and arguments.shorten else (result, scenario)
    lines = len(found[0].last) if arguments.shorten else 0
    print(tell(*found, lines) if result.wrong else _good(result))
    return not result.wrong


def _good(result: Result) -> str:
    return (
        f"seed {result.seed}, scenario {result.scenario}: all is well; {result.commands} commands, "
        f"{result.virtual_s:.1f} s of virtual time, {result.steps} steps, trace {result.digest}"
    )


def main() -> int:
    arguments = _arguments()
    say = partial(print, flush=True)
    first, count = arguments.seeds or (0, MUTANT_SEEDS)
    if arguments.mutants:
        names = [arguments.mutant] if arguments.mutant else list(MUTANTS)
        return 0 if find_mutants(names, first, count, arguments.jobs, say) else 1
    if arguments.seeds is not None:
        tasks = list(shared_out(first, count, arguments.scenario or ()))
        return 0 if run_many(tasks, arguments.jobs, say) else 1
    scenarios = [_changed(arguments, SCENARIOS[name]) for name in arguments.scenario or ["group"]]
    passed = [_one(arguments, scenario) for scenario in scenarios]
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
