"""`san-target group` and `san-target member`: the group and its members at a glance."""

from typing import Any

import click
import rich_click

from san_target.cli.client import Api, segment, with_api
from san_target.cli.output import Column, print_fields, print_table, show, with_json
from san_target.cli.values import format_size

REMOVAL_SECONDS_MAX = 600.0


def pool_text(pool: dict[str, Any]) -> str:
    """A pool's use in words, with its trouble if it has any."""
    used = pool["capacity_bytes"] - pool["free_bytes"]
    text = f"{format_size(used)} of {format_size(pool['capacity_bytes'])} used"
    trouble = "" if pool["state"] == "ok" else f", {pool['state']}"
    reason = f": {pool['reason']}" if pool["reason"] else ""
    return text + trouble + reason


def state_text(row: dict[str, Any]) -> str:
    """A state with its reason."""
    return f"{row['state']}: {row['reason']}" if row["reason"] else str(row["state"])


MEMBER_COLUMNS = (
    Column("NAME", lambda row: row["name"]),
    Column("STATE", state_text),
    Column("PORTALS", lambda row: ",".join(row["portals"])),
    Column("ADMIN", lambda row: row["admin"]),
    Column("VOLUMES", lambda row: str(row["volumes"]), number=True),
    Column("SESSIONS", lambda row: str(row["sessions"]), number=True),
    Column("IOPS", lambda row: f"{row['iops']:.0f}", number=True),
    Column("POOL", lambda row: pool_text(row["pool"])),
)


def rate_text(row: dict[str, Any]) -> str:
    """Present load in words."""
    return f"{row['iops']:.0f} I/O per second, {format_size(round(row['bytes_per_second']))}/s"


@click.group(cls=rich_click.RichGroup)
def group() -> None:
    """The group as a whole."""


@group.command("status", cls=rich_click.RichCommand)
@with_json
@with_api
def group_status(api: Api, as_json: bool) -> None:
    """Show the group at a glance: state, store, space, members."""
    status = api.get("/group")

    def human() -> None:
        used = status["capacity_bytes"] - status["free_bytes"]
        reasons = f": {'; '.join(status['reasons'])}" if status["reasons"] else ""
        print_fields(
            [
                ("group", f"{status['name']} ({status['id']})"),
                ("state", status["state"] + reasons),
                ("store", status["store"]),
                ("portal group", f"tag {status['portal_group_tag']}, policy {status['policy']}"),
                ("volumes", f"{status['volumes']}, {format_size(status['size_bytes'])} in all"),
                ("sessions", str(status["sessions"])),
                ("pools", f"{format_size(used)} of {format_size(status['capacity_bytes'])} used"),
            ]
        )
        click.echo()
        print_table(MEMBER_COLUMNS, status["members"], "no members")

    show(status, as_json, human)


@click.group(cls=rich_click.RichGroup)
def member() -> None:
    """The members of the group."""


@member.command("list", cls=rich_click.RichCommand)
@with_json
@with_api
def member_list(api: Api, as_json: bool) -> None:
    """List the members."""
    members = api.get("/members")
    show(members, as_json, lambda: print_table(MEMBER_COLUMNS, members, "no members"))


@member.command("show", cls=rich_click.RichCommand)
@click.argument("name")
@with_json
@with_api
def member_show(api: Api, name: str, as_json: bool) -> None:
    """Show one member."""
    one = api.get(f"/members/{segment(name)}")

    def human() -> None:
        print_fields(
            [
                ("name", one["name"]),
                ("state", state_text(one)),
                ("version", one["version"]),
                ("process", str(one["pid"]) if one["pid"] else ""),
                ("since", one["since"]),
                ("incarnation", str(one["incarnation"])),
                ("portals", ", ".join(one["portals"])),
                ("admin", one["admin"]),
                ("peer", one["peer"]),
                ("volumes", str(one["volumes"])),
                ("sessions", str(one["sessions"])),
                ("load", rate_text(one)),
                ("pool", one["pool"]["directory"]),
                ("space", pool_text(one["pool"])),
            ]
        )

    show(one, as_json, human)


@member.command("remove", cls=rich_click.RichCommand)
@click.argument("name")
@click.option("--force", is_flag=True, help="One that never comes back: give up what only it holds.")
@with_json
@with_api
def member_remove(api: Api, name: str, force: bool, as_json: bool) -> None:
    """Take a member out of the group for good.

    It must have ended, or be drained. It can join again with an empty pool only.
    """
    parameters = {"force": "true"} if force else None
    removal = api.ask("DELETE", f"/members/{segment(name)}", parameters=parameters, timeout_s=REMOVAL_SECONDS_MAX)

    def human() -> None:
        click.echo(f"member {name} is removed")
        for share in removal["lost"]:
            click.echo(f"lost of volume {share['volume']}: {format_size(share['size_bytes'])}")

    show(removal, as_json, human)
