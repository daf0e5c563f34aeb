"""What a run looks like on a terminal: a live view while it works, a report at its end."""

import time
from collections import Counter, deque
from typing import Any, Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from initiator_sim.fleet import Fleet
from initiator_sim.measure import Interval
from initiator_sim.nexus import Kind

_BARS: Final = " ▁▂▃▄▅▆▇█"
_HISTORY: Final = 60
_EVENTS_SHOWN: Final = 6
_BUSY_CPU_SHARE: Final = 0.9
_QUIET: Final = frozenset({Kind.UP})


def sparkline(values: "deque[float]") -> str:
    """The values as bars, scaled to the largest."""
    top = max(values, default=0.0)
    if top <= 0:
        return _BARS[0] * len(values)
    return "".join(_BARS[min(len(_BARS) - 1, round(value / top * (len(_BARS) - 1)))] for value in values)


def microseconds(value: float) -> str:
    """A latency as a person reads it."""
    if value < 1000:
        return f"{value:.0f} µs"
    return f"{value / 1000:.1f} ms" if value < 1_000_000 else f"{value / 1e6:.2f} s"


def rate(bytes_per_second: float) -> str:
    return f"{bytes_per_second / 1e6:,.1f} MB/s"


class LiveView:
    """Use as a context manager, and give `interval` to the run."""

    def __init__(self, fleet: Fleet, console: Console) -> None:
        self._fleet = fleet
        self._iops: deque[float] = deque(maxlen=_HISTORY)
        self._latency: deque[float] = deque(maxlen=_HISTORY)
        self._last: Interval | None = None
        self._started_s = time.monotonic()
        self._live = Live(self.render(), console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> "LiveView":
        self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def interval(self, interval: Interval) -> None:
        self._last = interval
        self._iops.append(interval.iops)
        self._latency.append(interval.p99_us)
        self._live.update(self.render(), refresh=True)

    def render(self) -> RenderableType:
        """What the terminal shows now."""
        fleet, last = self._fleet, self._last
        assignment = fleet.assignment
        if last is None:
            sessions = assignment.initiators * assignment.sessions
            return Text(f"logging in {sessions} session(s) to {assignment.iqn} ...")
        numbers = Table.grid(padding=(0, 2))
        numbers.add_column(min_width=8)
        numbers.add_column(min_width=38, no_wrap=True)
        bytes_per_second = (last.reads + last.writes) * assignment.plan.block_bytes / last.length_s
        numbers.add_row("IOPS", f"[bold]{last.iops:,.0f}[/]", Text(sparkline(self._iops), "green"))
        numbers.add_row("p99", f"[bold]{microseconds(last.p99_us)}[/]", Text(sparkline(self._latency), "yellow"))
        latency = f"p50 {microseconds(last.p50_us)}   max {microseconds(last.max_us)}"
        numbers.add_row("latency", latency, f"{rate(bytes_per_second)}   {last.reads:,} reads, {last.writes:,} writes")
        tally = fleet.tally
        wrong = tally.errors + len(fleet.violations) + len(fleet.hung)
        colour = "red" if wrong else "green"
        numbers.add_row(
            "so far",
            f"moves {fleet.moves}   retries {tally.retries}   sent again {tally.reissued}",
            f"[{colour}]errors {wrong}[/]",
        )
        title = f"{assignment.iqn}   {assignment.plan.workload} {assignment.plan.block_bytes} B"
        left = f"{last.at_s:.0f} of {assignment.seconds:.0f} s"
        return Panel(Group(numbers, Text(), self._members(), *self._recent()), title=title, subtitle=left)

    def _members(self) -> Table:
        table = Table(box=None, padding=(0, 2), header_style="dim")
        table.add_column("member")
        table.add_column("sessions", justify="right")
        members = self._fleet.members
        total = sum(members.values())
        for address, count in sorted(members.items()):
            table.add_row(address, str(count), Text("█" * max(1, round(30 * count / total)), "cyan"))
        return table

    def _recent(self) -> list[Text]:
        events = [event for event in self._fleet.events if event.kind not in _QUIET][-_EVENTS_SHOWN:]
        return [
            Text(
                f"{self._fleet.event_at_s(event):7.1f} s  {event.kind.value}: {event.address} {event.text}"
                + (f" (waited {event.pause_s * 1000:.0f} ms)" if event.pause_s else ""),
                "dim",
            )
            for event in events
        ]


def show_report(report: dict[str, Any], console: Console) -> None:
    """The result of a run, for people."""
    table = Table(box=None, padding=(0, 2), show_header=False)
    table.add_row(
        "I/O", f"{report['iops']:,.0f} IOPS, {rate(report['bytes_per_second'])} for {report['seconds']:.1f} s"
    )
    for name in ("read", "write", "other"):
        count, latency = report[f"{name}s"], report[f"{name}_latency_us"]
        if count:
            spread = "   ".join(f"{key} {microseconds(value)}" for key, value in latency.items())
            table.add_row(f"{name}s", f"{count:,}   {spread}")
    moves = f"{report['moves']} moves, {report['redirects']} redirects, {report['logins']} logins"
    table.add_row("sessions", f"{report['sessions']} of {report['initiators']} initiator(s), {moves}")
    if report["migrated_blocks"]:
        table.add_row("migrated", f"{report['migrated_blocks']:,} blocks have another owner")
    if report["longest_pause_s"]:
        table.add_row("longest pause", f"{report['longest_pause_s'] * 1000:.0f} ms without a session")
    for address, count in sorted(report["members"].items()):
        table.add_row("member", f"{address}: {count} session(s)")
    if report["retries"] or report["reissued"]:
        table.add_row("retried", f"{report['retries']} after a status, {report['reissued']} after a lost connection")
    if report["cpu_share"] > _BUSY_CPU_SHARE:
        table.add_row(
            "remark", f"this process was busy {report['cpu_share']:.0%} of the time: it may be the bottleneck"
        )
    if "verify" in report:
        _verify_rows(table, report["verify"])
    for text, count in report["remarks"].items():
        table.add_row("remark", f"{text}: {count} times")
    console.print(table)
    for title, key in (("error", "error_messages"), ("rule broken", "violations"), ("hang", "hung")):
        for message, count in Counter(report[key]).items():
            times = f" ({count} times)" if count > 1 else ""
            console.print(f"[red]{title}[/]: {escape(message)}{times}", highlight=False)
    console.print("[green]no error[/]" if report["ok"] else "[bold red]FAILED[/]")


def _verify_rows(table: Table, verify: dict[str, Any]) -> None:
    table.add_row("verified", f"{verify['reads_checked']:,} reads, {verify['operations']:,} operations in the history")
    if verify["torn_reads"]:
        table.add_row("remark", f"{verify['torn_reads']} reads found blocks torn by a write under way")
    for message in verify["violations"]:
        table.add_row("[red]wrong data[/]", message)
