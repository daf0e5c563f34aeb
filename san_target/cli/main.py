"""The `san-target` command. Modules of commands are light: what takes long to load is imported when a command runs."""

import sys
from collections.abc import Sequence
from typing import Any

import click
import rich_click

import san_target
from san_target.cli.balance import balance, load
from san_target.cli.client import global_options
from san_target.cli.demo import demo
from san_target.cli.group import group, member
from san_target.cli.migrate import migrate
from san_target.cli.portal import portal
from san_target.cli.serve import serve
from san_target.cli.session import session
from san_target.cli.store import store
from san_target.cli.volume import volume


class Program(rich_click.RichGroup):
    """Help as rich-click draws it; errors as one plain line on stderr, exit code 1 (2 for wrong usage)."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        try:
            status = super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        except click.ClickException as error:
            sys.exit(report(error))
        except click.Abort:
            click.echo("san-target: interrupted", err=True)
            sys.exit(130)
        except BrokenPipeError:
            # The reader of our output went away, as `head` does. The interpreter must not complain at its end.
            sys.stderr.close()
            sys.exit(1)
        sys.exit(status if isinstance(status, int) else 0)


def report(error: click.ClickException) -> int:
    """Print an error as one line; returns the exit code."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return error.exit_code
    line = " ".join(error.format_message().split())
    if isinstance(error, click.UsageError) and error.ctx is not None:
        line = f"{line} (see: {error.ctx.command_path} --help)"
    click.echo(f"san-target: {line}", err=True)
    return error.exit_code


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(san_target.__version__, prog_name="san-target", message="%(prog)s %(version)s")
@global_options
def main(api: str | None, token_file: str | None) -> None:
    """A group of equal iSCSI members: one portal, plain disks, spread volumes."""


for command in (serve, demo, group, member, volume, portal, session, migrate, load, balance, store):
    main.add_command(command)
