"""One member, whatever happens to it; and a group without faults."""

import pytest

from tests.simulation.runs import ONES, check


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", ONES)
def test_one_member(name: str) -> None:
    check(name, range(1000, 1005))


def test_a_group_where_nothing_fails() -> None:
    check("group-calm", range(3))
