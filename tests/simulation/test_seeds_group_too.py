"""Groups of members that die, stand still, are cut off, move blocks and sessions: the other half."""

import pytest

from tests.simulation.runs import GROUPS, check


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", GROUPS[1::2])
def test_a_group(name: str) -> None:
    check(name, range(3000, 3004))
