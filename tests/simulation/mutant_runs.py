"""What the tests of mutants share."""

from __future__ import annotations

from tests.simulation.mutants import MUTANTS, TRIED, mutated
from tests.simulation.scenarios import SCENARIOS
from tests.simulation.world import simulate

FOUND = [name for name, mutant in MUTANTS.items() if mutant.seed is not None]
IN_ONE = [name for name in FOUND if SCENARIOS[MUTANTS[name].scenario].members == 1]
IN_GROUPS = [name for name in FOUND if name not in IN_ONE]


def check(name: str) -> None:
    """The mutant is found, and by that seed nothing is where the rule holds. (Any change of the product changes what a
    seed does; then the next ones are tried.)"""
    mutant = MUTANTS[name]
    first = mutant.seed or 0
    for seed in range(first, first + TRIED):
        with mutated(name):
            result = simulate(seed, SCENARIOS[mutant.scenario])
        if result.wrong:
            assert simulate(seed, SCENARIOS[mutant.scenario]).wrong == []
            return
    raise AssertionError(f"nothing was seen of {name} in {TRIED} seeds of {mutant.scenario}, from {first} on")
