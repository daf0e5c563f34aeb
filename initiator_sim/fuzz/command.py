"""`initiator-sim fuzz`: from its options to a report."""

import secrets
from collections.abc import Sequence
from typing import Any, Final

import click
from rich.console import Console

from initiator_sim.chap import Credentials
from initiator_sim.client import Initiator
from initiator_sim.fuzz.attacker import Who
from initiator_sim.fuzz.campaign import Assignment, Campaign
from initiator_sim.fuzz.kinds import KINDS
from initiator_sim.fuzz.report import CounterLine, show_case, show_report

_SEED_BITS: Final = 32


def assignment(
    initiator: Initiator,
    chap: Credentials | None,
    mutual: Credentials | None,
    *,
    portal: str,
    iqn: str | None,
    seconds: float,
    seed: int | None,
    numbers: Sequence[int],
    kinds: Sequence[str],
    destructive: bool,
    lun: int | None,
    connections: int,
    patience: float,
) -> Assignment:
    """What the options ask for. click.UsageError for what does not exist or does not go together."""
    known = [kind.name for kind in KINDS if iqn is not None or not kind.needs_target]
    for name in kinds:
        if name not in known:
            raise click.UsageError(f"no kind of case {name!r} here; there are: {', '.join(known)}")
    if destructive and iqn is None:
        raise click.UsageError("--destructive needs a target: initiator-sim fuzz PORTAL IQN --destructive")
    if numbers and seed is None:
        raise click.UsageError("--case needs the --seed that the case is of")
    return Assignment(
        initiator=initiator,
        who=Who(portal, chap, mutual, initiator.personality.chap_algorithms),
        iqn=iqn,
        seed=secrets.randbits(_SEED_BITS) if seed is None else seed,
        seconds=seconds,
        lun=lun,
        connections=connections,
        destructive=destructive,
        numbers=tuple(numbers),
        kinds=frozenset(kinds),
        patience_s=patience,
    )


async def run_campaign(chosen: Assignment, quiet: bool) -> dict[str, Any]:
    """The report, which is shown unless quiet; a line of counters meanwhile where there is a terminal."""
    campaign = Campaign(chosen)
    console, live = Console(), Console(stderr=True)
    if quiet:
        await campaign.run()
        return campaign.report()
    if chosen.numbers:
        await campaign.run(on_case=lambda case: show_case(case, console))
    elif live.is_terminal:
        with CounterLine(campaign, live) as line:
            await campaign.run(line.tick)
    else:
        await campaign.run()
    report = campaign.report()
    show_report(report, console)
    return report
