"""Faults in the product's own code, made on purpose: each drops one rule, and the simulation must notice.

A row names the rule, with the number it has in the architecture's list of interleavings where it has one, how the code
is changed while a run lasts, and the scenario that finds it. A mutant that is not found within its seeds means that the
simulation is blind for what the rule protects from.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final
from unittest import mock

from tests.simulation import mutations as m
from tests.simulation import mutations_moving as moving
from tests.simulation.mutations import Patch

TRIED: Final = 40
"""How many seeds from the one that is known to find it on, where the product has changed since."""


@dataclass(frozen=True)
class Mutant:
    """rule: what is dropped; number: of the rule, 0 = it has none. scenario, seed: that find it, and the seeds before
    it do not; None: no seed has found it yet. patches: (object, attribute, new value)."""

    name: str
    number: int
    rule: str
    scenario: str
    seed: int | None
    patches: Callable[[], list[Patch]]


@contextlib.contextmanager
def mutated(name: str | None) -> Iterator[None]:
    """The product without the rule of this mutant; None = as it is."""
    with contextlib.ExitStack() as patched:
        for where, attribute, value in MUTANTS[name].patches() if name is not None else ():
            patched.enter_context(mock.patch.object(where, attribute, value))
        yield


_TABLE: Final = (
    Mutant(
        "failed-fdatasync-forgotten",
        26,
        "a failed fdatasync fails the file until the operator acts",
        "one-flushes",
        5,
        m.flush_remembers_failures_as_success,
    ),
    Mutant(
        "flush-skipped",
        32,
        "a flush is left out only if no change ended since the start of the last good one",
        "one-flushes",
        4,
        m.flush_is_skipped_after_a_change,
    ),
    Mutant(
        "flush-joined-late",
        32,
        "a flush joins only an fdatasync that has not begun",
        "one-flushes",
        None,
        m.flush_joins_one_that_runs,
    ),
    Mutant(
        "no-range-locks",
        8,
        "what is not finished inline holds a range lock",
        "one",
        0,
        m.locks_are_ignored,
    ),
    Mutant(
        "reads-ignore-locks",
        8,
        "what is done at once does not run into a lock",
        "one",
        0,
        m.reads_at_once_ignore_locks,
    ),
    Mutant(
        "atomic-write-without-journal",
        0,
        "an atomic write goes through the journal",
        "one-atomic",
        8,
        m.atomic_writes_have_no_journal,
    ),
    Mutant(
        "journal-not-replayed",
        0,
        "a start completes interrupted atomic writes",
        "one-atomic",
        12,
        m.journal_is_not_replayed,
    ),
    Mutant(
        "no-flush-at-the-end",
        0,
        "a member that ends flushes every volume",
        "one-ends",
        1,
        m.nothing_is_flushed_at_the_end,
    ),
    Mutant(
        "fua-ignored",
        0,
        "a write with FUA is durable when it is answered",
        "one-forced",
        0,
        m.force_unit_access_is_ignored,
    ),
    Mutant(
        "flags-not-refreshed",
        0,
        "the hot path's flags follow each change of reservations",
        "one-fencing",
        None,
        m.flags_are_not_refreshed,
    ),
    Mutant(
        "barriers-do-not-wait",
        30,
        "task management, logout and reinstatement answer when every task has ended",
        "group-impatient",
        None,
        m.barriers_do_not_wait,
    ),
    Mutant(
        "flush-at-home",
        32,
        "a flush goes to every owner of the range",
        "group-flushes",
        10,
        m.flush_stays_at_home,
    ),
    Mutant(
        "logins-ask-nobody",
        28,
        "a login waits for what its initiator began at other members",
        "group-impatient",
        None,
        m.others_are_not_asked_at_a_login,
    ),
    Mutant(
        "results-forgotten",
        33,
        "an owner remembers the results of changes",
        "group-compares",
        5,
        m.results_are_forgotten,
    ),
    Mutant(
        "lost-changes-sent-anew",
        33,
        "a change that was lost is only asked of the same life of the same owner",
        "group-compares",
        5,
        m.a_new_life_is_asked_again,
    ),
    Mutant(
        "parts-done-again",
        13,
        "finished parts of a request are not repeated",
        "group-split",
        9,
        m.all_parts_are_done_again,
    ),
    Mutant(
        "preempt-asks-nobody",
        31,
        "a PREEMPT is answered when every member has taken it over",
        "group-fencing",
        0,
        m.members_are_not_asked_at_a_preempt,
    ),
    Mutant(
        "lease-ignored",
        17,
        "a volume with reservations is not served without a lease",
        "group-fenced-apart",
        None,
        m.lease_does_not_matter,
    ),
    Mutant(
        "standing-still-unnoticed",
        23,
        "a member that stood still ends its sessions unexecuted",
        "group-stalled",
        None,
        m.standing_still_is_not_noticed,
    ),
    Mutant(
        "stamps-do-not-age",
        28,
        "owners refuse requests with a stamp older than 2 s",
        "group-isolated",
        None,
        m.stamps_do_not_age,
    ),
    Mutant(
        "not-mirrored",
        7,
        "changes during a migration reach the destination too",
        "group-calm-moves",
        0,
        moving.nothing_is_mirrored,
    ),
    Mutant(
        "copy-without-lock",
        6,
        "blocks are copied under their range lock",
        "moved-wide",
        1,
        moving.copies_take_no_lock,
    ),
    Mutant(
        "spoiled-commit",
        4,
        "only a whole clean attempt is committed",
        "moved-full",
        3,
        moving.spoiled_attempts_are_committed,
    ),
    Mutant(
        "commit-without-lock",
        4,
        "the piece is taken exclusively before it is sealed",
        "group-calm-moves",
        None,
        moving.commits_take_no_lock,
    ),
    Mutant(
        "moves-back-what-came-back",
        0,
        "a migration leaves what came to its source by a younger decision",
        "group-back-and-forth",
        55,
        moving.migrations_take_what_came_back,
    ),
    Mutant(
        "mirror-optional-in-doubt",
        1,
        "while the outcome of a commit is unknown the mirror is mandatory",
        "moved-cut-in-doubt",
        18,
        moving.the_mirror_may_fail_in_doubt,
    ),
    Mutant(
        "commit-resolved-by-a-read",
        1,
        "an old value in the store never says that a commit failed",
        "moved-late-commit",
        2,
        moving.an_old_value_says_not_committed,
    ),
    Mutant(
        "prepare-punches-nothing",
        4,
        "PREPARE empties the piece at every attempt",
        "moved-stale",
        5,
        moving.prepare_empties_nothing,
    ),
    Mutant(
        "seal-not-durable",
        3,
        "a sealed piece is durable",
        "moved-power",
        None,
        moving.sealing_makes_nothing_durable,
    ),
    Mutant(
        "generations-ignored",
        16,
        "an owner serves equal generations only",
        "group-moves",
        None,
        moving.generations_do_not_matter,
    ),
    Mutant(
        "held-record-ignored",
        24,
        "a range is served only if the pool's record says that it is here",
        "moved-links-in-doubt",
        3,
        moving.the_record_of_what_is_held_does_not_matter,
    ),
    Mutant(
        "epochs-ignored",
        29,
        "an owner looks at the volume's epoch when it carries a request out",
        "group-fencing",
        None,
        m.epochs_do_not_matter,
    ),
    Mutant(
        "mirror-not-drained",
        7,
        "a copy waits for the changes that were begun before the mirror was on",
        "moved-wide",
        None,
        moving.earlier_changes_are_not_waited_for,
    ),
    Mutant(
        "sealed-piece-dropped",
        2,
        "a destination drops a sealed piece only if the store says that it is not its own",
        "moved-killed",
        0,
        moving.what_was_sealed_is_dropped_at_a_start,
    ),
    Mutant(
        "late-punch",
        5,
        "a piece is cleared away only while it is not back",
        "group-back-and-forth",
        18,
        moving.blocks_that_come_back_may_still_be_cleared,
    ),
)

MUTANTS: Final[dict[str, Mutant]] = {each.name: each for each in _TABLE}
