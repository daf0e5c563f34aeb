"""Rules between members and when blocks move, dropped one by one: the simulation notices each."""

import pytest

from tests.simulation.mutant_runs import IN_GROUPS, check


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", IN_GROUPS)
def test_it_is_found(name: str) -> None:
    check(name)
