"""Lost connections after each step of a migration, and losses of power, one of the members' for each step."""

import pytest

from tests.simulation.runs import check
from tests.simulation.steps import VICTIMS, Point, name_of, points

POINTS = points()


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("point", POINTS, ids=str)
def test_links_are_lost(point: Point) -> None:
    check(name_of(point, "links"), range(1))


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("point", POINTS, ids=str)
def test_a_power_failure(point: Point) -> None:
    victim = VICTIMS[POINTS.index(point) % len(VICTIMS)]
    check(name_of(point, f"power {victim}"), range(1, 2))
