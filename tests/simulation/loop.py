"""An event loop without a clock, and the processes that share it.

Callbacks run one after the other in the order they were planned. When none is left, time jumps to the next timer, so
computing costs no time and waiting costs no computing. There are no sockets and no threads: what comes from outside is
planned by the simulation. So a run depends on nothing but what is started in it.

Everything runs in the context of a `Process`, or of none (the network, the disks, the operator). What a stopped process
planned, or others planned for it, waits until it goes on; what belongs to a dead one never runs. A context is inherited
by tasks, timers and callbacks, so code under test need not know of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import sys
from asyncio import events
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from enum import Enum, auto
from typing import Any, Final, TypeVar

T = TypeVar("T")

START_S: Final = 1000.0
_PRUNE_AT: Final = 1024


class State(Enum):
    RUNNING = auto()
    STOPPED = auto()
    DEAD = auto()


class Process:
    """A process of a simulated machine. tasks: kept, since a dead process must not clean up after itself."""

    __slots__ = ("_prune_at", "held", "name", "state", "tasks")

    def __init__(self, name: str) -> None:
        self.name = name
        self.state = State.RUNNING
        self.held: list[Handle] = []
        self.tasks: list[asyncio.Task[Any]] = []
        self._prune_at = _PRUNE_AT

    def keep(self, task: asyncio.Task[Any]) -> None:
        self.tasks.append(task)
        if len(self.tasks) >= self._prune_at:
            self.tasks = [each for each in self.tasks if not each.done()]
            self._prune_at = 2 * len(self.tasks) + _PRUNE_AT


PROCESS: Final[ContextVar[Process | None]] = ContextVar("process", default=None)


class Stuck(Exception):
    """Nothing can happen any more although something is waited for, or no end is in sight."""


class Handle:
    """A planned call. when: None unless it is a timer."""

    __slots__ = ("_arguments", "_callback", "_cancelled", "_when", "context", "process")

    def __init__(
        self, callback: Callable[..., object], arguments: tuple[Any, ...], context: Context, when: float | None = None
    ) -> None:
        self._callback: Callable[..., object] | None = callback
        self._arguments = arguments
        self._cancelled = False
        self._when = when
        self.context = context
        self.process = context.get(PROCESS)

    def when(self) -> float | None:
        return self._when

    def cancel(self) -> None:
        self._cancelled = True
        self._callback = None
        self._arguments = ()

    def cancelled(self) -> bool:
        return self._cancelled

    def run(self) -> None:
        if self._callback is not None:
            self.context.run(self._callback, *self._arguments)

    def call(self) -> None:
        """In the context of the caller."""
        if self._callback is not None:
            self._callback(*self._arguments)


class VirtualLoop(asyncio.AbstractEventLoop):
    """failures: exceptions that no one caught, as text. steps: calls that ran so far."""

    def __init__(self) -> None:
        self.failures: list[str] = []
        self.steps = 0
        self.outside = Context()  # of no process
        self._now = START_S
        self._ready: deque[Handle] = deque()
        self._timers: list[tuple[float, int, Handle]] = []
        self._order = itertools.count()
        self._task_numbers = itertools.count(1)
        self._is_closed = False

    # Running ----------------------------------------------------------------------------------------------------------

    def run(self, main: Coroutine[Any, Any, T], until_s: float, steps_max: int) -> T:
        """Run until `main` ends. Stuck: it cannot, or has not after `until_s` of virtual time or so many steps."""
        before = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(finalizer=self._finish_generator)
        events._set_running_loop(self)
        try:
            task = self.outside.run(self.create_task, main)
            self._turn(task, until_s, steps_max)
            return task.result()
        finally:
            events._set_running_loop(None)
            sys.set_asyncgen_hooks(*before)

    def _turn(self, task: asyncio.Task[Any], until_s: float, steps_max: int) -> None:
        ready, timers = self._ready, self._timers
        while not task.done():
            if not ready:
                if not timers:
                    raise Stuck("nothing is planned any more, but the run has not ended")
                when, _, handle = heapq.heappop(timers)
                if handle.cancelled():
                    continue
                if when > until_s:
                    raise Stuck(f"no end after {until_s - START_S:.0f} s")
                self._now = max(self._now, when)
            else:
                handle = ready.popleft()
            process = handle.process
            if process is not None and process.state is not State.RUNNING:
                if process.state is State.STOPPED:
                    process.held.append(handle)
                continue
            self.steps += 1
            if self.steps > steps_max:
                raise Stuck(f"no end after {steps_max} steps")
            try:
                handle.run()
            except Exception as error:
                self._fail(f"{type(error).__name__}: {error}", error)

    def _fail(self, text: str, error: BaseException | None = None) -> None:
        place = ""
        trace = error.__traceback__ if error is not None else None
        while trace is not None:
            place = f" at {trace.tb_frame.f_code.co_filename.rpartition('/')[2]}:{trace.tb_lineno}"
            trace = trace.tb_next
        self.failures.append(text + place)

    def _finish_generator(self, generator: AsyncGenerator[Any, Any]) -> None:
        if not self._is_closed:
            self.call_soon(self.create_task, generator.aclose())

    # Processes --------------------------------------------------------------------------------------------------------

    def spawn(self, process: Process, main: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run `main` in a process."""
        context = self.outside.copy()
        context.run(PROCESS.set, process)
        return context.run(self.create_task, main)

    def stop_process(self, process: Process) -> None:
        """As SIGSTOP does."""
        if process.state is State.RUNNING:
            process.state = State.STOPPED

    def continue_process(self, process: Process) -> None:
        """As SIGCONT does. Like any event loop it sees what came from outside before it looks at its timers."""
        if process.state is State.STOPPED:
            process.state = State.RUNNING
            held, process.held = process.held, []
            self._ready.extend(handle for handle in held if handle.when() is None)
            self._ready.extend(handle for handle in held if handle.when() is not None)

    def kill_process(self, process: Process) -> None:
        """As SIGKILL does: not even its clean-up runs."""
        process.state = State.DEAD
        process.held.clear()

    # What asyncio asks of a loop --------------------------------------------------------------------------------------

    def time(self) -> float:
        return self._now

    def call_soon(self, callback: Callable[..., object], *args: Any, context: Context | None = None) -> Handle:  # type: ignore[override]
        handle = Handle(callback, args, context if context is not None else copy_context())
        self._ready.append(handle)
        return handle

    call_soon_threadsafe = call_soon  # type: ignore[assignment]

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Handle:  # type: ignore[override]
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Handle:  # type: ignore[override]
        handle = Handle(callback, args, context if context is not None else copy_context(), when)
        heapq.heappush(self._timers, (when, next(self._order), handle))
        return handle

    def call_outside(self, delay: float, callback: Callable[..., object], *args: Any) -> Handle:
        """`call_later` of what belongs to no process."""
        return self.call_at(self._now + delay, callback, *args, context=self.outside)

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(  # type: ignore[override]
        self, coro: Coroutine[Any, Any, T], *, name: str | None = None, context: Context | None = None
    ) -> asyncio.Task[T]:
        process = PROCESS.get()
        if context is not None and PROCESS not in context:
            context.run(PROCESS.set, process)  # a context of its own is not a process of its own
        name = name or f"task {next(self._task_numbers)}"
        task: asyncio.Task[T] = asyncio.Task(coro, loop=self, name=name, context=context)
        if process is not None:
            process.keep(task)
        return task

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        """There are no threads: it is done when this returns."""
        future: asyncio.Future[T] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    def add_reader(self, fd: Any, callback: Callable[..., object], *args: Any) -> None:
        """`fd` is a simulated socket."""
        fd.set_reader(Handle(callback, args, copy_context()))

    def remove_reader(self, fd: Any) -> bool:
        return bool(fd.set_reader(None))

    def add_writer(self, fd: Any, callback: Callable[..., object], *args: Any) -> None:
        fd.set_writer(Handle(callback, args, copy_context()))

    def remove_writer(self, fd: Any) -> bool:
        return bool(fd.set_writer(None))

    def get_debug(self) -> bool:
        return False

    def set_debug(self, enabled: bool) -> None:
        pass

    def is_running(self) -> bool:
        return not self._is_closed

    def is_closed(self) -> bool:
        return self._is_closed

    def close(self) -> None:
        """What is left is forgotten, without a word."""
        self._is_closed = True
        left = [task for task in asyncio.all_tasks(self) if not task.done()]
        events._set_running_loop(self)
        try:
            for task in left:
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                with contextlib.suppress(Exception):
                    task.get_coro().close()  # type: ignore[union-attr]
        finally:
            events._set_running_loop(None)
        self._ready.clear()
        self._timers.clear()

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """What asyncio would log: always a defect."""
        error = context.get("exception")
        if not self._is_closed:
            self._fail(f"{context.get('message')}: {error!r}", error)
