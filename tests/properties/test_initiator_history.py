"""The near-linear checker of histories, held against the definition tried out on every order."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from initiator_sim.history import (
    BEFORE_WRITTEN,
    INITIAL,
    NOBODY_WROTE,
    NOT_DURABLE,
    TWO_SURVIVORS,
    Operation,
    Value,
    What,
    check,
    shrink,
)
from tests.properties.history_brute_force import can_have_happened

UNWRITTEN: Value = (9, 9)
INSTANTS = st.integers(0, 12)
LENGTHS = st.sampled_from([0, 1, 1, 2, 4])
"""Short operations next to each other, some at the very same instant, some across a crash."""


@st.composite
def histories(draw: st.DrawFn, crashes_max: int = 2) -> list[Operation]:
    """Up to ten operations on one block."""
    history = []

    def interval() -> tuple[int, int]:
        begin = draw(INSTANTS)
        return begin, begin + draw(LENGTHS)

    writes = draw(st.integers(0, 3))
    for number in range(writes):
        begin, end = interval()
        answered = draw(st.booleans()) or draw(st.booleans())
        until = end if answered or draw(st.booleans()) else inf
        fua = draw(st.booleans()) and draw(st.booleans())
        history.append(Operation(What.WRITE, (1, number + 1), begin, until, answered, fua))
    values = [INITIAL, *(one.value for one in history)]
    for _ in range(draw(st.integers(0, 4))):
        history.append(Operation(What.READ, draw(st.sampled_from(values)), *interval()))
    crashes = draw(st.integers(0, crashes_max))
    for _ in range(draw(st.integers(0, 2)) if crashes else 0):
        history.append(Operation(What.FLUSH, INITIAL, *interval()))
    for _ in range(crashes):
        instant = draw(INSTANTS)
        history.append(Operation(What.CRASH, INITIAL, instant, instant))
    return history


def interrupted_read(history: list[Operation]) -> bool:
    """Does a crash interrupt a read? Of such a read the quick checker does not use all that it says."""
    crashes = [one.begin for one in history if one.what is What.CRASH]
    return any(one.what is What.READ and one.begin < crash < one.end for one in history for crash in crashes)


@settings(max_examples=500)
@given(histories(crashes_max=0))
def test_the_quick_checker_says_what_the_definition_says(history: list[Operation]) -> None:
    assert (check(history) is None) == can_have_happened(history)


@settings(max_examples=1500)
@given(histories())
def test_with_crashes_too(history: list[Operation]) -> None:
    violation = check(history)
    possible = can_have_happened(history)
    if possible or not interrupted_read(history):
        assert (violation is None) == possible


@settings(max_examples=600)
@given(histories())
def test_what_a_violation_shows_is_a_violation_by_itself(history: list[Operation]) -> None:
    violation = check(history)
    if violation is not None:
        shown = list(violation.operations)
        assert not can_have_happened(shown)
        assert set(shown) <= set(history)
        assert len(shrink(shown)) == len(shown)


def write(number: int, begin: float, end: float, answered: bool = True, fua: bool = False) -> Operation:
    return Operation(What.WRITE, (1, number), begin, end, answered, fua)


def read(number: int, begin: float, end: float) -> Operation:
    return Operation(What.READ, (1, number) if number else INITIAL, begin, end)


def flush(begin: float, end: float) -> Operation:
    return Operation(What.FLUSH, INITIAL, begin, end)


def crash(at: float) -> Operation:
    return Operation(What.CRASH, INITIAL, at, at)


def test_a_lost_write_is_found() -> None:
    violation = check([write(1, 0, 1), read(0, 2, 3)])
    assert violation is not None
    assert len(violation.operations) == 2


def test_a_stale_read_is_found_among_much_else() -> None:
    history = [write(number, 10 * number, 10 * number + 1) for number in range(1, 200)]
    history += [read(number, 10 * number + 2, 10 * number + 3) for number in range(1, 200)]
    assert check(history) is None
    history.append(read(50, 3000, 3001))
    violation = check(history)
    assert violation is not None
    assert len(violation.operations) == 3
    assert {(1, 50)} < {operation.value for operation in violation.operations}


def test_a_write_without_an_answer_may_have_happened_late_or_never() -> None:
    assert check([write(1, 0, inf), read(0, 2, 3), read(0, 4, 5)]) is None
    assert check([write(1, 0, inf), read(0, 2, 3), read(1, 4, 5)]) is None
    assert check([write(1, 0, inf), read(1, 2, 3), read(0, 4, 5)]) is not None


def test_a_write_without_an_answer_may_have_a_limit() -> None:
    """What was sent again, and then answered, must not happen once more: a ghost write."""
    first, again, other = write(1, 0, 10, answered=False), write(2, 4, 5), write(3, 6, 7)
    assert check([first, again, other, read(1, 8, 9)]) is None
    limited = first._replace(end=5)
    assert check([limited, again, other, read(3, 8, 9)]) is None
    assert check([limited, again, other, read(1, 8, 9)]) is not None


def test_a_value_from_nowhere() -> None:
    violation = check([write(1, 0, 1), Operation(What.READ, UNWRITTEN, 2, 3)])
    assert violation is not None
    assert (violation.reason, len(violation.operations)) == (NOBODY_WROTE, 1)
    violation = check([read(1, 0, 1), write(1, 2, 3)])
    assert violation is not None
    assert violation.reason == BEFORE_WRITTEN


def test_writes_need_values_of_their_own() -> None:
    with pytest.raises(ValueError, match="two writes"):
        check([write(1, 0, 1), write(1, 2, 3)])


def test_a_crash_takes_what_was_not_flushed_and_nothing_else() -> None:
    before = [write(1, 0, 1), flush(2, 3), write(2, 4, 5), write(3, 6, 7), crash(8)]
    for survivor in (1, 2, 3):
        assert check([*before, read(survivor, 9, 10), read(survivor, 11, 12)]) is None
    violation = check([*before, read(0, 9, 10)])
    assert violation is not None
    assert violation.reason == NOT_DURABLE
    assert list(violation.operations) == [before[0], before[1], before[4], read(0, 9, 10)]


def test_a_flush_promises_nothing_about_what_was_under_way_when_it_began() -> None:
    assert check([write(1, 0, 3), flush(2, 4), crash(5), read(0, 6, 7)]) is None
    assert check([write(1, 0, 1), flush(2, 6), crash(5), read(0, 7, 8)]) is None


def test_what_a_read_has_found_may_still_be_lost_but_not_come_back() -> None:
    history = [write(1, 0, 1), read(1, 2, 3), crash(4), read(0, 5, 6)]
    assert check(history) is None
    violation = check([*history, read(1, 7, 8)])
    assert violation is not None
    assert violation.reason == TWO_SURVIVORS


def test_what_survived_a_crash_survives_the_next_one() -> None:
    history = [write(1, 0, 1), crash(2), read(1, 3, 4), crash(5)]
    assert check([*history, read(1, 6, 7)]) is None
    assert check([*history, read(0, 6, 7)]) is not None


def test_a_write_with_fua_is_durable_when_answered() -> None:
    assert check([write(1, 0, 1, fua=True), crash(2), read(0, 3, 4)]) is not None
    assert check([write(1, 0, 1, fua=True), write(2, 2, 3), crash(4), read(2, 5, 6)]) is None
    assert check([write(1, 0, 3, fua=True), crash(2), read(0, 4, 5)]) is None
    assert check([write(1, 0, inf, fua=True), crash(2), read(0, 4, 5)]) is None


def test_an_unanswered_write_may_happen_after_the_crash_within_its_limit() -> None:
    history = [crash(2), read(0, 3, 4), read(1, 5, 6)]
    assert check([write(1, 0, inf), *history]) is None
    assert check([write(1, 0, 5, answered=False), *history]) is None
    assert check([write(1, 0, 2, answered=False), *history]) is not None


def test_a_long_history_with_many_crashes_shows_only_what_matters() -> None:
    history = []
    for number in range(1, 400):
        at = 10.0 * number
        history += [write(number, at, at + 1), read(number, at + 2, at + 3)]
        history += [flush(at + 4, at + 5), crash(at + 6)] if number % 5 == 0 else []
    assert check(history) is None
    violation = check([*history, read(52, 5000, 5001)])
    assert violation is not None
    assert violation.reason == NOT_DURABLE
    assert [one.what for one in violation.operations] == [What.WRITE, What.WRITE, What.FLUSH, What.CRASH, What.READ]
