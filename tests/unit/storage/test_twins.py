"""The twins misbehave as their scripts say, and the checked file notices every silent fault."""

import asyncio

import pytest

from san_target.storage.checked import CheckedFile, WrongData
from san_target.storage.faulty import Fault, FaultyFile, Rule, Script
from san_target.storage.interface import BlocksFile, StorageFault, StorageFull, StorageReadOnly
from san_target.storage.memory import MemoryDisk, MemoryFile
from san_target.storage.threads import SynchronousThreads, ThreadPool

SIZE = 1 << 16
A, B = b"a" * 4096, b"b" * 4096


def faulty(*rules: Rule) -> FaultyFile:
    return FaultyFile(MemoryFile(SIZE), Script(list(rules)))


def test_unflushed_sectors_may_be_lost_flushed_ones_never() -> None:
    file = MemoryFile(SIZE)
    file.write(0, A)
    file.flush()
    file.write(0, B)
    file.write(4096, A, durable=True)
    file.write(8192, A)
    file.lose_power(lambda versions: versions[0])
    assert file.read(0, 12288) == A + A + bytes(4096)
    file.write(0, B)
    file.lose_power(lambda versions: versions[-1])
    assert file.read(0, 4096) == B


def test_a_power_failure_tears_between_sectors() -> None:
    file = MemoryFile(SIZE)
    file.write(0, A)
    turns = iter(range(8))
    file.lose_power(lambda versions: versions[next(turns) % 2])
    assert file.read(0, 4096) == (bytes(512) + A[:512]) * 4


def test_an_unflushed_punch_may_be_undone() -> None:
    file = MemoryFile(SIZE)
    file.write(0, A, durable=True)
    file.punch(0, 4096)
    assert file.allocated_bytes() == 0
    file.lose_power(lambda versions: versions[0])
    assert file.read(0, 4096) == A


def test_a_simulated_disk_fills_and_heals() -> None:
    disk = MemoryDisk(capacity_bytes=8192)
    one, two = MemoryFile(SIZE, disk), MemoryFile(SIZE, disk)
    one.write(0, A)
    with pytest.raises(StorageFull):
        two.write(0, A + A)
    assert two.read(0, 4096) == A
    one.punch(0, 4096)
    two.write(4096, B)
    assert disk.free_bytes() == 0


@pytest.mark.parametrize(
    ("fault", "kind"), [(Fault.ERROR, StorageFault), (Fault.READ_ONLY, StorageReadOnly), (Fault.FULL, StorageFull)]
)
def test_scripted_errors_strike_as_often_as_told(fault: Fault, kind: type[Exception]) -> None:
    file = faulty(Rule("write", fault, after=1, times=2))
    file.write(0, A)
    for _time in range(2):
        with pytest.raises(kind):
            file.write(0, A)
    file.write(0, A)


def test_a_threatened_call_is_left_to_the_blocking_way() -> None:
    file = faulty(Rule("write", Fault.LOST, 0, 4096), Rule("read", Fault.STALE, 8192, 12288))
    assert file.try_write(0, A) == 0
    assert file.try_write(4096, A) == 4096
    assert not file.try_read_into(8192, memoryview(bytearray(512)))


def test_delays_are_injected() -> None:
    delays: list[int] = []
    file = FaultyFile(
        MemoryFile(SIZE),
        Script([Rule("read", Fault.DELAY), Rule("flush", Fault.DELAY)]),
        lambda: delays.append(1),
    )
    file.read(0, 512)
    file.flush()
    assert len(delays) == 2


def test_a_scripted_flush_failure_is_for_ever() -> None:
    file = faulty(Rule("flush", Fault.ERROR))
    for _time in range(2):
        with pytest.raises(StorageFault):
            file.flush()
    assert file.failed


@pytest.mark.parametrize(
    "rule",
    [
        Rule("write", Fault.LOST, after=1),
        Rule("write", Fault.CUT, after=1),
        Rule("write", Fault.MISPLACED, after=1),
        Rule("read", Fault.STALE),
        Rule("read", Fault.MISPLACED),
    ],
)
def test_the_checked_file_notices_silent_faults(rule: Rule) -> None:
    file = CheckedFile(faulty(rule))
    file.write(0, A)
    file.write(0, B)
    with pytest.raises(WrongData):
        file.read(0, 4096)


def test_the_checked_file_notices_a_lost_punch_and_a_hole_with_data() -> None:
    file = CheckedFile(faulty(Rule("punch", Fault.LOST)))
    file.write(0, A)
    file.punch(0, 4096)
    with pytest.raises(WrongData):
        file.read(0, 4096)
    inner = MemoryFile(SIZE)
    outer = CheckedFile(inner)
    outer.write(0, A)
    inner.punch(0, 4096)
    with pytest.raises(WrongData):
        outer.extents(0, SIZE, 512, 8)


def test_the_checked_file_forgets_what_is_undefined() -> None:
    file = CheckedFile(faulty(Rule("write", Fault.TORN, after=1)))
    file.write(0, A)
    with pytest.raises(StorageFault):
        file.write(0, B)
    assert file.read(0, 4096) == B[:2048] + A[2048:]


@pytest.mark.parametrize("wrap", [lambda file: file, CheckedFile, lambda file: FaultyFile(file, Script())])
def test_all_keep_the_contract(wrap) -> None:
    file: BlocksFile = wrap(MemoryFile(SIZE))
    file.write(100, b"hello")
    assert file.try_write(512, A) == 4096
    into = bytearray(4096)
    assert file.try_read_into(512, memoryview(into))
    assert into == A
    assert file.read(100, 5) == b"hello"
    file.reserve(32768, 4096)
    file.prefetch(0, 4096)
    file.resize(SIZE * 2)
    assert file.size_bytes == SIZE * 2
    assert file.read(SIZE, SIZE) == bytes(SIZE)
    file.resize(512)
    file.resize(SIZE)
    assert file.read(512, 512) == bytes(512)
    file.flush()
    file.close()
    assert file.failed
    with pytest.raises(StorageFault):
        file.read(0, 512)


@pytest.mark.parametrize("real", [True, False])
def test_threads_give_results_and_errors(real: bool) -> None:
    async def work() -> None:
        threads = ThreadPool(1, 1) if real else SynchronousThreads()
        assert await threads.start(divmod, 7, 3) == (2, 1)
        assert await threads.start_slow(divmod, 7, 3) == (2, 1)
        with pytest.raises(ZeroDivisionError):
            await threads.run(divmod, 1, 0)
        threads.close()

    asyncio.run(work())


def test_a_cancelled_run_ends_its_job() -> None:
    async def work() -> None:
        done: list[int] = []
        threads = SynchronousThreads(lambda: 0.001)
        running = asyncio.create_task(threads.run(done.append, 1))
        await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        while not done:
            await asyncio.sleep(0.001)

    asyncio.run(asyncio.wait_for(work(), 30))
