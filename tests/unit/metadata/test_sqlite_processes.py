"""One SQLite store under several processes: many transactions, one killed or stopped in the midst of one."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from san_target.metadata import sqlite_holder
from san_target.metadata.sqlite import SqliteStore
from san_target.metadata.sqlite_holder import Holder, StoppedHolder, find_holder
from san_target.metadata.store import Put, StoreUnavailable
from tests.support.target import wait_for

SECONDS_MAX = 60

# Holds a transaction that has changed something, until a line comes on stdin; then it is committed.
HOLD = """
    import sys
    from pathlib import Path
    from san_target.metadata import clock
    from san_target.metadata.sqlite_database import SqliteDatabase
    from san_target.metadata.store import Put

    database = SqliteDatabase(
        Path(sys.argv[1]), clock=clock.boottime_s, boot_id=clock.boot_id(), history_revisions=100,
        busy_timeout_s=10, stopped_holder_s=10,
    )
    database.open()
    with database._writing() as connection:
        database._apply(connection, [Put("held", b"1")])
        print("holds", flush=True)
        sys.stdin.readline()
    database.close()
"""

# Increments a counter by compare-and-set, printing each number that was acknowledged.
COUNT = """
    import asyncio, sys
    from pathlib import Path
    from san_target.metadata.sqlite import SqliteStore
    from san_target.metadata.store import Compare, Put

    async def main():
        store = SqliteStore(Path(sys.argv[1]))
        await store.open()
        lease = await store.grant_lease(30)
        done = 0
        while done < int(sys.argv[2]):
            item = await store.get("counter")
            number = int(item.value) + 1 if item else 1
            compare = Compare("counter", item.mod_revision if item else 0)
            if (await store.transact([compare], [Put("counter", b"%d" % number)])).succeeded:
                done += 1
                print(number, flush=True)
                assert await store.renew_lease(lease)
        await store.revoke_lease(lease)
        await store.close()

    asyncio.run(main())
"""


def start(program: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@contextmanager
def holder_of(path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process in the midst of a transaction."""
    process = start(HOLD, path)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "holds\n"
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.communicate()


def state_of(process: subprocess.Popen[str]) -> str:
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]


def stop(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGSTOP)
    wait_for(lambda: state_of(process) == "T", 10, "stop")


def using(path: Path, action: Callable[[SqliteStore], Awaitable[None]], **options: float) -> None:
    async def body() -> None:
        store = SqliteStore(path, **options)  # type: ignore[arg-type]
        await store.open()
        try:
            async with asyncio.timeout(SECONDS_MAX):
                await action(store)
        finally:
            await store.close()

    asyncio.run(body())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store that exists, with one key."""
    path = tmp_path / "group.sqlite"

    async def put(store: SqliteStore) -> None:
        await store.transact([], [Put("a", b"1")])

    using(path, put)
    return path


@pytest.mark.slow
def test_processes_killed_at_any_moment_lose_nothing_they_acknowledged(path: Path) -> None:
    """Three count together; a fourth is killed again and again, wherever it is then."""
    counting = [start(COUNT, path, 60) for _ in range(3)]
    acknowledged: list[int] = []
    kills = 4
    for round_number in range(kills):
        victim = start(COUNT, path, 1_000_000)
        assert victim.stdout is not None
        for _ in range(3 + round_number):
            acknowledged.append(int(victim.stdout.readline()))
        victim.kill()
        acknowledged += map(int, victim.stdout.read().split())  # what was buffered here too
        victim.communicate()
    for process in counting:
        acknowledged += map(int, process.communicate(timeout=SECONDS_MAX)[0].split())
        assert process.returncode == 0
    assert len(acknowledged) == len(set(acknowledged))

    async def check(store: SqliteStore) -> None:
        item = await store.get("counter")
        assert item is not None
        # Of each that was killed, the last increment may have been made without anybody having been told.
        assert len(acknowledged) <= int(item.value) <= len(acknowledged) + kills
        assert max(acknowledged) <= int(item.value)

    using(path, check)


def test_a_transaction_of_a_killed_process_was_never_made(path: Path) -> None:
    with holder_of(path) as process:
        process.kill()
        process.wait()

        async def check(store: SqliteStore) -> None:
            assert (await store.transact([], [Put("a", b"2")])).succeeded
            assert await store.get("held") is None

        using(path, check)


def test_a_process_stopped_in_a_transaction_is_ended_and_no_lease_is_lost(path: Path) -> None:
    async def check(store: SqliteStore) -> None:
        lease = await store.grant_lease(30)
        await store.transact([], [Put("leases/a", b"", lease)])
        with holder_of(path) as process:
            stop(process)
            assert await store.renew_lease(lease)
            assert process.wait(10) == -signal.SIGKILL
            assert (await store.transact([], [Put("a", b"2")])).succeeded
            assert await store.get("held") is None
            assert await store.get("leases/a") is not None

    using(path, check, busy_timeout_s=30, stopped_holder_s=0.5)


def test_a_process_that_is_only_slow_is_left_alone(path: Path) -> None:
    async def check(store: SqliteStore) -> None:
        with holder_of(path) as process:
            with pytest.raises(StoreUnavailable, match="nothing was changed"):
                await store.transact([], [Put("a", b"2")])
            assert process.poll() is None
            print(file=process.stdin, flush=True)
            assert process.wait(10) == 0
            assert (await store.transact([], [Put("a", b"3")])).succeeded
            assert await store.get("held") is not None

    using(path, check, busy_timeout_s=1.5, stopped_holder_s=0.3)


def test_one_that_goes_on_in_time_is_left_alone(path: Path) -> None:
    async def check(store: SqliteStore) -> None:
        with holder_of(path) as process:
            stop(process)
            changing = asyncio.ensure_future(store.transact([], [Put("a", b"2")]))
            await asyncio.sleep(0.6)
            process.send_signal(signal.SIGCONT)
            print(file=process.stdin, flush=True)
            assert (await changing).succeeded
            assert process.wait(10) == 0
            assert await store.get("held") is not None

    using(path, check, busy_timeout_s=30, stopped_holder_s=20)


def test_who_holds_the_lock(path: Path) -> None:
    assert find_holder(path) is None
    assert find_holder(path.with_name("absent")) is None
    with holder_of(path) as process:
        found = find_holder(path)
        assert found is not None
        assert (found.pid, found.is_stopped) == (process.pid, False)
        assert found.executable == os.readlink("/proc/self/exe")
        stop(process)
        stopped = find_holder(path)
        assert stopped is not None
        assert stopped.is_stopped
        assert stopped.started_ticks == found.started_ticks
    assert find_holder(path) is None


@pytest.mark.parametrize(
    ("executable", "gap_s", "ended"),
    [(None, 0.1, True), ("/usr/bin/sqlite3", 0.1, False), (None, 5.0, False)],
    ids=["a peer", "another program", "this process was stopped too"],
)
def test_which_stopped_process_is_ended(
    executable: str | None, gap_s: float, ended: bool, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gap_s: between two looks, by a clock that is made up."""
    sleeper = subprocess.Popen(["sleep", "60"], text=True)
    try:
        stop(sleeper)
        holder = Holder(sleeper.pid, 1, True, executable or os.readlink("/proc/self/exe"))
        monkeypatch.setattr(sqlite_holder, "find_holder", lambda database: holder)
        now = [1000.0]
        monkeypatch.setattr(time, "monotonic", lambda: now[0])
        watch = StoppedHolder(path, 5.0)
        for _ in range(100):
            watch.look()
            now[0] += gap_s
        monkeypatch.undo()
        if ended:
            assert sleeper.wait(10) == -signal.SIGKILL
        else:
            assert state_of(sleeper) == "T"
    finally:
        sleeper.kill()
        sleeper.wait()


def test_opening_a_store_again_keeps_the_locks_of_this_process(path: Path) -> None:
    """POSIX gives up all of a process's locks on a file when it closes any descriptor of it."""

    def locks() -> list[str]:
        inode = f":{path.stat().st_ino}"
        lines = Path("/proc/locks").read_text().splitlines()
        return [line.split(maxsplit=1)[1] for line in lines if inode in line and f" {os.getpid()} " in line]

    async def check(store: SqliteStore) -> None:
        await store.get("a")
        before = locks()
        assert before
        again = SqliteStore(path)
        await again.open()
        assert locks() == before
        await again.close()
        assert locks() == before

    using(path, check)
