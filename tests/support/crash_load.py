"""Load that knows what may be found after a crash: writers of stamped blocks, each with a range of its own.

A writer has up to DEPTH commands under way, never two on the same slot. For each block it keeps the versions that may
be on the disk, oldest first; the last one is what a read returns. What the kinds of crash leave:

- the process dies: every acknowledged write is there (the page cache holds it); what was under way may be, by blocks;
- the power fails: what was acknowledged before the last completed flush is there, FUA writes and WRITE ATOMIC too; of
  anything later each block may be there or not;
- WRITE ATOMIC is there as a whole or not at all, in both.
"""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass
from enum import Enum, auto

from tests.support.raw_initiator import (
    GOOD,
    UNMAP,
    Ended,
    RawInitiator,
    read16,
    synchronize_cache,
    unmap_parameters,
    write16,
    write_atomic16,
)
from tests.support.stamps import stamps, versions_of
from tests.support.target import Volume

DEPTH = 6
ATOMIC_UNIT_BYTES = 4096  # VPD page B0: ATOMIC TRANSFER LENGTH GRANULARITY


class Kind(Enum):
    """What a command does. DURABLE ones are on stable storage when they are answered."""

    WRITE = auto()
    FUA = auto()
    ATOMIC = auto()
    UNMAP = auto()


DURABLE = {Kind.FUA, Kind.ATOMIC}


@dataclass(frozen=True)
class Pattern:
    """What a writer does: to how many slots of how many blocks, and its kinds of command (more often = more likely)."""

    slots: int
    slot_blocks: int
    kinds: tuple[Kind, ...]

    @property
    def blocks(self) -> int:
        """The size of a writer's range."""
        return self.slots * self.slot_blocks


SMALL = Pattern(64, 16, (Kind.WRITE, Kind.WRITE, Kind.FUA, Kind.ATOMIC, Kind.ATOMIC, Kind.UNMAP))
LARGE_ATOMIC = Pattern(DEPTH, 256, (Kind.ATOMIC,))
"""Writes as long as they may be, of which a crash is likely to find some half done."""


@dataclass(frozen=True)
class Action:
    """A command on blocks of one slot; version 0 for UNMAP."""

    kind: Kind
    lba: int
    blocks: int
    version: int

    def places(self) -> range:
        return range(self.lba, self.lba + self.blocks)


class Writer:
    """One writer over crashes of its target: `run` until the target is gone, `check` after it has come back."""

    def __init__(
        self, volume: Volume, number: int, chance: random.Random, pattern: Pattern = SMALL, power_fails: bool = False
    ) -> None:
        """number: of this writer, from 0. power_fails: what is not flushed may be lost."""
        self._volume = volume
        self._number = number
        self._chance = chance
        self._pattern = pattern
        self._power_fails = power_fails
        self._first_lba = number * pattern.blocks
        self._version = 0
        self._on_disk: dict[int, list[int]] = {at: [0] for at in self._range()}
        self._under_way: list[Action] = []
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self.acknowledged = 0
        self.flushes = 0

    def _range(self) -> range:
        return range(self._first_lba, self._first_lba + self._pattern.blocks)

    def login(self) -> RawInitiator:
        initiator = RawInitiator(self._volume.portal)
        assert initiator.login(self._volume.iqn, isid=bytes((0x80, 0, 0, 0, 1, self._number))) == 0
        return initiator.ready()

    # --- the load -------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Log in and run in a thread."""
        initiator = self.login()
        self._thread = threading.Thread(target=self._run, args=(initiator,), daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Wait for the end of the target to be seen; raises what went wrong before."""
        assert self._thread is not None
        self._thread.join(60)
        assert not self._thread.is_alive(), "a writer hangs although its target is gone"
        if self._failure is not None:
            raise self._failure

    def _run(self, initiator: RawInitiator) -> None:
        try:
            while True:
                self._batch(initiator)
                if self._chance.random() < 0.3:
                    self._flush(initiator)
        except Ended:
            pass
        except BaseException as error:
            self._failure = error
        finally:
            initiator.close()

    def _batch(self, initiator: RawInitiator) -> None:
        actions = [self._choose(slot) for slot in self._chance.sample(range(self._pattern.slots), DEPTH)]
        self._under_way = list(actions)
        waiting = [(initiator.submit(*_command(action, self._volume.options.block_size)), action) for action in actions]
        for tag, action in waiting:
            if initiator.wait(tag).status == GOOD:
                self._under_way.remove(action)
                self._done(action)
                self.acknowledged += 1
            elif not self._power_fails:
                raise AssertionError(f"{action} failed")
        if self._under_way:  # the disk is gone: nothing more is to be learned
            raise Ended("the disk is gone")

    def _choose(self, slot: int) -> Action:
        kind, slot_blocks = self._chance.choice(self._pattern.kinds), self._pattern.slot_blocks
        unit = max(1, ATOMIC_UNIT_BYTES // self._volume.options.block_size) if kind is Kind.ATOMIC else 1
        offset = self._chance.randrange(0, slot_blocks, unit)
        blocks = self._chance.randrange(unit, slot_blocks - offset + 1, unit)
        self._version += 1
        lba = self._first_lba + slot * slot_blocks + offset
        return Action(kind, lba, blocks, 0 if kind is Kind.UNMAP else self._version)

    def _done(self, action: Action) -> None:
        for at in action.places():
            if self._power_fails and action.kind not in DURABLE:
                self._on_disk[at].append(action.version)
            else:
                self._on_disk[at] = [action.version]

    def _flush(self, initiator: RawInitiator) -> None:
        """Nothing else of this writer is under way: all of its blocks are durable afterwards."""
        result = initiator.command(synchronize_cache())
        if result.status != GOOD:
            assert self._power_fails, f"a flush failed: {result.condition}"
            raise Ended("the disk is gone")
        self._on_disk = {at: versions[-1:] for at, versions in self._on_disk.items()}
        self.flushes += 1

    # --- after the crash ------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Read everything: each block is of a version that may be there. What is found is what counts from now on."""
        initiator = self.login()
        size = self._volume.options.block_size
        found: dict[int, int] = {}
        slot_blocks = self._pattern.slot_blocks
        for lba in self._range()[::slot_blocks]:
            data = initiator.good(read16(lba, slot_blocks), read_bytes=slot_blocks * size)
            found |= dict(enumerate(versions_of(data, lba, size), lba))
        maybe: dict[int, Action] = {at: action for action in self._under_way for at in action.places()}
        for at, version in found.items():
            allowed = {*self._on_disk[at], *((maybe[at].version,) if at in maybe else ())}
            assert version in allowed, f"block {at}: version {version}, allowed {allowed}, under way {maybe.get(at)}"
        for action in self._under_way:
            if action.kind is Kind.ATOMIC:
                there = sum(found[at] == action.version for at in action.places())
                assert there in (0, action.blocks), f"{there} blocks of {action} are there"
        self._under_way = []
        self._on_disk = {at: [version] for at, version in found.items()}
        if self._power_fails:  # what was read may still not be on the disk
            initiator.good(synchronize_cache())
        initiator.logout()


def _command(action: Action, block_size: int) -> tuple[bytes, bytes]:
    """CDB and data."""
    lba, blocks = action.lba, action.blocks
    if action.kind is Kind.UNMAP:
        return UNMAP, unmap_parameters(lba, blocks)
    data = stamps(lba, blocks, action.version, block_size)
    if action.kind is Kind.ATOMIC:
        return write_atomic16(lba, blocks), data
    return write16(lba, blocks, fua=action.kind is Kind.FUA), data
