"""The process of a member: its log, its life, its last words; apart from `serve`, as it takes long to load."""

import asyncio
import contextlib
import gc
import logging
import os
import sys
from typing import TYPE_CHECKING, TextIO, cast

import click
import structlog
import uvloop

from san_target.server.config import ConfigError
from san_target.server.member import Member, StartError

if TYPE_CHECKING:
    from san_target.server.config import MemberConfig


def run(config: "MemberConfig") -> None:
    """Serve until a signal. Raises ClickException with what the operator can do if the member cannot start."""
    log_to_stderr()
    try:
        # uvloop's turn costs a quarter of a plain event loop's, which is most of what a single small request costs.
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(Member(config).serve_forever(announce))
    except (ConfigError, StartError) as error:
        raise click.ClickException(str(error)) from None


def announce(ready_line: str) -> None:
    """Say `ready` to whoever waits for it, at once even into a pipe. Serving goes on where nobody can be told."""
    settle_memory()
    try:
        click.echo(ready_line)
        sys.stdout.flush()
    except OSError:
        # A file on a full disk, a reader who went away. The interpreter must not try again at its end.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def settle_memory() -> None:
    """What is there when a member begins to serve, maps above all, stays for long: garbage collections leave it out.

    A full one would look at each of a million ranges, and nobody is served meanwhile.
    """
    gc.collect()
    gc.freeze()


def log_to_stderr() -> None:
    """stdout is for the `ready` line alone."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"]),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(cast("TextIO", LogStream())),
    )


class LogStream:
    """stderr, except that a reader who went away does no harm: ending cleanly matters more than saying so."""

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.flush()
