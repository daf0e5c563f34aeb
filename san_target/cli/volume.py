"""`san-target volume`: create, look at, change and delete volumes."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click
import rich_click

from san_target.cli.client import Api, segment, with_api
from san_target.cli.group import state_text
from san_target.cli.output import Column, print_fields, print_table, show, with_json
from san_target.cli.session import SESSION_COLUMNS
from san_target.cli.values import CHAP_USER, SIZE, format_size

R = TypeVar("R")

VOLUME_COLUMNS = (
    Column("NAME", lambda row: row["name"]),
    Column("STATE", state_text),
    Column("SIZE", lambda row: format_size(row["size_bytes"]), number=True),
    Column("ALLOCATED", lambda row: format_size(row["allocated_bytes"]), number=True),
    Column("SESSIONS", lambda row: str(len(row["sessions"])), number=True),
    Column("MEMBERS", lambda row: ",".join(row["members"])),
    Column("IQN", lambda row: row["iqn"]),
)
MAP_COLUMNS = (
    Column("START LBA", lambda row: str(row["start_lba"]), number=True),
    Column("END LBA", lambda row: str(row["end_lba"]), number=True),
    Column("OWNER", lambda row: row["owner"] or "(lost)"),
    Column("COPIES", lambda row: ",".join(row["copies"]) or "-"),
    Column("JOINING", lambda row: row["joining"] or "-"),
    Column("GENERATION", lambda row: str(row["generation"]), number=True),
)
FLAGS = {
    "write_through": "Acknowledge a write only when it is on stable storage.",
    "read_only": "Initiators can read only.",
    "removable": "Show it as removable media.",
    "multipath": "Tell initiators every member's portal; they must run multipathing.",
}
# Options of `create` and of `set` that mean the same in both.
ACCESS_OPTIONS = (
    click.option("--allow", multiple=True, metavar="IQN", help="Initiator name that may log in (repeatable)."),
    click.option("--chap", multiple=True, type=CHAP_USER, help="CHAP user of initiators (repeatable)."),
    click.option("--mutual-chap", type=CHAP_USER, help="CHAP user by which the target proves itself."),
)


def with_options(options: Sequence[Callable[..., Any]]) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Decorates with several options, first in the help first."""

    def decorate(command: Callable[..., R]) -> Callable[..., R]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def print_volume(volume: dict[str, Any]) -> None:
    """One volume in full, its sessions last."""
    flags = [name.replace("_", "-") for name in FLAGS if volume[name]]
    print_fields(
        [
            ("name", volume["name"]),
            ("state", state_text(volume)),
            ("iqn", volume["iqn"]),
            ("id", volume["id"]),
            ("wwid", volume["wwid"]),
            ("size", f"{format_size(volume['size_bytes'])} ({volume['size_bytes']} bytes)"),
            ("block size", str(volume["block_size"])),
            ("allocated", format_size(volume["allocated_bytes"])),
            ("members", ", ".join(volume["members"])),
            ("copies", str(volume["copies"])),
            ("allowed", ", ".join(volume["allow"]) or "every initiator"),
            ("CHAP users", ", ".join(volume["chap"]) or "none"),
            ("mutual CHAP", volume["mutual_chap"] or ""),
            ("flags", ", ".join(flags)),
            ("sessions", str(len(volume["sessions"]))),
        ]
    )
    if volume["sessions"]:
        click.echo()
        print_table(SESSION_COLUMNS, volume["sessions"], "")


@click.group(cls=rich_click.RichGroup)
def volume() -> None:
    """Volumes: each is one iSCSI target with LUN 0."""


@volume.command("create", cls=rich_click.RichCommand)
@click.argument("name")
@with_options(
    [
        click.option("--size", type=SIZE, required=True, help="Size: 10G, 512M, 1T (binary), or bytes."),
        click.option(
            "--block-size", type=click.Choice(["512", "4096"]), default="512", show_default=True, help="Logical block."
        ),
        click.option("--copies", type=click.Choice(["1", "2"]), default="1", show_default=True, help="Copies kept."),
        click.option("--members", metavar="NAME,NAME", help="Members to spread it over [by free space]."),
        *ACCESS_OPTIONS,
        *(click.option(f"--{name.replace('_', '-')}", is_flag=True, help=text) for name, text in FLAGS.items()),
    ]
)
@with_json
@with_api
def volume_create(
    api: Api,
    name: str,
    size: int,
    block_size: str,
    copies: str,
    members: str | None,
    mutual_chap: dict[str, str] | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Create a volume; it can be logged in to at once."""
    body = {
        "name": name,
        "size_bytes": size,
        "block_size": int(block_size),
        "copies": int(copies),
        "members": [one for one in (members or "").split(",") if one],
        "mutual_chap": mutual_chap,
        **options,
    }
    created = api.ask("POST", "/volumes", body)
    show(created, as_json, lambda: print_volume(created))


@volume.command("list", cls=rich_click.RichCommand)
@with_json
@with_api
def volume_list(api: Api, as_json: bool) -> None:
    """List the volumes."""
    volumes = api.get("/volumes")
    nothing = "no volumes yet: san-target volume create NAME --size SIZE"
    show(volumes, as_json, lambda: print_table(VOLUME_COLUMNS, volumes, nothing))


@volume.command("show", cls=rich_click.RichCommand)
@click.argument("name")
@with_json
@with_api
def volume_show(api: Api, name: str, as_json: bool) -> None:
    """Show one volume with its sessions."""
    one = api.get(f"/volumes/{segment(name)}")
    show(one, as_json, lambda: print_volume(one))


def map_entries(api: Api, name: str) -> list[dict[str, Any]]:
    """The whole map, of which the API gives some ranges at a time. What changes meanwhile may be seen or not."""
    entries: list[dict[str, Any]] = []
    while more := api.get(f"/volumes/{segment(name)}/map", **{"from": entries[-1]["end_lba"]} if entries else {}):
        entries += more
    return entries


@volume.command("map", cls=rich_click.RichCommand)
@click.argument("name")
@with_json
@with_api
def volume_map(api: Api, name: str, as_json: bool) -> None:
    """Show which member holds which blocks (the end is exclusive)."""
    entries = map_entries(api, name)
    show(entries, as_json, lambda: print_table(MAP_COLUMNS, entries, "an empty map"))


@volume.command("resize", cls=rich_click.RichCommand)
@click.argument("name")
@click.option("--size", type=SIZE, required=True, help="New size: 10G, 512M, 1T (binary), or bytes.")
@click.option("--force", is_flag=True, help="Allow a smaller size; what lies beyond it is lost.")
@with_json
@with_api
def volume_resize(api: Api, name: str, size: int, force: bool, as_json: bool) -> None:
    """Change a volume's size, while it is in use too."""
    resized = api.ask("POST", f"/volumes/{segment(name)}/resize", {"size_bytes": size, "force": force})
    text = f"volume {resized['name']} has {format_size(resized['size_bytes'])}; initiators see it when they rescan"
    show(resized, as_json, lambda: click.echo(text))


@volume.command("delete", cls=rich_click.RichCommand)
@click.argument("name")
@click.option("--force", is_flag=True, help="Also if sessions are logged in; they are ended.")
@with_api
def volume_delete(api: Api, name: str, force: bool) -> None:
    """Delete a volume and all its data."""
    api.ask("DELETE", f"/volumes/{segment(name)}", parameters={"force": "true"} if force else None)
    click.echo(f"volume {name} deleted")


@volume.command("set", cls=rich_click.RichCommand)
@click.argument("name")
@with_options(
    [
        *ACCESS_OPTIONS,
        click.option("--allow-all", is_flag=True, help="Every initiator name may log in."),
        click.option("--no-chap", is_flag=True, help="Ask for no authentication (mutual CHAP ends too)."),
        click.option("--no-mutual-chap", is_flag=True, help="The target no longer proves itself."),
        *(
            click.option(f"--{name.replace('_', '-')}/--no-{name.replace('_', '-')}", default=None, help=text)
            for name, text in FLAGS.items()
        ),
    ]
)
@with_json
@with_api
def volume_set(api: Api, name: str, as_json: bool, **options: Any) -> None:
    """Change a volume's access rules and flags; lists replace the old ones, what is not given stays."""
    changes = changes_of(options)
    changed = api.ask("PATCH", f"/volumes/{segment(name)}", changes)
    show(changed, as_json, lambda: print_volume(changed))


def changes_of(options: dict[str, Any]) -> dict[str, Any]:
    """The body of a change from the options of `volume set`. UsageError: none given, or two that exclude each other."""
    for given, opposite in (("allow", "allow_all"), ("chap", "no_chap"), ("mutual_chap", "no_mutual_chap")):
        if options[given] and options[opposite]:
            raise click.UsageError(f"--{given.replace('_', '-')} and --{opposite.replace('_', '-')} exclude each other")
    changes: dict[str, Any] = {name: options[name] for name in FLAGS if options[name] is not None}
    if options["allow"] or options["allow_all"]:
        changes["allow"] = list(options["allow"])
    if options["chap"] or options["no_chap"]:
        changes["chap"] = list(options["chap"])
    if options["mutual_chap"] or options["no_mutual_chap"] or options["no_chap"]:
        changes["mutual_chap"] = options["mutual_chap"]
    if not changes:
        raise click.UsageError("give at least one option to change")
    return changes
