"""The few threads that wait for disks, so that the event loop never does.

Two lanes: ordinary jobs (reads, writes), and slow ones (flushes, punches, fills), so that flushes of many volumes
never keep a read waiting. Callers bound how many jobs they start (the initiators' command windows do).
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Protocol, TypeVar, TypeVarTuple

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")


class Waits:
    """How many ordinary jobs there were, and how long their awaiters waited, altogether: the latency of the disk."""

    __slots__ = ("jobs", "seconds")

    def __init__(self) -> None:
        self.jobs = 0
        self.seconds = 0.0

    def add(self, began_s: float, future: asyncio.Future[T]) -> None:
        """To be told when a job has ended that began at this time of the loop."""
        self.jobs += 1
        self.seconds += future.get_loop().time() - began_s


class Threads(Protocol):
    """Runs blocking functions. A job that was started runs to its end, whatever happens to its awaiter."""

    waits: Waits

    def start(self, function: Callable[[*Arguments], T], *arguments: *Arguments) -> asyncio.Future[T]:
        """Start an ordinary job. Cancelling the future may drop a job that has not begun: shield it."""
        ...

    def start_slow(self, function: Callable[[*Arguments], T], *arguments: *Arguments) -> asyncio.Future[T]:
        """Start a job that may take long."""
        ...

    async def run(self, function: Callable[[*Arguments], T], *arguments: *Arguments) -> T:
        """Start a slow job and wait for it. If the caller is cancelled the job still runs to its end."""
        ...

    def close(self) -> None:
        """Wait for all jobs. No job may be started afterwards."""
        ...


class ThreadPool:
    """Real threads."""

    def __init__(self, threads: int = 8, slow_threads: int = 4) -> None:
        self.waits = Waits()
        self._ordinary = ThreadPoolExecutor(threads, "storage")
        self._slow = ThreadPoolExecutor(slow_threads, "storage-slow")

    def start(self, function: Callable[[*Arguments], T], *arguments: *Arguments) -> asyncio.Future[T]:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        future = loop.run_in_executor(self._ordinary, function, *arguments)
        future.add_done_callback(partial(self.waits.add, began_s))
        return future

    def start_slow(self, function: Callable[[*Arguments], T], *arguments: *Arguments) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._slow, function, *arguments)

    async def run(self, function: Callable[[*Arguments], T], *arguments: *Arguments) -> T:
        return await asyncio.shield(self.start_slow(function, *arguments))

    def close(self) -> None:
        self._ordinary.shutdown()
        self._slow.shutdown()


class SynchronousThreads:
    """The twin for simulation: a job runs inside the event loop, with delays that the simulation chooses.

    delay_s: called twice per job, for the time before it runs and for the time from then until its awaiter hears.
    0 means at once; twice 0, and the job has ended before `start` returns.
    """

    def __init__(self, delay_s: Callable[[], float] = lambda: 0.0) -> None:
        self.waits = Waits()
        self._delay_s = delay_s

    def start(self, function: Callable[[*Arguments], T], *arguments: *Arguments) -> asyncio.Future[T]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        future.add_done_callback(partial(self.waits.add, loop.time()))

        def later(callback: Callable[[], None]) -> None:
            delay_s = self._delay_s()
            if delay_s > 0:
                loop.call_later(delay_s, callback)
            else:
                callback()

        def job() -> None:
            result: T
            error: Exception | None = None
            try:
                result = function(*arguments)
            except Exception as caught:
                error = caught

            def tell() -> None:
                if future.cancelled():
                    return
                if error is not None:
                    future.set_exception(error)
                else:
                    future.set_result(result)

            later(tell)

        later(job)
        return future

    def start_slow(self, function: Callable[[*Arguments], T], *arguments: *Arguments) -> asyncio.Future[T]:
        return self.start(function, *arguments)

    async def run(self, function: Callable[[*Arguments], T], *arguments: *Arguments) -> T:
        return await asyncio.shield(self.start(function, *arguments))

    def close(self) -> None:
        pass
