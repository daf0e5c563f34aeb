"""`san-target portal`: portals, portal group tags, redirection policy."""

import click
import rich_click

from san_target.cli.client import Api, segment, with_api
from san_target.cli.output import Column, print_fields, print_table, show, with_json

POLICIES = ("round-robin", "least-loaded", "adaptive", "none")

PORTAL_COLUMNS = (
    Column("ADDRESS", lambda row: row["address"]),
    Column("ADVERTISED", lambda row: row["advertised"]),
    Column("MEMBER", lambda row: row["member"]),
    Column("TAG", lambda row: str(row["portal_group_tag"]), number=True),
    Column("POLICY", lambda row: row["policy"]),
    Column("SESSIONS", lambda row: str(row["sessions"]), number=True),
    Column("STATE", lambda row: row["state"]),
)


@click.group(cls=rich_click.RichGroup)
def portal() -> None:
    """Portals and the redirection of logins."""


@portal.command("list", cls=rich_click.RichCommand)
@with_json
@with_api
def portal_list(api: Api, as_json: bool) -> None:
    """List the portals."""
    portals = api.get("/portals")
    show(portals, as_json, lambda: print_table(PORTAL_COLUMNS, portals, "no portals"))


@portal.command("show", cls=rich_click.RichCommand)
@click.argument("address", metavar="HOST:PORT")
@with_json
@with_api
def portal_show(api: Api, address: str, as_json: bool) -> None:
    """Show one portal."""
    one = api.get(f"/portals/{segment(address)}")
    fields = [
        ("address", one["address"]),
        ("advertised", one["advertised"]),
        ("member", one["member"]),
        ("portal group tag", str(one["portal_group_tag"])),
        ("policy", one["policy"]),
        ("sessions", str(one["sessions"])),
        ("state", one["state"]),
    ]
    show(one, as_json, lambda: print_fields(fields))


@portal.command("set", cls=rich_click.RichCommand)
@click.option("--policy", type=click.Choice(POLICIES), required=True, help="How logins are spread over the members.")
@with_json
@with_api
def portal_set(api: Api, policy: str, as_json: bool) -> None:
    """Set the redirection policy of the portal group.

    none: a login is served where it asks. round-robin: members take turns. least-loaded: the member with the fewest
    sessions. adaptive: as least-loaded in this version.
    """
    portals = api.ask("PATCH", "/portals", {"policy": policy})
    show(portals, as_json, lambda: print_table(PORTAL_COLUMNS, portals, "no portals"))
