"""`san-target demo`: members on this machine, one process each, with volumes to connect to at once."""

from pathlib import Path
from typing import Any

import click
import rich_click

from san_target.cli.values import Parsed, parse_size

DEFAULT_VOLUME = ("demo", 1 << 30)
MEMBERS_MAX = 20  # their admin ports begin 20 above the portals
BASE_PORT_MAX = 65535 - 60


def parse_volume(text: str) -> tuple[str, int]:
    """(name, bytes) of "NAME=SIZE". ValueError says what is expected."""
    name, separator, size = text.partition("=")
    if not separator or not name:
        raise ValueError(f"{text!r}: expected NAME=SIZE, such as demo=1G")
    return name, parse_size(size)


def default_directory() -> Path:
    """Where a demo without --dir keeps its data: the user's state directory (XDG Base Directory Specification)."""
    import os

    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "san-target" / "demo"


@click.command(cls=rich_click.RichCommand)
@click.option("--members", type=click.IntRange(1, MEMBERS_MAX), default=3, show_default=True, help="How many members.")
@click.option(
    "--dir", "directory", type=click.Path(path_type=Path, file_okay=False), help="Pools and store [a state directory]."
)
@click.option(
    "--base-port",
    type=click.IntRange(1, BASE_PORT_MAX),
    default=3260,
    show_default=True,
    help="iSCSI port of the first member, the next one's is 1 above; admin ports are 20 above, peer ports 40.",
)
@click.option(
    "--volume",
    "volumes",
    type=Parsed("NAME=SIZE", parse_volume),
    multiple=True,
    help="Volume to have, created if missing (repeatable) [demo=1G].",
)
@click.option(
    "--exit-after", type=click.FloatRange(min=0), metavar="SECONDS", help="End by itself, counted from ready."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON line when ready, instead of the how-to.")
def demo(members: int, directory: Path | None, volumes: tuple[Any, ...], **options: Any) -> int:
    """Serve volumes on this machine to try things out: open access, on loopback only.

    Data stays in the directory; the next demo on it finds it again.
    """
    from san_target.cli.demo_group import Plan, run

    if len(dict(volumes)) != len(volumes):
        raise click.UsageError("--volume: a name is given twice", click.get_current_context())
    plan = Plan(
        directory=(directory or default_directory()).absolute(),
        base_port=options["base_port"],
        members=members,
        volumes=dict(volumes or (DEFAULT_VOLUME,)),
        exit_after_s=options["exit_after"],
        as_json=options["as_json"],
    )
    run(plan)
    return 0
