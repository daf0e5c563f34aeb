"""`san-target load` and `san-target balance ...`: what members have to do, and what is moved because of it."""

import time
from typing import Any

import click
import rich_click

from san_target.cli.client import Api, with_api
from san_target.cli.output import Column, print_fields, print_json, print_table, show, with_json
from san_target.cli.values import format_size

WATCH_S = 1.0


def _number(name: str, text: str = "{:.0f}", scale: float = 1.0) -> Any:
    """A cell of the report, "-" where there is none."""
    return lambda row: text.format(row["report"][name] * scale) if row["report"] else "-"


def _rate(name: str) -> Any:
    return lambda row: f"{format_size(round(row['report'][name]))}/s" if row["report"] else "-"


def _pool(row: Any) -> str:
    report = row["report"]
    if not report or not report["pool_capacity_bytes"]:
        return "-"
    return f"{1 - report['pool_free_bytes'] / report['pool_capacity_bytes']:.0%}"


def _cpu(row: Any) -> str:
    """Of what it may use: 100% is a member that does all it can."""
    report = row["report"]
    return f"{report['cpu_share'] / report['cpu_limit']:.0%}" if report else "-"


LOAD_COLUMNS = (
    Column("MEMBER", lambda row: row["member"]),
    Column("STATE", lambda row: row["state"]),
    Column("SESSIONS", _number("sessions"), number=True),
    Column("IOPS", _number("client_iops"), number=True),
    Column("THROUGHPUT", _rate("client_bytes_per_second"), number=True),
    Column("DEPTH", _number("depth"), number=True),
    Column("READ", _number("read_share", "{:.0%}"), number=True),
    Column("SEQUENTIAL", _number("sequential_share", "{:.0%}"), number=True),
    Column("OWNED", _number("owned_iops"), number=True),
    Column("FORWARDED", _number("forwarded_iops"), number=True),
    Column("SERVED", _number("served_iops"), number=True),
    Column("DISK", _number("storage_latency_s", "{:.1f} ms", 1000), number=True),
    Column("CPU", _cpu, number=True),
    Column("LATE", _number("loop_delay_s", "{:.1f} ms", 1000), number=True),
    Column("NETWORK", _rate("network_bytes_per_second"), number=True),
    Column("POOL", _pool, number=True),
)


@click.command(cls=rich_click.RichCommand)
@click.option("--watch", is_flag=True, help="Show it anew each second, until Ctrl-C.")
@with_json
@with_api
def load(api: Api, watch: bool, as_json: bool) -> None:
    """The load reports of all members: sessions here, I/O served as owner, CPU, network, pattern."""
    try:
        while True:
            loads = api.get("/load")
            if watch and not as_json:
                click.clear()
            show(loads, as_json, lambda: print_table(LOAD_COLUMNS, loads, "no members"))  # noqa: B023
            if not watch:
                return
            time.sleep(WATCH_S)
    except KeyboardInterrupt:
        pass


@click.group(cls=rich_click.RichGroup)
def balance() -> None:
    """What the group moves by itself: sessions, and data."""


@balance.command("status", cls=rich_click.RichCommand)
@with_json
@with_api
def balance_status(api: Api, as_json: bool) -> None:
    """Who decides, how efficient the group is predicted to be, and what was done last."""
    report = api.get("/balance")
    show(report, as_json, lambda: _print_status(report))


def _print_status(report: Any) -> None:
    print_fields(
        (
            ("state", f"{report['state']}{': ' if report['reason'] else ''}{report['reason']}"),
            ("decider", report["decider"]),
            ("efficiency", f"{report['efficiency']:.3f}"),
            ("reports", f"{report['reports']} of {report['members']} members"),
            ("planning", f"{report['planning_s'] * 1000:.1f} ms"),
        )
    )
    for action in report["actions"]:
        click.echo(f"{action['time']}  {_line(action['decision'])}  [{action['outcome']}]")


def _line(decision: Any) -> str:
    if decision["kind"] == "move":
        what = f"session {decision['session']} ({decision['volume']})"
    else:
        what = f"{decision['volume']} {decision['start_lba']}-{decision['end_lba']}"
    to = f" -> {decision['destination']}" if decision["destination"] else ""
    change = f"{decision['efficiency_before']:.4f} -> {decision['efficiency_after']:.4f}"
    return f"{decision['kind']} {what}: {decision['source']}{to}, efficiency {change}: {decision['reason']}"


@balance.command("explain", cls=rich_click.RichCommand)
@with_json
@with_api
def balance_explain(api: Api, as_json: bool) -> None:
    """Each decision of the last look, taken or rejected: predicted efficiency before and after, and the reason."""
    report = api.get("/balance")
    show(report["decisions"], as_json, lambda: _print_decisions(report))


def _print_decisions(report: Any) -> None:
    if not report["decisions"]:
        click.echo("nothing to decide: no session and no range with load")
    for decision in report["decisions"]:
        click.echo(f"{'yes' if decision['taken'] else 'no '}  {_line(decision)}")


@balance.command("run", cls=rich_click.RichCommand)
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@with_json
@with_api
def balance_run(api: Api, dry_run: bool, as_json: bool) -> None:
    """Decide now, and do it, whatever the policy of the portal group."""
    report = api.ask("POST", "/balance/run", {"dry_run": dry_run})
    if as_json:
        print_json(report)
        return
    _print_decisions(report)


@balance.command("pause", cls=rich_click.RichCommand)
@with_api
def balance_pause(api: Api) -> None:
    """Move nothing by itself any more, in the whole group."""
    api.ask("PATCH", "/balance", {"paused": True})
    click.echo("balancing is paused")


@balance.command("resume", cls=rich_click.RichCommand)
@with_api
def balance_resume(api: Api) -> None:
    """Go on after a pause."""
    api.ask("PATCH", "/balance", {"paused": False})
    click.echo("balancing goes on")
