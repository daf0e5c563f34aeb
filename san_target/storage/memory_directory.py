"""A pool's directory in memory, on a disk that can lose power: for simulation and for tests of crashes.

The model of a power failure, beside that of `memory.MemoryFile`: creations, renames and removals that were not synced
yet have happened up to any of them, in their order. What a killed process did stays, as its kernel goes on.
"""

import errno
import os
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from san_target.storage.directory import VOLUMES, PoolFile
from san_target.storage.memory import PAGE_BYTES, MemoryDisk, MemoryFile
from san_target.storage.records import PoolError

T = TypeVar("T")

_Change = tuple[tuple[str, "_Node | None"], ...]


class Choose(Protocol):
    """Picks one of several, as `random.Random.choice` does."""

    def __call__(self, options: Sequence[T], /) -> T: ...


class _Node:
    """What a name stands for: a small file replaced as a whole, or one of blocks."""

    def __init__(self, data: bytes = b"", file: MemoryFile | None = None) -> None:
        self.data = data
        self.file = file


class MemoryDirectory:
    """A PoolDirectory. It outlives the processes that use it: `process_ended` and `lose_power` say how they ended.

    name: for messages. make_file: a new file of blocks of so many bytes.
    """

    def __init__(
        self,
        disk: MemoryDisk | None = None,
        name: str = "memory",
        make_file: Callable[[int, MemoryDisk], MemoryFile] = MemoryFile,
    ) -> None:
        self.disk = disk or MemoryDisk()
        self._name = name
        self._make_file = make_file
        self._nodes: dict[str, _Node] = {}
        self._unsynced: list[_Change] = []
        self._durable: dict[str, _Node] = {}
        self._removed: list[MemoryFile] = []  # whose blocks are still there, should the removal be undone
        self._is_locked = False

    # How processes end ------------------------------------------------------------------------------------------------

    def process_ended(self) -> None:
        """The process that had the directory locked is gone; what it wrote is in the page cache."""
        self._is_locked = False

    def lose_power(self, choose: Choose) -> None:
        """Become what a power failure leaves. choose: decides between the possible outcomes of what was unfinished."""
        self.process_ended()
        self._nodes = dict(self._durable)
        for change in self._unsynced[: choose(range(len(self._unsynced) + 1))]:
            _apply(change, self._nodes)
        self._unsynced.clear()
        self._durable = dict(self._nodes)
        self._give_back()
        for name in sorted(self._nodes):
            file = self._nodes[name].file
            if file is not None:
                file.lose_power(choose)

    # PoolDirectory ----------------------------------------------------------------------------------------------------

    def make(self) -> None:
        pass

    def lock(self) -> None:
        if self._is_locked:
            raise PoolError(f"the pool {self._name} is in use by another process")
        self._is_locked = True

    def unlock(self) -> None:
        self._is_locked = False

    def exists(self, name: str) -> bool:
        return name in self._nodes

    def names(self, suffix: str) -> list[str]:
        return sorted(name for name in self._nodes if name.startswith(f"{VOLUMES}/") and name.endswith(suffix))

    def read(self, name: str) -> bytes:
        return self._node(name).data

    def write_durably(self, name: str, data: bytes) -> None:
        temporary = f"{name}.new"
        self.disk.before_step("write record")
        if self.disk.free_bytes() < PAGE_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
        self._change((temporary, _Node(data)))
        self.disk.before_step("rename record")
        self.rename(temporary, name)
        self.sync(name.rpartition("/")[0])

    def rename(self, old: str, new: str) -> None:
        self.disk.before_step("rename")
        self._change((new, self._node(old)), (old, None))

    def remove(self, name: str) -> None:
        if name in self._nodes:
            self.disk.before_step("remove")
            file = self._nodes[name].file
            if file is not None:
                self._removed.append(file)
            self._change((name, None))

    def sync(self, directory: str = "") -> None:
        self.disk.before_step("sync directory")
        # As journalling file systems do: what came before in other directories becomes durable with it.
        for change in self._unsynced:
            _apply(change, self._durable)
        self._unsynced.clear()
        self._give_back()

    def _give_back(self) -> None:
        there = {id(node.file) for node in self._nodes.values()}
        for file in self._removed:
            if id(file) not in there:
                file.discard()
        self._removed.clear()

    def has_data(self, name: str) -> bool:
        file = self._node(name).file
        return file is None or file.allocated_bytes() > 0

    def create_file(self, name: str, size_bytes: int) -> PoolFile:
        if name in self._nodes:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
        self.disk.before_step("create")
        file = self._make_file(size_bytes, self.disk)
        self._change((name, _Node(file=file)))
        return file

    def open_file(self, name: str) -> PoolFile:
        file = self._node(name).file
        if file is None:
            raise AssertionError(f"{name} holds no blocks")
        file.reopen()
        return file

    def space(self) -> tuple[int, int]:
        return self.disk.capacity_bytes, max(0, self.disk.free_bytes())

    def _node(self, name: str) -> _Node:
        try:
            return self._nodes[name]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name) from None

    def _change(self, *change: tuple[str, _Node | None]) -> None:
        _apply(change, self._nodes)
        self._unsynced.append(change)


def _apply(change: _Change, nodes: dict[str, _Node]) -> None:
    for name, node in change:
        if node is None:
            nodes.pop(name, None)
        else:
            nodes[name] = node
