"""A volume over simulated or real blocks, for the tests of this folder and for the properties."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from san_target.storage.checked import CheckedFile
from san_target.storage.interface import BlocksFile
from san_target.storage.journal import Journal
from san_target.storage.memory import MemoryFile
from san_target.storage.records import HeldRange
from san_target.storage.threads import SynchronousThreads, Threads
from san_target.volume.partition_map import PartitionMap, Placement, Segment
from san_target.volume.volume import Volume

VOLUME_ID = "0123456789abcdef" * 2


class HeldJobs(SynchronousThreads):
    """Threads whose jobs run when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[tuple[Callable[[], None], str]] = []

    def start(self, function: Callable[..., Any], *arguments: Any) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def job() -> None:
            try:
                future.set_result(function(*arguments))
            except Exception as error:
                future.set_exception(error)

        self.waiting.append((job, function.__name__))
        return future

    def names(self) -> list[str]:
        return [name for _job, name in self.waiting]

    def run_next(self) -> None:
        self.waiting.pop(0)[0]()


def make_volume(
    file: BlocksFile | None = None,
    threads: Threads | None = None,
    block_size: int = 512,
    blocks: int = 1024,
    journal_file: BlocksFile | None = None,
    write_through: bool = False,
    held: tuple[HeldRange, ...] | None = None,
    remote: Any = None,
) -> Volume:
    """All blocks owned and held by member "a", unless told otherwise."""
    journal = None
    if journal_file is not None:
        journal = Journal(journal_file)
        journal.replay(lambda _volume, _offset, _length: None)
    return Volume(
        VOLUME_ID,
        block_size,
        blocks,
        PartitionMap(blocks, Placement("a", generation=1)).snapshot(),
        "a",
        file or CheckedFile(MemoryFile(blocks * block_size)),
        held or (HeldRange(0, blocks, 1),),
        threads or SynchronousThreads(),
        journal,
        write_through,
        remote,
    )


class Elsewhere:
    """A way to the blocks of other members that leads straight into another volume."""

    def __init__(self, other: Volume) -> None:
        self._other = other
        self.revision = 0

    def __call__(self, _segment: Segment) -> Any:
        return self

    async def flush_all(self, lba: int, blocks: int) -> int:
        await self._other.flush(lba, blocks)
        return self._other.revision

    def __getattr__(self, name: str) -> Any:
        return getattr(self._other.local, name)


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 60))


async def settle() -> None:
    """Let everything run that can."""
    for _turn in range(10):
        await asyncio.sleep(0)
