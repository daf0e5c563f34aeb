"""A crash after each step of a migration: of its source, its destination, and the member that was asked for it."""

import pytest

from san_target.group.migration import FIRST, TABLE, Phase
from tests.simulation.runs import check
from tests.simulation.steps import PROVOKE, STEPS, Point, name_of, points, rows, way_to

POINTS = points()


def test_every_step_of_the_table_is_there() -> None:
    instructions = len(FIRST.instructions) + sum(
        len(step.instructions) for events in TABLE.values() for step in events.values()
    )
    assert len(POINTS) == len(set(map(str, POINTS))) == instructions
    assert set(PROVOKE) == set(rows())


def test_every_phase_is_reached() -> None:
    for phase in Phase:
        way = way_to(phase)
        reached = FIRST.phase
        for before, event in way:
            assert before is reached
            reached = TABLE[before][event].phase
        assert reached is phase


def test_every_point_has_every_disturbance() -> None:
    assert len(STEPS) == len(POINTS) * 9


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("point", POINTS, ids=str)
def test_a_crash(point: Point) -> None:
    for victim in ("source", "destination", "asked"):
        name = name_of(point, f"kill {victim}")
        check(name, range(POINTS.index(point), POINTS.index(point) + 1))
