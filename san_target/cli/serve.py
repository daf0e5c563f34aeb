"""`san-target serve`: one member, in the foreground."""

from pathlib import Path
from typing import Any

import click
import rich_click

from san_target.cli.values import ADDRESS, DURATION


@click.command(cls=rich_click.RichCommand)
@click.option(
    "--config", type=click.Path(path_type=Path, dir_okay=False), help="TOML file with the same keys; options win."
)
@click.option("--name", help="Name of this member [the host's name].")
@click.option("--dir", "directory", metavar="POOL_DIR", help="Directory of the pool; made if missing.")
@click.option(
    "--portal", "portals", type=ADDRESS, multiple=True, help="Where iSCSI is served (repeatable) [0.0.0.0:3260]."
)
@click.option("--advertise", type=ADDRESS, multiple=True, help="The portal as initiators reach it, if different.")
@click.option("--peer", type=ADDRESS, help="Where other members reach this one.")
@click.option("--admin", type=ADDRESS, help="Where the HTTP API is served [127.0.0.1:3280].")
@click.option("--api-token-file", metavar="FILE", help="File with the API token; without, the API stays on loopback.")
@click.option("--store", metavar="URL", help="sqlite:///PATH or etcd://HOST:PORT[,...] [group.sqlite in the pool].")
@click.option("--group", help="Name of the group, when the store is new.")
@click.option("--busy-poll", type=DURATION, help="Look this long for the next request; 0us = never [50us].")
def serve(config: Path | None, busy_poll: float | None, **options: Any) -> int:
    """Run one member until SIGTERM or Ctrl-C; prints `ready` with its addresses when it serves."""
    from san_target.cli.serve_member import run
    from san_target.server.config import ConfigError, load

    if busy_poll is not None:
        options["busy_poll_us"] = round(busy_poll * 1e6)
    try:
        run(load(config, options))
    except ConfigError as error:
        raise click.ClickException(str(error)) from None
    return 0
