"""The near-linear checker of histories, held against the definition tried out on every order."""

from __future__ import annotations

from math import inf

from hypothesis import given, settings
from hypothesis import strategies as st

from initiator_sim.history import INITIAL, Operation, Value, What, check, check_brute_force, shrink

TIMES = st.lists(st.integers(0, 40), min_size=2, max_size=2, unique=True).map(sorted)


@st.composite
def histories(draw: st.DrawFn) -> list[Operation]:
    """Up to six operations on one block; every point in time is used once, as by a clock that is fine enough."""
    writes = draw(st.integers(0, 3))
    reads = draw(st.integers(0, 3))
    points = iter(draw(st.permutations(range(2 * (writes + reads)))))
    values: list[Value] = [INITIAL, *((1, number + 1) for number in range(writes))]
    history = []
    for value in values[1:]:
        begin, end = sorted((next(points), next(points)))
        history.append(Operation(What.WRITE, value, begin, draw(st.sampled_from([float(end), inf]))))
    for _ in range(reads):
        begin, end = sorted((next(points), next(points)))
        history.append(Operation(What.READ, draw(st.sampled_from(values)), begin, end))
    return history


@settings(max_examples=600)
@given(histories())
def test_the_quick_checker_says_what_the_definition_says(history: list[Operation]) -> None:
    assert (check(history) is None) == check_brute_force(history)


@settings(max_examples=600)
@given(histories())
def test_what_a_violation_shows_is_a_violation_by_itself(history: list[Operation]) -> None:
    violation = check(history)
    if violation is not None and "nobody wrote" not in violation.reason:
        shown = list(violation.operations)
        assert not check_brute_force(shown)
        assert set(shown) <= set(history)
        assert shrink(shown) == shown or len(shrink(shown)) == len(shown)


def write(number: int, begin: float, end: float) -> Operation:
    return Operation(What.WRITE, (1, number), begin, end)


def read(number: int, begin: float, end: float) -> Operation:
    return Operation(What.READ, (1, number) if number else INITIAL, begin, end)


def test_a_lost_write_is_found() -> None:
    violation = check([write(1, 0, 1), read(0, 2, 3)])
    assert violation is not None
    assert len(violation.operations) == 2


def test_a_stale_read_is_found_among_much_else() -> None:
    history = [write(number, 10 * number, 10 * number + 1) for number in range(1, 200)]
    history += [read(number, 10 * number + 2, 10 * number + 3) for number in range(1, 200)]
    assert check(history) is None
    history.append(read(50, 1000, 1001))
    violation = check(history)
    assert violation is not None
    assert len(violation.operations) <= 4
    assert any(operation.value == (1, 50) for operation in violation.operations)


def test_a_write_without_an_answer_may_have_happened_late_or_never() -> None:
    assert check([write(1, 0, inf), read(0, 2, 3), read(0, 4, 5)]) is None
    assert check([write(1, 0, inf), read(0, 2, 3), read(1, 4, 5)]) is None
    assert check([write(1, 0, inf), read(1, 2, 3), read(0, 4, 5)]) is not None
