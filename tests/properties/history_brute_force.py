"""The definition of a history that can have happened, tried out on every order of its operations.

It shares nothing with the near-linear checker but the operations themselves. For up to about ten of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from initiator_sim.history import INITIAL, Operation, Value, What


class State(NamedTuple):
    """The block after the operations that have been put in order: its value, and those that a crash may leave."""

    value: Value
    since_flush: frozenset[Value]


def can_have_happened(history: Sequence[Operation]) -> bool:
    """Is there an order of all operations, some with unknown outcome left out, that respects real time, in which each
    read finds the last write, and each crash leaves a value that was there at the last flush or later?"""
    # A write with FUA that was answered is a write and, some time before the answer, a flush.
    flushes_of = {
        len(history) + number: index
        for number, index in enumerate(index for index, one in enumerate(history) if one.fua and one.is_certain)
    }
    own_flushes = [Operation(What.FLUSH, INITIAL, history[i].begin, history[i].end) for i in flushes_of.values()]
    operations = [*history, *own_flushes]

    @cache
    def possible(left: frozenset[int], state: State) -> bool:
        if not any(must_happen(operations[index]) for index in left):
            return True
        return any(
            possible(rest, after)
            for index in left
            if flushes_of.get(index) not in left
            for rest in without(operations, left, index)
            for after in states_after(operations[index], state)
        )

    return possible(frozenset(range(len(operations))), State(INITIAL, frozenset((INITIAL,))))


def must_happen(operation: Operation) -> bool:
    return operation.what is not What.WRITE or operation.is_certain


def without(operations: Sequence[Operation], left: frozenset[int], index: int) -> list[frozenset[int]]:
    """What is left when operations[index] comes next: nothing at all where something else must come before it.

    What might have happened before, but need not, then never happened.
    """
    earlier = {other for other in left if other != index and must_come_before(operations[other], operations[index])}
    if any(must_happen(operations[other]) for other in earlier):
        return []
    return [left - earlier - {index}]


def must_come_before(one: Operation, other: Operation) -> bool:
    """Real time. What ended at the very instant of a crash came before it, what begins at it comes after it."""
    if other.what is What.CRASH:
        return one.end <= other.begin if one.what is not What.CRASH else one.begin < other.begin
    if one.what is What.CRASH:
        return one.begin <= other.begin and not other.end <= one.begin
    return one.end < other.begin


def states_after(operation: Operation, state: State) -> list[State]:
    """No state for a read that found something else."""
    match operation.what:
        case What.WRITE:
            return [State(operation.value, state.since_flush | {operation.value})]
        case What.READ:
            return [state] if operation.value == state.value else []
        case What.FLUSH:
            return [State(state.value, frozenset((state.value,)))]
        case What.CRASH:
            return [State(value, frozenset((value,))) for value in state.since_flush]
