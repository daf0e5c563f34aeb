"""`san-target migrate`: volumes, or parts of them, from member to member while they are used."""

import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

import click
import rich_click

from san_target.cli.client import Api, segment, with_api
from san_target.cli.output import Column, print_fields, print_table, printable, show, with_json
from san_target.cli.values import SIZE, format_size

POLL_S = 0.3
OVER = ("done", "cancelled")

COLUMNS = (
    Column("ID", lambda row: row["id"]),
    Column("VOLUME", lambda row: row["volume"]),
    Column("RANGE", lambda row: range_text(row)),
    Column("FROM", lambda row: row["source"]),
    Column("TO", lambda row: row["destination"]),
    Column("STATE", lambda row: row["state"]),
    Column("PIECES", lambda row: f"{row['pieces_done']}/{row['pieces_total']}", number=True),
    Column("RATE", lambda row: f"{format_size(round(row['bytes_per_second']))}/s", number=True),
    Column("RESTARTS", lambda row: str(row["restarts"]), number=True),
    Column("MIRRORED", lambda row: str(row["mirrored_writes"]), number=True),
    Column("REASON", lambda row: row["reason"]),
)


def range_text(row: dict[str, Any]) -> str:
    return f"{row['range']['start_lba']}:{row['range']['end_lba']}"


@click.group(cls=rich_click.RichGroup)
def migrate() -> None:
    """Move data from member to member while it is used."""


@migrate.command("start", cls=rich_click.RichCommand)
@click.argument("volume")
@click.option("--to", "member", metavar="MEMBER", required=True, help="The member that gets the blocks.")
@click.option("--range", "blocks", metavar="START:END", help="Only these blocks, END not included [all].")
@click.option("--rate", type=SIZE, default=0, help="At most so many bytes per second (50M) [as fast as is good].")
@click.option("--wait", is_flag=True, help="Until it is done, with a progress bar.")
@with_json
@with_api
def migrate_start(api: Api, volume: str, member: str, blocks: str | None, rate: int, wait: bool, as_json: bool) -> None:
    """Move a volume, or a range of it, to a member.

    There is one migration for each member that owns some of it. Initiators notice nothing of it.
    """
    body: dict[str, Any] = {"volume": volume, "to": member, "limit_bytes_per_second": rate}
    if blocks is not None:
        body["start_lba"], body["end_lba"] = parse_range(blocks)
    started = api.ask("POST", "/migrations", body)
    if wait:
        started = wait_for(api, [row["id"] for row in started])

    def human() -> None:
        for row in started:
            click.echo(f"migration {row['id']}: {row['source']} -> {row['destination']}, {row['state']}")

    show(started, as_json, human)
    check(started if wait else ())


def parse_range(text: str) -> tuple[int, int]:
    start, colon, end = text.partition(":")
    if not (colon and start.isascii() and start.isdigit() and end.isascii() and end.isdigit()):
        raise click.BadParameter(f"{text!r} is no range: expected START:END in blocks", param_hint="--range")
    return int(start), int(end)


def check(rows: Iterable[dict[str, Any]]) -> None:
    """A wait that did not end well is an error."""
    for row in rows:
        if row["state"] != "done":
            reason = f": {row['reason']}" if row["reason"] else ""
            raise click.ClickException(f"migration {row['id']} is {row['state']}{reason}")


def wait_for(api: Api, ids: Sequence[str]) -> list[dict[str, Any]]:
    """Until all are over, or paused; progress on stderr if that is a terminal."""
    if sys.stderr.isatty():
        return _wait_with_bar(api, ids)
    rows = _rows(api, ids)
    while not _are_over(rows):
        time.sleep(POLL_S)
        rows = _rows(api, ids)
    return rows


def _rows(api: Api, ids: Sequence[str]) -> list[dict[str, Any]]:
    found = {row["id"]: row for row in api.get("/migrations")}
    missing = [one for one in ids if one not in found]
    if missing:
        raise click.ClickException(f"migration {missing[0]} is not known any more")
    return [found[one] for one in ids]


def _are_over(rows: Iterable[dict[str, Any]]) -> bool:
    return all(row["state"] in OVER or (row["state"] == "paused" and row["wanted"] == "pause") for row in rows)


def _wait_with_bar(api: Api, ids: Sequence[str]) -> list[dict[str, Any]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%  {task.fields[rate]}  {task.fields[eta]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        tasks = {one: progress.add_task(one, total=None, rate="", eta="") for one in ids}
        while True:
            rows = _rows(api, ids)
            for row in rows:
                eta = "" if row["eta_s"] is None else f"{row['eta_s']:.0f} s left"
                progress.update(
                    tasks[row["id"]],
                    description=printable(f"{row['volume']} {row['source']} -> {row['destination']} {row['state']}"),
                    total=row["pieces_total"] or None,
                    completed=row["pieces_done"],
                    rate=f"{format_size(round(row['bytes_per_second']))}/s",
                    eta=eta,
                )
            if _are_over(rows):
                return rows
            time.sleep(POLL_S)


@migrate.command("list", cls=rich_click.RichCommand)
@with_json
@with_api
def migrate_list(api: Api, as_json: bool) -> None:
    """List the migrations under way, and the last ones that ended."""
    rows = api.get("/migrations")
    show(rows, as_json, lambda: print_table(COLUMNS, rows, "no migrations"))


@migrate.command("show", cls=rich_click.RichCommand)
@click.argument("migration_id", metavar="ID")
@with_json
@with_api
def migrate_show(api: Api, migration_id: str, as_json: bool) -> None:
    """Show one migration."""
    row = api.get(f"/migrations/{segment(migration_id)}")
    show(row, as_json, lambda: print_one(row))


def print_one(row: dict[str, Any]) -> None:
    limit = row["limit_bytes_per_second"]
    print_fields(
        [
            ("id", row["id"]),
            ("volume", row["volume"]),
            ("range", range_text(row)),
            ("from", row["source"]),
            ("to", row["destination"]),
            ("state", row["state"] + (f" ({row['reason']})" if row["reason"] else "")),
            ("wanted", row["wanted"]),
            ("pieces", f"{row['pieces_done']} of {row['pieces_total']}"),
            ("rate", f"{format_size(round(row['bytes_per_second']))}/s"),
            ("limit", f"{format_size(limit)}/s" if limit else ""),
            ("time left", "" if row["eta_s"] is None else f"{row['eta_s']:.0f} s"),
            ("copied", format_size(row["bytes_copied"])),
            ("restarts", str(row["restarts"])),
            ("mirrored", f"{row['mirrored_writes']} writes"),
            ("begun", row["created"]),
            ("ended", row["finished"]),
        ]
    )


def _change(api: Api, migration_id: str, verb: str, as_json: bool) -> None:
    row = api.ask("POST", f"/migrations/{segment(migration_id)}/{verb}")
    show(row, as_json, lambda: click.echo(f"migration {row['id']}: {verb} is noted, it is {row['state']}"))


@migrate.command("pause", cls=rich_click.RichCommand)
@click.argument("migration_id", metavar="ID")
@with_json
@with_api
def migrate_pause(api: Api, migration_id: str, as_json: bool) -> None:
    """Let a migration rest; what was moved stays where it is."""
    _change(api, migration_id, "pause", as_json)


@migrate.command("resume", cls=rich_click.RichCommand)
@click.argument("migration_id", metavar="ID")
@with_json
@with_api
def migrate_resume(api: Api, migration_id: str, as_json: bool) -> None:
    """Go on with a paused migration."""
    _change(api, migration_id, "resume", as_json)


@migrate.command("cancel", cls=rich_click.RichCommand)
@click.argument("migration_id", metavar="ID")
@with_json
@with_api
def migrate_cancel(api: Api, migration_id: str, as_json: bool) -> None:
    """End a migration; what was moved stays where it is."""
    _change(api, migration_id, "cancel", as_json)
