"""A few seeds without faults: one member, and a group of three; and of one member the same seed gives the same run."""

import pytest

from tests.simulation.scenarios import SCENARIOS
from tests.simulation.world import simulate


@pytest.mark.parametrize("scenario", ["one-calm", "group-calm"])
@pytest.mark.parametrize("seed", range(3))
def test_all_is_well_where_nothing_fails(scenario: str, seed: int) -> None:
    result = simulate(seed, SCENARIOS[scenario])
    assert not result.wrong, result.wrong
    assert result.commands > 100


def test_the_same_seed_gives_the_same_run() -> None:
    first, second = (simulate(7, SCENARIOS["one-calm"]) for _ in range(2))
    assert (first.digest, first.commands) == (second.digest, second.commands)
