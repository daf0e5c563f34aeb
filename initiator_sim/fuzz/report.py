"""What a campaign looks like: a line of counters while it works, a report at its end, a case before it is repeated."""

from typing import Any, Final

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from initiator_sim.fuzz.attacker import OUTCOMES
from initiator_sim.fuzz.campaign import Campaign
from initiator_sim.fuzz.script import Case, describe

_HEX_WIDTH: Final = 16
_CASES_SHOWN: Final = 4


class CounterLine:
    """Use as a context manager, and give `tick` to the campaign."""

    def __init__(self, campaign: Campaign, console: Console) -> None:
        self._campaign = campaign
        self._live = Live(self._render(), console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> "CounterLine":
        self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def tick(self) -> None:
        self._live.update(self._render(), refresh=True)

    def _render(self) -> Text:
        campaign = self._campaign
        tally, witness = campaign.tally, campaign.witness
        rate = tally.cases / campaign.elapsed_s if campaign.elapsed_s else 0.0
        line = Text(f"{campaign.elapsed_s:.0f} of {campaign.assignment.seconds:.0f} s  ", "dim")
        line.append(f"{tally.cases:,} cases", "bold").append(f" ({rate:.0f}/s)  ")
        line.append("  ".join(f"{name} {tally.outcomes[name]:,}" for name in OUTCOMES if tally.outcomes[name]))
        line.append(f"  witness {witness.operations:,} {witness.task}, longest {witness.longest_s * 1000:.0f} ms  ")
        failed = len(tally.failures)
        return line.append(f"failures {failed}", "bold red" if failed else "green")


def show_case(case: Case, console: Console) -> None:
    """A case before it runs, PDU by PDU."""
    script = case.script
    begin = script.begin
    digests = [name for name, on in (("header", begin.header_digest), ("data", begin.data_digest)) if on]
    said = [f"case {case.number} ({case.kind}): {begin.stage.value}"]
    said += [f"digests {' and '.join(digests)}"] if digests else []
    said += [f"CmdSN from {begin.cmd_sn}"] if begin.cmd_sn != 1 else []
    said += [f"{key}={value}" for key, value in begin.keys]
    said += [f"{script.connections} connections"] if script.connections > 1 else []
    console.print(Text(", ".join(said), "bold"))
    for step in describe(script):
        console.print(step, highlight=False, markup=False, soft_wrap=True)
    console.print(f"at the end: {script.ending.value}\n", highlight=False)


def show_report(report: dict[str, Any], console: Console) -> None:
    """The result of a campaign, for people."""
    used = [name for name in OUTCOMES if name in report["outcomes"]]
    table = Table(box=None, padding=(0, 0, 0, 1), header_style="dim")
    table.add_column("kind of case", no_wrap=True)
    for name in ("cases", *used):
        table.add_column(name, justify="right", no_wrap=True)
    for kind, seen in report["kinds"].items():
        table.add_row(kind, *(f"{seen.get(name, 0):,}" if seen.get(name) else "" for name in ("cases", *used)))
    totals = [f"{report['cases']:,}", *(f"{report['outcomes'][name]:,}" for name in used)]
    table.add_row("all", *totals, style="bold")
    console.print(table)
    witness = report["witness"]
    console.print(
        f"seed {report['seed']}, {report['seconds']:.1f} s; witness: {witness['operations']:,} {witness['task']},"
        f" the longest {witness['longest_ms']:.0f} ms; {report['fresh_logins']} fresh logins",
        highlight=False,
    )
    if report["late_closes"]:
        console.print(f"remark: {report['late_closes']} connections did not end within a second of ours", style="dim")
    for failure in report["failures"]:
        _show_failure(failure, console)
    console.print("[green]no failure[/]" if report["ok"] else "[bold red]FAILED[/]")


def _show_failure(failure: dict[str, Any], console: Console) -> None:
    console.print(f"\n[bold red]{failure['what']}[/]: {failure['message']}", highlight=False)
    if failure["cases"]:
        shown = ", ".join(map(str, failure["cases"][:_CASES_SHOWN]))
        more = len(failure["cases"]) - _CASES_SHOWN
        several = f" and {more} more that were under way or just over" if more > 0 else ""
        console.print(f"case {shown} ({failure['kind']}){several}; to repeat:", highlight=False)
        console.print(f"  {failure['repeat']}", highlight=False, markup=False, soft_wrap=True)
    for sent in failure["sent"]:
        data = bytes.fromhex(sent["hex"])
        begins = f", the first {len(data)}" if len(data) < sent["bytes"] else ""
        console.print(f"sent, {sent['bytes']} bytes{begins}:", highlight=False)
        for line in hex_dump(data):
            console.print(f"  {line}", highlight=False, markup=False)
        if sent["header"]:
            console.print(sent["header"], highlight=False, markup=False)


def hex_dump(data: bytes) -> list[str]:
    """Offset, bytes, characters; a line like the one before is a star, and several are one."""
    lines: list[str] = []
    before = b""
    for start in range(0, len(data), _HEX_WIDTH):
        part = data[start : start + _HEX_WIDTH]
        if part == before:
            lines += ["*"] if lines[-1] != "*" else []
            continue
        before = part
        text = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in part)
        lines.append(f"{start:04x}  {part.hex(' '):<{3 * _HEX_WIDTH}} {text}")
    return lines
