"""`san-target group` and `san-target member`: the group and its members at a glance."""

import time
from typing import Any

import click
import rich_click

from san_target.cli.client import Api, segment, with_api
from san_target.cli.output import Column, print_fields, print_table, printable, show, with_json
from san_target.cli.values import format_size

REMOVAL_SECONDS_MAX = 600.0
DRAIN_POLL_S = 0.5
STAYING_LOOKS = 20
"""So often only sessions that cannot be moved may be left before a drain is given up."""


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


@member.command("drain", cls=rich_click.RichCommand)
@click.argument("name")
@click.option("--wait", is_flag=True, help="Until nothing is left at it.")
@with_json
@with_api
def member_drain(api: Api, name: str, wait: bool, as_json: bool) -> None:
    """Let a member give all its sessions and blocks to others, while they are used.

    It goes on serving until then, and can be activated again at any time.
    """
    drain = api.ask("POST", f"/members/{segment(name)}/drain")
    staying = 0
    while wait and not drain["done"] and staying < STAYING_LOOKS:
        time.sleep(DRAIN_POLL_S)
        drain = api.get(f"/members/{segment(name)}/drain")
        if drain["state"] != "draining":
            raise click.ClickException(f"member {name} is {drain['state']}: it is not drained any more")
        only_staying = not drain["left"] and all(one["reason"] for one in drain["sessions"])
        staying = staying + 1 if only_staying else 0
    show(drain, as_json, lambda: _print_drain(drain))
    if wait and not drain["done"]:
        raise click.ClickException(
            f"member {name} holds no blocks any more, but {len(drain['sessions'])} of its sessions cannot be moved"
        )


def _print_drain(drain: dict[str, Any]) -> None:
    if drain["done"]:
        click.echo(f"member {drain['name']} is drained: nothing is left at it")
        return
    click.echo(f"member {drain['name']} is {drain['state']}")
    for share in drain["left"]:
        click.echo(f"left of volume {share['volume']}: {format_size(share['size_bytes'])}")
    for one in drain["sessions"]:
        reason = f": {one['reason']}" if one["reason"] else ""
        click.echo(printable(f"session {one['id']} of {one['initiator']} on volume {one['volume']}{reason}"))


@member.command("activate", cls=rich_click.RichCommand)
@click.argument("name")
@with_json
@with_api
def member_activate(api: Api, name: str, as_json: bool) -> None:
    """End a drain: the member takes sessions and blocks again. What has left it stays where it is."""
    one = api.ask("POST", f"/members/{segment(name)}/activate")
    show(one, as_json, lambda: click.echo(f"member {name} is {one['state']}"))


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
