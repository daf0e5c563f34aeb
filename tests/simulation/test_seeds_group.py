"""Groups of members that die, stand still, are cut off, move blocks and sessions: half of the scenarios."""

import pytest

from tests.simulation.runs import GROUPS, check


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", GROUPS[::2])
def test_a_group(name: str) -> None:
    check(name, range(2000, 2004))
