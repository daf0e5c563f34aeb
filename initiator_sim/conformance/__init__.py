"""Checks of a target against the rules that no public suite looks at: `initiator-sim conformance`.

A check is a row of a table (`CHECKS` of its module): a name, the section that it is about, one sentence, a coroutine.
The coroutine gets a `Bench`, from which it takes sessions whose PDUs it makes by hand, and raises `Failed` with what it
saw and what the section wants, or `NotApplicable`. `engine` runs them, each in bounded time.
"""

from typing import Final

from initiator_sim.conformance import (
    exchanges,
    group_wide,
    login_rules,
    moves,
    numbering,
    redirects,
    reinstatement,
    tasks,
    transfer,
)
from initiator_sim.conformance.check import Check

CHECKS: Final[tuple[Check, ...]] = (
    *login_rules.CHECKS,
    *redirects.CHECKS,
    *numbering.CHECKS,
    *transfer.CHECKS,
    *tasks.CHECKS,
    *exchanges.CHECKS,
    *reinstatement.CHECKS,
    *group_wide.CHECKS,
    *moves.CHECKS,
)
