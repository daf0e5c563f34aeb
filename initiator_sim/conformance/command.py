"""`initiator-sim conformance`: looks the target over, runs the checks, shows what comes of them."""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rich.console import Console
from rich.text import Text

from initiator_sim.chap import Credentials
from initiator_sim.client import Initiator
from initiator_sim.conformance import CHECKS
from initiator_sim.conformance.bench import Setting
from initiator_sim.conformance.check import Check, Result, Verdict
from initiator_sim.conformance.engine import report, run_checks
from initiator_sim.conformance.hooks import Hooks
from initiator_sim.conformance.wire import ANSWER_S
from initiator_sim.login import LoginError
from initiator_sim.parameters import Pair

_WORDS: Final = {
    Verdict.PASSED: ("passed", "green"),
    Verdict.FAILED: ("FAILED", "bold red"),
    Verdict.NOT_APPLICABLE: ("n/a", "dim"),
}
_NAME_WIDTH: Final = 32


@dataclass(frozen=True, slots=True)
class Order:
    """What the user asked for. names: only these checks; empty = all. digests: what every session offers."""

    portals: tuple[str, ...]
    iqn: str
    lun: int | None
    names: Collection[str]
    hooks: Hooks
    chap: Credentials | None = None
    mutual: Credentials | None = None
    digests: tuple[Pair, ...] = ()
    patience_s: float = ANSWER_S

    def checks(self) -> list[Check]:
        """Raises ValueError for a name that no check has."""
        known = {check.name for check in CHECKS}
        for name in self.names:
            if name not in known:
                raise ValueError(f"there is no check {name!r} (--list shows them)")
        return [check for check in CHECKS if not self.names or check.name in self.names]


async def look_over(initiator: Initiator, order: Order) -> Setting:
    """Log in at every portal and find the disk. Raises LoginError, OSError, TimeoutError, ScsiError, LookupError."""
    seen = []
    for portal in order.portals:
        try:
            async with initiator.connect(portal, order.iqn, lun=order.lun) as disk:
                seen.append((disk.lun, disk.block_bytes, disk.blocks))
        except LoginError as error:
            raise LoginError(f"{portal}: {error}", error.status) from None
    lun, block_bytes, blocks = seen[0]
    return Setting(
        order.portals,
        order.iqn,
        initiator.name,
        lun,
        block_bytes,
        blocks,
        order.chap,
        order.mutual,
        order.digests,
        order.hooks,
        order.patience_s,
    )


async def carry_out(initiator: Initiator, order: Order, console: Console | None) -> dict[str, Any]:
    """Run the checks; with a console each result is shown as it comes. Returns the document of --json."""
    checks = order.checks()
    began = time.monotonic()
    setting = await look_over(initiator, order)
    tell: Callable[[Result], None] | None = None
    if console is not None:
        tell = lambda result: show(result, console)  # noqa: E731
    found = report(setting, await run_checks(setting, checks, tell))
    if console is not None:
        counts = f"{found['passed']} passed, {found['failed']} failed, {found['not_applicable']} not applicable"
        console.print(f"\n{counts}, in {time.monotonic() - began:.1f} s", highlight=False)
    return found


def show(result: Result, console: Console) -> None:
    """One line for a check; below it, where it failed, what was seen and what is wanted."""
    check = result.check
    word, style = _WORDS[result.verdict]
    line = Text(f"{word:7}", style=style)
    line.append(f"{check.name:{_NAME_WIDTH}}", style="bold" if result.verdict is Verdict.FAILED else "")
    if result.verdict is Verdict.NOT_APPLICABLE:
        line.append(result.seen, style="dim")
    else:
        line.append(f"{check.title} ({check.section})", style="")
    console.print(line, soft_wrap=True)
    if result.verdict is Verdict.FAILED:
        console.print(f"{'':7}  seen:   {result.seen}", markup=False, highlight=False, soft_wrap=True)
        console.print(f"{'':7}  wanted: {result.wanted}", markup=False, highlight=False, soft_wrap=True)


def show_list(checks: Sequence[Check], console: Console) -> None:
    """All checks, with the sections that they are about."""
    for check in checks:
        console.print(
            f"{check.name:{_NAME_WIDTH}}{check.title} ({check.section})", markup=False, highlight=False, soft_wrap=True
        )
