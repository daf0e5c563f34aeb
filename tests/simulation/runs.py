"""What the tests of seeds share."""

from __future__ import annotations

from tests.simulation.report import failure
from tests.simulation.scenarios import SCENARIOS, USUAL
from tests.simulation.world import simulate

GROUPS = tuple(name for name in USUAL if SCENARIOS[name].members > 1)
ONES = tuple(name for name in USUAL if SCENARIOS[name].members == 1)


def check(name: str, seeds: range) -> None:
    """All is well with each of the seeds; else tell the shortest run that fails."""
    scenario = SCENARIOS[name]
    for seed in seeds:
        result = simulate(seed, scenario)
        if result.wrong:
            raise AssertionError(failure(result, scenario))
        assert result.commands > 0
