"""Ending, or waiting for, what sessions of a target have under way: for preempted nexuses and withdrawn volumes."""

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from san_target.session.tasks import Task, TaskBarrier

if TYPE_CHECKING:
    from san_target.scsi.nexus import Nexus
    from san_target.session.session import Session
    from san_target.session.target import Target

# What changes the unit's shared state (PERSISTENT RESERVE OUT, RESERVE (6), RELEASE (6), MODE SELECT), and SANITIZE
_NOT_WAITED_FOR: Final = frozenset({0x5F, 0x16, 0x17, 0x15, 0x55, 0x48})


async def drain_tasks(target: "Target", nexuses: Iterable["Nexus"]) -> None:
    """Return when the commands of these nexuses that are with the unit now have ended (PREEMPT)."""
    await _barrier(task for session in _sessions(target, nexuses) for task in _waited_for(session) if task.executing)


async def abort_tasks(target: "Target", nexuses: Iterable["Nexus"]) -> None:
    """End every command of these nexuses; return when none can reach the medium any more (PREEMPT AND ABORT)."""
    sessions = _sessions(target, nexuses)
    ended = _barrier(task for session in sessions for task in _waited_for(session))
    for session in sessions:
        session.connection.abort(list(session.connection.tasks.values()))
        session.connection.host.wake()
    await ended


async def end_sessions(target: "Target", reason: str) -> None:
    """End all sessions of the target, those that begin meanwhile too."""
    while target.sessions:
        await asyncio.gather(*(session.connection.terminate(reason) for session in list(target.sessions.values())))


def _sessions(target: "Target", nexuses: Iterable["Nexus"]) -> list["Session"]:
    wanted = set(map(id, nexuses))
    return [session for session in target.sessions.values() if id(session.nexus) in wanted]


def _waited_for(session: "Session") -> list[Task]:
    """The tasks that can be waited for.

    One that changes the shared state touches no block, and may itself be waiting for the one that waits here; a
    SANITIZE goes on whatever happens to the nexus that began it (SBC-4 4.11.2), for as long as the medium takes.
    """
    return [task for task in session.connection.tasks.values() if task.command.cdb[0] not in _NOT_WAITED_FOR]


def _barrier(tasks: Iterable[Task]) -> asyncio.Future[None]:
    """Done when all of these have ended; counts from this call on."""
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    TaskBarrier(tasks, lambda: None if ended.done() else ended.set_result(None))
    return ended
