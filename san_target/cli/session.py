"""`san-target session`: who is logged in, and what a session's PDUs look like."""

import time
from collections.abc import Iterator
from typing import Any

import click
import rich_click

from san_target.cli.client import Api, segment, with_api
from san_target.cli.output import Column, print_json, print_table, printable, show, with_json
from san_target.cli.values import format_size

TRACE_POLL_S = 0.5

SESSION_COLUMNS = (
    Column("ID", lambda row: row["id"]),
    Column("INITIATOR", lambda row: row["initiator"]),
    Column("ISID", lambda row: row["isid"]),
    Column("VOLUME", lambda row: row["volume"]),
    Column("MEMBER", lambda row: row["member"]),
    Column("ADDRESS", lambda row: row["address"]),
    Column("SINCE", lambda row: row["since"]),
    Column("IOPS", lambda row: f"{row['iops']:.0f}", number=True),
    Column("THROUGHPUT", lambda row: f"{format_size(round(row['bytes_per_second']))}/s", number=True),
    Column("OWNERS", lambda row: ",".join(f"{name}:{share:.0%}" for name, share in sorted(row["owners"].items()))),
)
PROBLEM_COLUMN = Column("PROBLEM", lambda row: row["problem"])


@click.group(cls=rich_click.RichGroup)
def session() -> None:
    """Sessions of initiators."""


@session.command("list", cls=rich_click.RichCommand)
@with_json
@with_api
def session_list(api: Api, as_json: bool) -> None:
    """List the sessions at all members."""
    sessions = api.get("/sessions")
    wrong = any(row["problem"] for row in sessions)
    columns = (*SESSION_COLUMNS, PROBLEM_COLUMN) if wrong else SESSION_COLUMNS
    show(sessions, as_json, lambda: print_table(columns, sessions, "no sessions"))


@session.command("move", cls=rich_click.RichCommand)
@click.argument("session_id", metavar="SESSION")
@click.option("--to", required=True, metavar="MEMBER", help="The member at which it is to go on.")
@with_json
@with_api
def session_move(api: Api, session_id: str, to: str, as_json: bool) -> None:
    """Move a session to another member; its initiator sees no error, only a short pause."""
    moved = api.ask("POST", f"/sessions/{segment(session_id)}/move", {"to": to})

    def tell() -> None:
        how = " (it did not go by itself, and was dropped)" if moved["dropped"] else ""
        click.echo(f"session {session_id} is now {moved['id']}, after {moved['seconds'] * 1000:.0f} ms{how}")

    show(moved, as_json, tell)


@session.command("drop", cls=rich_click.RichCommand)
@click.argument("session_id", metavar="SESSION")
@with_api
def session_drop(api: Api, session_id: str) -> None:
    """Close a session's connections, at whatever member; its initiator may log in again."""
    api.ask("DELETE", f"/sessions/{segment(session_id)}")
    click.echo(f"session {session_id} dropped")


@session.command("trace", cls=rich_click.RichCommand)
@click.argument("session_id", metavar="SESSION")
@click.option("--seconds", type=click.FloatRange(0.1, 3600), default=10.0, show_default=True, help="How long to watch.")
@with_json
@with_api
def session_trace(api: Api, session_id: str, seconds: float, as_json: bool) -> None:
    """Show the PDU headers of a session as they come and go; Ctrl-C ends it early."""
    path = f"/sessions/{segment(session_id)}/trace"
    api.ask("POST", path, {"seconds": seconds})
    collected: list[dict[str, Any]] = []
    try:
        for entry in follow(api, path, seconds):
            if as_json:
                collected.append(entry)
            else:
                arrow = "->" if entry["direction"] == "received" else "<-"
                click.echo(printable(f"{entry['time']} {arrow} {entry['pdu']}: {entry['text']}"))
    except KeyboardInterrupt:
        pass
    finally:
        api.ask("DELETE", path)
    if as_json:
        print_json(collected)


def follow(api: Api, path: str, seconds: float) -> Iterator[dict[str, Any]]:
    """The entries of a trace until it ends; says on stderr where some were lost."""
    after = 0
    ends_at = time.monotonic() + seconds
    while True:
        time_is_up = time.monotonic() >= ends_at
        trace = api.get(path, after=after)
        if trace["dropped"]:
            click.echo(f"({trace['dropped']} PDUs were too many to keep)", err=True)
        yield from trace["entries"]
        after = trace["next"]
        # A busy session would fill page after page for ever: after the end, what was kept by then is enough.
        if not trace["entries"]:
            if time_is_up or not trace["active"]:
                return
            time.sleep(min(TRACE_POLL_S, max(0.0, ends_at - time.monotonic())))
