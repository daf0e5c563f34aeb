"""The planners in a group of many members: they settle, nothing goes back and forth, no herd, nothing gets worse."""

import pytest

from tests.simulation.scale import (
    PATTERNS,
    STEP_S,
    LeastConnections,
    Ours,
    OursWithData,
    RoundRobin,
    Run,
    Threshold,
    TwoChoices,
    make_trace,
    planning,
    simulate,
)

MEMBERS, CONNECTIONS, SECONDS = 12, 240, 200.0


def run(kind: type[RoundRobin | LeastConnections | TwoChoices | Threshold | Ours], pattern: str, seed: int = 1) -> Run:
    return simulate(kind(), MEMBERS, CONNECTIONS, SECONDS, pattern, seed)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_better_than_those_that_do_not_look_at_the_whole(pattern: str) -> None:
    ours, with_data = run(Ours, pattern), run(OursWithData, pattern)
    others = [run(kind, pattern) for kind in (RoundRobin, LeastConnections, TwoChoices, Threshold)]
    assert ours.mean > max(other.mean for other in others)
    assert with_data.efficiency[-1] > ours.efficiency[-1]
    assert ours.fell == with_data.fell == 0.0  # no decision was predicted to make the group worse


def test_newcomers_fill_without_a_herd_and_then_nothing_is_moved_any_more() -> None:
    """Most sessions are moved once; nobody goes round and round between members."""
    found = simulate(Ours(), 6, 60, 400.0, "newcomers", 1)
    assert found.moves[-1] <= 60
    last_move = max(
        (at_s for at_s, a, b in zip(found.at_s, found.moves, found.moves[1:], strict=False) if a != b), default=0.0
    )
    assert last_move < 300.0
    # One at a time in a small group.
    assert all(b - a <= 1 for a, b in zip(found.moves, found.moves[1:], strict=False))
    assert found.efficiency[-1] > 2 * found.efficiency[0]


def test_bursts_are_no_reason_to_move() -> None:
    """Everybody works for ten seconds and rests for ten: what is gained in one half is lost in the other."""
    found = run(Ours, "bursty")
    assert found.moves[-1] < CONNECTIONS / 10


def test_steady_load_settles() -> None:
    found = run(OursWithData, "steady")
    steps = [a + b for a, b in zip(found.moves, found.migrations, strict=True)]
    first, last = steps[len(steps) // 4], steps[-1] - steps[-len(steps) // 4]
    assert last < first
    rises = [b - a for a, b in zip(found.efficiency, found.efficiency[1:], strict=False)]
    assert min(rises) > -0.02  # (copies that end at the same moment are judged one by one)


def test_the_same_seed_gives_the_same_run() -> None:
    one, other = run(OursWithData, "shifting", 7), run(OursWithData, "shifting", 7)
    assert (one.efficiency, one.moves, one.migrations) == (other.efficiency, other.moves, other.migrations)
    assert run(OursWithData, "shifting", 8).efficiency != one.efficiency


def test_a_trace_is_skewed_and_every_volume_lies_somewhere() -> None:
    trace = make_trace(100, 2000, "steady", 1)
    rates = sorted((one.base_iops for one in trace.connections), reverse=True)
    assert sum(rates[:200]) > 0.3 * sum(rates)
    assert all(abs(sum(one.owners.values()) - 1.0) < 1e-9 for one in trace.connections)
    assert STEP_S >= 3


def test_the_time_of_planning_is_told_by_its_parts() -> None:
    assert all(seconds > 0 for seconds in planning(50, 1000, 1))


@pytest.mark.slow
def test_a_large_group_is_planned_at_once() -> None:
    found = simulate(Ours(), 300, 6000, 40.0, "newcomers", 1)
    assert found.moves[-1] > 300
    assert found.efficiency[-1] > found.efficiency[0]
