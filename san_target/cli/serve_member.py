"""The process of a member: logging, signals, the `ready` line; apart from `serve`, as it takes long to load."""

import asyncio
import logging
import signal
import sys
from typing import TYPE_CHECKING

import click
import structlog

from san_target.server.environment import Environment
from san_target.server.member import Member

if TYPE_CHECKING:
    from san_target.server.config import MemberConfig


def run(config: "MemberConfig") -> None:
    """Serve until a signal. Raises ClickException with what the operator can do if the member cannot start."""
    log_to_stderr()
    asyncio.run(_serve(config))


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
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


async def _serve(config: "MemberConfig") -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    member = Member(config, Environment())
    await member.start()
    try:
        click.echo(f"ready {member.name}")
        sys.stdout.flush()
        await stop.wait()
    finally:
        await member.stop()
