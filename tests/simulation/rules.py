"""The table of docs/testing.md: which numbered rule of the architecture is found by which mutant, or shown elsewhere.

python -m tests.simulation.rules        prints it
"""

from __future__ import annotations

from typing import Final

from tests.simulation.mutants import MUTANTS, Mutant

NUMBERS: Final = range(1, 42)

COPIES: Final = "there are no copies yet"
MISSED: Final = "tried, but no seed found it"

ELSEWHERE: Final[dict[int, tuple[str, str]]] = {
    3: (MISSED, "unit/server/test_migration_holes.py"),
    9: ("costs patience, no data", "unit/volume/test_forward.py"),
    10: ("costs patience, no data", "unit/server/test_migration_holes.py"),
    11: ("the simulated initiators send their data", "hostile"),
    12: ("the simulated disk does not fail single writes", "unit/volume/test_mirror.py"),
    14: ("volumes are not resized in the simulation", "unit/server/test_migration_holes.py"),
    15: ("SANITIZE is not sent in the simulation", "unit/server/test_migration_holes.py"),
    16: (MISSED, "unit/volume/test_forward.py"),
    17: (MISSED, "unit/server/test_group_state.py"),
    18: ("needs a map older than the lease", "unit/server/test_migration_holes.py"),
    19: (COPIES, ""),
    20: (COPIES, ""),
    21: (COPIES, ""),
    22: (COPIES, ""),
    23: (MISSED, "unit/server/test_vigilance.py"),
    25: ("the simulated store loses nothing", "unit/metadata/test_sqlite.py"),
    27: ("the simulated store hands over whole revisions", "unit/metadata/test_store_conformance.py"),
    28: (MISSED, "unit/volume/test_forward.py"),
    29: (MISSED, "unit/volume/test_forward.py"),
    30: (MISSED, "unit/session/test_task_end_states.py"),
    34: ("RESERVE(6) is not sent in the simulation", "unit/server/test_session_moves.py"),
    35: ("costs patience, no data", "unit/peer/test_credits.py"),
    36: ("nobody in the simulation is hostile", "unit/peer/test_handshake.py"),
    37: ("costs patience, no data", "unit/group/test_portal_tickets.py"),
    38: ("the simulated initiators keep no tag", "unit/session/test_login.py"),
    39: ("costs moves, no data", "unit/server/test_balancing.py"),
    40: ("the simulated initiators are told their portals", "unit/server/test_directory.py"),
    41: ("the simulated initiators try again", "unit/session/test_login.py"),
}
"""Of a rule that no mutant of the simulation stands for: why, and the tests that are about it."""


def found(number: int) -> list[Mutant]:
    return [each for each in MUTANTS.values() if each.number == number and each.seed is not None]


def missed() -> list[Mutant]:
    return [each for each in MUTANTS.values() if each.seed is None]


def table() -> list[str]:
    """Rows of the table: of mutants that are found first, by number; then what is shown elsewhere."""
    rows = ["| rule | what is dropped | scenario | seeds needed |", "|---|---|---|---|"]
    for mutant in sorted(MUTANTS.values(), key=lambda each: each.number or 99):
        if mutant.seed is not None:
            number = f"[{mutant.number}]" if mutant.number else ""
            rows.append(f"| {number} | {mutant.name}: {mutant.rule} | `{mutant.scenario}` | {mutant.seed + 1} |")
    rows += ["", "| rule | why not by a mutant | tests about it |", "|---|---|---|"]
    for number in NUMBERS:
        if not found(number):
            why, test = ELSEWHERE[number]
            rows.append(f"| [{number}] | {why} | {f'`tests/{test}`' if test else ''} |")
    return rows


if __name__ == "__main__":
    print("\n".join(table()))
