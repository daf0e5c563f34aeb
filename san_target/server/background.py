"""Coroutines that run beside everything else: kept alive, their failures logged, ended together."""

import asyncio
import contextvars
from collections.abc import Coroutine
from typing import Any

import structlog

log = structlog.get_logger()


class Background:
    """The background tasks of one owner."""

    def __init__(self) -> None:
        self._tasks: dict[asyncio.Task[None], None] = {}  # the oldest first

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        # In a context of its own: what is done here is done for nobody's command, whoever caused it.
        task = asyncio.get_running_loop().create_task(coroutine, context=contextvars.Context())
        self._tasks[task] = None
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("background work failed", work=task.get_name(), exc_info=error)

    async def cancel(self) -> None:
        """End all, and return when they have ended."""
        while self._tasks:
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await asyncio.sleep(0)  # lets _done run
