"""Faults in the product's own code, made on purpose: each drops one rule, and the simulation must notice.

A row names the rule, with the number it has in the architecture's list of interleavings where it has one, how the code
is changed while a run lasts, and the scenario that is to find it. A mutant that is not found within its seeds means
that the simulation is blind for what the rule protects from.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final
from unittest import mock

from san_target.group.membership import Membership
from san_target.scsi.logical_unit import LogicalUnit
from san_target.scsi.reservations import Reservations
from san_target.session import task_management
from san_target.session.connection import Connection
from san_target.session.tasks import TaskBarrier
from san_target.storage.journal import Journal
from san_target.storage.memory import MemoryFile
from san_target.volume.local import LocalBlocks
from san_target.volume.range_locks import RangeLocks

SEEDS: Final = 60

Patch = tuple[object, str, Any]


@dataclass(frozen=True)
class Mutant:
    """rule: what is dropped; number: of the rule, 0 = it has none. patches: (object, attribute, new value)."""

    name: str
    rule: str
    number: int
    scenario: str
    patches: Callable[[], list[Patch]]
    seeds: int = SEEDS
    first_seed: int = 0


@contextlib.contextmanager
def mutated(name: str | None) -> Iterator[None]:
    """The product without the rule of this mutant; None = as it is."""
    with contextlib.ExitStack() as patched:
        for where, attribute, value in MUTANTS[name].patches() if name is not None else ():
            patched.enter_context(mock.patch.object(where, attribute, value))
        yield


# --- what is dropped --------------------------------------------------------------------------------------------------


def _flush_remembers_failures_as_success() -> list[Patch]:
    def fail(self: MemoryFile, reason: str) -> None:
        if not reason.startswith("fdatasync failed"):
            self._failure = self._failure or reason

    return [(MemoryFile, "fail", fail)]


def _flush_is_skipped_after_a_change() -> list[Patch]:
    """A change that ended while the fdatasync ran counts as flushed."""

    async def flush_after(self: LocalBlocks, running: Any) -> None:
        if running is not None:
            await asyncio.wait([running])
        self._flush_running, self._flush_next = self._flush_next, None
        try:
            await self._threads.start_slow(self._file.flush)
            self._changes_flushed = self._changes
        finally:
            self._flush_running = None

    return [(LocalBlocks, "_flush_after", flush_after)]


def _flush_joins_one_that_runs() -> list[Patch]:
    original = LocalBlocks.flush

    async def flush(self: LocalBlocks, lba: int, blocks: int) -> None:
        if self._flush_running is None:
            await original(self, lba, blocks)
            return
        await asyncio.wait([self._flush_running])
        if self._file.failed:
            await original(self, lba, blocks)

    return [(LocalBlocks, "flush", flush)]


def _locks_are_ignored() -> list[Patch]:
    return [
        (RangeLocks, "conflicts", lambda _self, _start, _blocks, _exclusive: False),
        (RangeLocks, "_earlier", lambda _self, _start, _end, _exclusive: []),
    ]


def _reads_at_once_ignore_locks() -> list[Patch]:
    original = RangeLocks.conflicts

    def conflicts(self: RangeLocks, start: int, blocks: int, exclusive: bool) -> bool:
        return exclusive and original(self, start, blocks, exclusive)

    return [(RangeLocks, "conflicts", conflicts)]


def _atomic_writes_have_no_journal() -> list[Patch]:
    def write_in(
        self: Journal,
        slot: int,
        volume_id: str,
        place: Any,
        offset_bytes: int,
        payload: bytes,
        on_journaled: Any = None,
    ) -> None:
        place.write(offset_bytes, payload, durable=True)

    return [(Journal, "_write_in", write_in)]


def _task_management_answers_early() -> list[Patch]:
    def carry_out(connection: Connection, answer: Any, respond: Callable[[int], None]) -> None:
        for owner, task in answer.tasks:
            task.command.aborted = True
            owner.abort([task])
        if answer.then is not None:
            answer.then()
        respond(answer.response)

    return [(task_management, "carry_out", carry_out)]


def _barriers_do_not_wait() -> list[Patch]:
    def initialize(self: TaskBarrier, tasks: Any, done: Callable[[], None]) -> None:
        self._left, self._done = -1, done
        list(tasks)
        done()

    return [(TaskBarrier, "__init__", initialize)]


MUTANTS: Final[dict[str, Mutant]] = {
    each.name: each
    for each in (
        Mutant(
            "failed-fdatasync-forgotten",
            "a failed fdatasync fails the file until the operator acts",
            26,
            "one-flushes",
            _flush_remembers_failures_as_success,
            200,
        ),
        Mutant(
            "flush-skipped",
            "a flush is left out only if no change ended since the start of the last good one",
            32,
            "one-flushes",
            _flush_is_skipped_after_a_change,
        ),
        Mutant(
            "flush-joined-late",
            "a flush joins only an fdatasync that has not begun",
            32,
            "one-flushes",
            _flush_joins_one_that_runs,
        ),
        Mutant("no-range-locks", "what is not finished inline holds a range lock", 8, "one", _locks_are_ignored),
        Mutant(
            "reads-ignore-locks",
            "what is done at once must not run into a lock",
            8,
            "one",
            _reads_at_once_ignore_locks,
        ),
        Mutant(
            "atomic-write-without-journal",
            "an atomic write is all or nothing over a power failure, by an intent journal",
            0,
            "one-atomic",
            _atomic_writes_have_no_journal,
        ),
        Mutant(
            "task-management-early",
            "a task management response waits for the end of the tasks concerned",
            30,
            "group-impatient",
            _task_management_answers_early,
        ),
        Mutant(
            "barriers-do-not-wait",
            "logout, reinstatement and task management are final only when every task has ended",
            30,
            "group-impatient",
            _barriers_do_not_wait,
        ),
    )
}

__all__ = ["MUTANTS", "LogicalUnit", "Membership", "Mutant", "Reservations", "mutated"]
