"""`san-target store`: back the group's store up, and bring it back. Works on the store itself, not through a member."""

import contextlib
import os
import secrets
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import click
import rich_click

from san_target.cli.output import Column, print_json, print_table
from san_target.cli.values import Parsed, format_size

if TYPE_CHECKING:
    from san_target.group.rebuild import Rebuilt
    from san_target.metadata.store import Store

P = ParamSpec("P")
R = TypeVar("R")

STORE = click.option("--store", "url", metavar="URL", required=True, help="sqlite:///PATH or etcd://HOST:PORT,...")
FORCE = click.option("--force", is_flag=True, help="Replace what the store holds already.")
VOLUME_COLUMNS = (
    Column("VOLUME", lambda found: found.record.name),
    Column("ID", lambda found: found.record.id),
    Column("SIZE", lambda found: format_size(found.record.size_bytes), number=True),
    Column("MEMBERS", lambda found: ",".join(found.holders)),
    Column("LOST", lambda found: format_size(found.lost_bytes), number=True),
)


def parse_pair(text: str) -> tuple[str, str]:
    """(left, right) of "LEFT=RIGHT". ValueError says what is expected."""
    left, separator, right = text.partition("=")
    if not separator or not left or not right:
        raise ValueError(f"{text!r}: expected NAME=VALUE")
    return left, right


def refusals(command: Callable[P, Awaitable[R]]) -> Callable[P, R]:
    """Run a command's coroutine; what it is refused for becomes one line."""

    @wraps(command)
    def wrapped(*arguments: P.args, **options: P.kwargs) -> R:
        import asyncio

        from san_target.group.backup import BackupError
        from san_target.group.errors import AdministrationError
        from san_target.group.rebuild import RebuildError
        from san_target.metadata.store import StoreError
        from san_target.storage.records import PoolError

        async def run() -> R:
            return await command(*arguments, **options)

        try:
            return asyncio.run(run())
        except (StoreError, BackupError, RebuildError, PoolError, AdministrationError) as error:
            raise click.ClickException(str(error)) from None
        except OSError as error:
            raise click.ClickException(f"{error.filename}: {error.strerror}") from None

    return wrapped


@contextlib.asynccontextmanager
async def opened(url: str, must_exist: bool = False) -> AsyncIterator["Store"]:
    """must_exist: a file is not made."""
    from urllib.parse import unquote, urlsplit

    from san_target.metadata.factory import open_store

    parts = urlsplit(url)
    if must_exist and parts.scheme == "sqlite" and not os.access(unquote(parts.path), os.F_OK):
        raise click.ClickException(f"there is no store {unquote(parts.path)}; check --store")
    store = await open_store(url)
    try:
        yield store
    finally:
        await store.close()


@click.group(cls=rich_click.RichGroup)
def store() -> None:
    """The group's store: backup, restore, and a new one of what the pools hold."""


@store.command("backup", cls=rich_click.RichCommand)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@STORE
@refusals
async def store_backup(file: Path, url: str) -> None:
    """Write all that the store holds into a file; members may go on meanwhile.

    The file has the group's secrets, and is readable by its owner only.
    """
    from datetime import UTC, datetime

    import san_target
    from san_target.group.backup import lines_of

    written = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    temporary = file.with_name(file.name + ".new")
    keys = -2  # the first line and the last are none
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as output:
            async with opened(url, must_exist=True) as source:
                async for line in lines_of(source, written, san_target.__version__):
                    output.write(line)
                    keys += 1
            output.flush()
            os.fsync(output.fileno())
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
    click.echo(f"{keys} keys written to {file}")


@store.command("restore", cls=rich_click.RichCommand)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@STORE
@FORCE
@refusals
async def store_restore(file: Path, url: str, force: bool) -> None:
    """Make a store what a backup says. All members must have ended.

    A member whose pool has seen more than the backup knows refuses to start with it: see `store rebuild`.
    """
    from san_target.group.backup import read, restore

    with file.open("rb") as lines:
        backup = read(lines, str(file))
    async with opened(url) as target:
        revision = await restore(target, backup, secrets.token_hex(16), force)
    click.echo(f"group {backup.header.group} is restored as of {backup.header.written}, at revision {revision}")


@store.command("held", cls=rich_click.RichCommand)
@click.argument("pool", type=click.Path(path_type=Path, file_okay=False, exists=True))
@refusals
async def store_held(pool: Path) -> None:
    """Print what a pool holds, as `store rebuild` reads it: for pools of other machines. Its member must have ended."""
    from san_target.storage.pool_contents import encode_contents, read_pool

    click.echo(encode_contents(read_pool(pool)))


@store.command("rebuild", cls=rich_click.RichCommand)
@STORE
@click.option(
    "--pool",
    "pools",
    type=Parsed("NAME=PATH", parse_pair),
    multiple=True,
    required=True,
    help="A member's pool, or a file with what `store held` prints of it (repeatable).",
)
@click.option(
    "--backup", type=click.Path(path_type=Path, dir_okay=False, exists=True), help="For all else, however old."
)
@click.option("--group", default="san-target", show_default=True, help="Name of the group, without a backup.")
@click.option(
    "--volume",
    "volumes",
    type=Parsed("ID=NAME", parse_pair),
    multiple=True,
    help="Name of a volume that the backup does not know (repeatable).",
)
@click.option("--dry-run", is_flag=True, help="Show what it would be, change nothing.")
@FORCE
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout, with stable keys.")
@refusals
async def store_rebuild(
    url: str,
    pools: tuple[tuple[str, str], ...],
    backup: Path | None,
    group: str,
    volumes: tuple[tuple[str, str], ...],
    dry_run: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Make a new store of what the pools hold, and a backup knows. All members must have ended; give all pools.

    Of two pools that hold the same blocks, the later one counts. What no pool holds is lost.
    """
    from san_target.group.backup import read, write
    from san_target.group.group_record import SECRET_BYTES
    from san_target.group.rebuild import Fresh, rebuild
    from san_target.storage.pool_contents import read_contents

    known = None
    if backup is not None:
        with backup.open("rb") as lines:
            known = read(lines, str(backup))
    names = [name for name, _ in pools]
    if len(set(names)) != len(names):
        raise click.UsageError("a member is given two pools")
    contents = {name: read_contents(Path(path)) for name, path in pools}
    fresh = Fresh(secrets.token_hex(16), group, secrets.token_bytes(SECRET_BYTES))
    rebuilt = rebuild(contents, known, fresh, dict(volumes))
    if not dry_run:
        async with opened(url) as target:
            await write(target, rebuilt.values, rebuilt.revision, force)
    if as_json:
        print_json(document(rebuilt, dry_run))
    else:
        print_table(VOLUME_COLUMNS, rebuilt.volumes, "no volumes")
        for note in rebuilt.notes:
            click.echo(note)
        click.echo(
            "nothing was changed (--dry-run)" if dry_run else f"the store is made, at revision {rebuilt.revision}"
        )
    sys.stdout.flush()


def document(rebuilt: "Rebuilt", dry_run: bool) -> dict[str, Any]:
    """What scripts read."""
    return {
        "revision": rebuilt.revision,
        "written": not dry_run,
        "volumes": [
            {
                "name": found.record.name,
                "id": found.record.id,
                "size_bytes": found.record.size_bytes,
                "members": list(found.holders),
                "lost_bytes": found.lost_bytes,
                "in_backup": not found.is_new,
            }
            for found in rebuilt.volumes
        ],
        "notes": rebuilt.notes,
    }
