"""The embedded store: one SQLite file on a local disk, shared by any number of processes of one machine.

One thread owns the connection; it runs what the event loop hands it and, while somebody watches, looks between two
jobs whether another process has written. The event loop is woken only by changes.
"""

import asyncio
import concurrent.futures
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from san_target.metadata import clock as machine_clock
from san_target.metadata.changes import check_transaction
from san_target.metadata.sqlite_database import STOPPED_HOLDER_S, SqliteDatabase
from san_target.metadata.sqlite_reader import SqliteReader
from san_target.metadata.store import (
    PAGE_ITEMS,
    Compare,
    Delete,
    Item,
    Put,
    Snapshot,
    StoreError,
    TransactionResult,
    WatchBatch,
)

T = TypeVar("T")
HISTORY_REVISIONS = 10_000
POLL_S = 0.03
BUSY_TIMEOUT_S = STOPPED_HOLDER_S + 1.0


class _Worker:
    """The thread of one connection. `look` runs between jobs, every `poll_s`, while `watched` is true."""

    def __init__(self, name: str, poll_s: float, look: Callable[[], None]) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._poll_s = poll_s
        self._look = look
        self.watched = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, function: Callable[[], T]) -> "concurrent.futures.Future[T]":
        future: concurrent.futures.Future[T] = concurrent.futures.Future()

        def job() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = function()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        self._jobs.put(job)
        return future

    def watch(self) -> None:
        """From now on look for other processes' changes."""
        if not self.watched:
            self.watched = True
            self._jobs.put(lambda: None)  # wakes the thread, which waits without a time limit while unwatched

    def stop(self) -> None:
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        looked_s = time.monotonic()
        while True:
            try:
                job = self._jobs.get(timeout=self._poll_s if self.watched else None)
            except queue.Empty:
                pass
            else:
                if job is None:
                    return
                job()
            # Also in a steady stream of jobs, which never leaves the queue empty for long.
            if self.watched and time.monotonic() - looked_s >= self._poll_s:
                self._look()
                looked_s = time.monotonic()


class SqliteStore:
    """`Store` on the file at `path`.

    clock and boot_id: of leases; every process on the file must use the same. history_revisions: how many a watch can
    go back. poll_s: how soon changes of other processes are seen (own ones at once). busy_timeout_s: how long to wait
    for another process's transaction before StoreUnavailable. stopped_holder_s: after so long a process that is stopped
    in the midst of one is ended (sqlite_holder.py).
    """

    def __init__(
        self,
        path: Path | str,
        *,
        clock: Callable[[], float] = machine_clock.boottime_s,
        boot_id: str | None = None,
        history_revisions: int = HISTORY_REVISIONS,
        poll_s: float = POLL_S,
        busy_timeout_s: float = BUSY_TIMEOUT_S,
        stopped_holder_s: float = STOPPED_HOLDER_S,
    ) -> None:
        self._database = SqliteDatabase(
            Path(path),
            clock=clock,
            boot_id=machine_clock.boot_id() if boot_id is None else boot_id,
            history_revisions=history_revisions,
            busy_timeout_s=busy_timeout_s,
            stopped_holder_s=stopped_holder_s,
        )
        self._poll_s = poll_s
        self._worker: _Worker | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watchers: set[asyncio.Event] = set()
        self._seen = 0  # the revision the watchers were last woken for; the worker's own variable
        self._poll_failed = False
        self._hurried = False  # the worker has been asked to look, and has not begun

    async def open(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._worker = _Worker(f"store {self._database.path.name}", self._poll_s, self._look)
        try:
            await self._run(self._database.open)
        except BaseException:
            worker, self._worker = self._worker, None
            worker.stop()
            raise

    async def close(self) -> None:
        if self._worker is None:
            return
        worker, self._worker = self._worker, None
        closed = worker.submit(self._database.close)
        self._wake()
        try:
            await asyncio.wrap_future(closed)
        finally:
            worker.stop()

    async def get(self, key: str) -> Item | None:
        return await self._run(lambda: self._database.get(key))

    async def range(self, prefix: str) -> Snapshot:
        return await self._run(lambda: self._database.range(prefix))

    async def pages(self, prefix: str) -> AsyncIterator[Snapshot]:
        """Read by a connection of its own, so that nobody who uses the store meanwhile waits for the reader."""
        await self._run(self._database.poll)  # ended leases are gone from what is read
        reader = SqliteReader(self._database.path, prefix)
        page = await asyncio.to_thread(reader.open)
        try:
            while True:
                yield page
                if len(page.items) < PAGE_ITEMS:
                    return
                page = await asyncio.to_thread(reader.more)
        finally:
            await asyncio.to_thread(reader.close)

    async def transact(self, compares: Sequence[Compare], operations: Sequence[Put | Delete]) -> TransactionResult:
        check_transaction(compares, operations)
        result = await self._run(lambda: self._database.transact(compares, operations))
        if result.succeeded:
            self._wake()
        return result

    async def watch(self, prefix: str, from_revision: int) -> AsyncIterator[WatchBatch]:
        """Ends without an error only when this store is closed."""
        changed = asyncio.Event()
        self._watchers.add(changed)
        revision = from_revision
        try:
            while self._worker is not None:
                self._worker.watch()
                changed.clear()
                batches, revision, more = await self._run(partial(self._database.changes, prefix, revision))
                for batch in batches:
                    yield batch
                if not more:
                    await changed.wait()
        finally:
            self._watchers.discard(changed)
            if self._worker is not None and not self._watchers:
                self._worker.watched = False

    def hurry(self) -> None:
        if self._worker is not None and self._watchers and not self._hurried:
            self._hurried = True
            self._worker.submit(self._look)

    async def skip_to(self, revision: int) -> None:
        await self._run(lambda: self._database.skip_to(revision))
        self._wake()

    async def grant_lease(self, ttl_s: float) -> int:
        return await self._run(lambda: self._database.grant_lease(ttl_s))

    async def renew_lease(self, lease_id: int) -> bool:
        return await self._run(lambda: self._database.renew_lease(lease_id))

    async def revoke_lease(self, lease_id: int) -> None:
        await self._run(lambda: self._database.revoke_lease(lease_id))
        self._wake()

    async def _run(self, function: Callable[[], T]) -> T:
        if self._worker is None:
            raise StoreError(f"the store {self._database.path} is not open")
        return await asyncio.wrap_future(self._worker.submit(function))

    def _wake(self) -> None:
        for changed in self._watchers:
            changed.set()

    def _look(self) -> None:
        """In the worker: wake the watchers for others' changes, or once for a failure, which they then meet."""
        self._hurried = False  # first: who hurries from now on may know of a change that is not seen here
        try:
            revision = self._database.poll()
        except StoreError:
            if not self._poll_failed:
                self._poll_failed = True
                self._wake_loop()
            return
        self._poll_failed = False
        if revision != self._seen:
            self._seen = revision
            self._wake_loop()

    def _wake_loop(self) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake)
