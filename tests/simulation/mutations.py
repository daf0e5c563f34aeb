"""Rules taken out of the product, one by one: what the mutants of `mutants` change, but for those of migrations."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from san_target.group.membership import Membership
from san_target.peer.frames import Status
from san_target.peer.link import PeerUnreachable
from san_target.scsi.logical_unit import LogicalUnit
from san_target.server.member import Member
from san_target.server.succession import Succession
from san_target.server.unit_states import UnitStates
from san_target.server.vigilance import Vigilance
from san_target.session.tasks import TaskBarrier
from san_target.storage.journal import Journal
from san_target.storage.memory import MemoryFile
from san_target.volume import forward, owner
from san_target.volume.forward import TryAgain
from san_target.volume.local import LocalBlocks
from san_target.volume.owner import Owner, Remembered
from san_target.volume.range_locks import RangeLocks
from san_target.volume.volume import Volume

Patch = tuple[object, str, Any]

# --- what is dropped --------------------------------------------------------------------------------------------------


def flush_remembers_failures_as_success() -> list[Patch]:
    def fail(self: MemoryFile, reason: str) -> None:
        if not reason.startswith("fdatasync failed"):
            self._failure = self._failure or reason

    return [(MemoryFile, "fail", fail)]


def flush_is_skipped_after_a_change() -> list[Patch]:
    """A change that ended while the fdatasync ran counts as flushed."""

    async def flush_after(self: LocalBlocks, running: Any) -> None:
        if running is not None:
            await asyncio.wait([running])
        self._flush_running, self._flush_next = self._flush_next, None
        try:
            await self._threads.start_slow(self._file.flush)
            self._changes_flushed = self._changes
        finally:
            self._flush_running = None

    return [(LocalBlocks, "_flush_after", flush_after)]


def flush_joins_one_that_runs() -> list[Patch]:
    original = LocalBlocks.flush

    async def flush(self: LocalBlocks, lba: int, blocks: int) -> None:
        if self._flush_running is None:
            await original(self, lba, blocks)
            return
        await asyncio.wait([self._flush_running])
        if self._file.failed:
            await original(self, lba, blocks)

    return [(LocalBlocks, "flush", flush)]


def locks_are_ignored() -> list[Patch]:
    return [
        (RangeLocks, "conflicts", lambda _self, _start, _blocks, _exclusive: False),
        (RangeLocks, "_earlier", lambda _self, _start, _end, _exclusive: []),
    ]


def reads_at_once_ignore_locks() -> list[Patch]:
    original = RangeLocks.conflicts

    def conflicts(self: RangeLocks, start: int, blocks: int, exclusive: bool) -> bool:
        return exclusive and original(self, start, blocks, exclusive)

    return [(RangeLocks, "conflicts", conflicts)]


def atomic_writes_have_no_journal() -> list[Patch]:
    def write_in(
        self: Journal,
        slot: int,
        volume_id: str,
        place: Any,
        offset_bytes: int,
        payload: bytes,
        on_journaled: Any = None,
    ) -> None:
        place.write(offset_bytes, payload, durable=True)

    return [(Journal, "_write_in", write_in)]


def barriers_do_not_wait() -> list[Patch]:
    def initialize(self: TaskBarrier, tasks: Any, done: Callable[[], None]) -> None:
        self._left, self._done = -1, done
        list(tasks)
        done()

    return [(TaskBarrier, "__init__", initialize)]


def journal_is_not_replayed() -> list[Patch]:
    def replay(self: Journal, find: Any) -> int:
        for slot in range(self._slots):
            self._free.put(slot)
            self._usable += 1
        self._replayed = True
        return 0

    return [(Journal, "replay", replay)]


def nothing_is_flushed_at_the_end() -> list[Patch]:
    async def flush(_self: Member) -> None:
        pass

    return [(Member, "_flush", flush)]


def force_unit_access_is_ignored() -> list[Patch]:
    original = LocalBlocks.write

    async def write(self: LocalBlocks, lba: int, data: Any, durable: bool = False) -> None:
        await original(self, lba, data, False)

    return [(LocalBlocks, "write", write)]


# --- what is dropped: between members ---------------------------------------------------------------------------------


def flush_stays_at_home() -> list[Patch]:
    async def flush(self: Volume, lba: int, blocks: int) -> None:
        await self._local.flush(lba, blocks)

    return [(Volume, "flush", flush)]


def others_are_not_asked_at_a_login() -> list[Patch]:
    async def succeed(_self: Succession, _volume_id: str, _name: str, _isid: bytes, _address: str) -> str:
        return ""

    return [(Succession, "succeed", succeed)]


def results_are_forgotten() -> list[Patch]:
    return [(Remembered, "find", lambda _self, _request_id: None)]


def a_new_life_is_asked_again() -> list[Patch]:
    """What was lost is sent once more, to whoever has the blocks now."""
    original = forward.failure

    async def resume(self: Volume, request: Any, link: Any, lba: int, data: bytes) -> None:
        await self.write(lba, data)

    async def ask(self: forward.Forwarder, link: Any, request: Any, reading: bool) -> Any:
        request.tick = link.tick
        try:
            return await link.request(request, asyncio.get_running_loop().time() + self._attempt_s)
        except PeerUnreachable as error:
            raise TryAgain(str(error)) from error

    return [(Volume, "_resume_write", resume), (forward.Forwarder, "_ask", ask), (forward, "failure", original)]


def all_parts_are_done_again() -> list[Patch]:
    """What is done is repeated when another part has to be tried again."""
    original = Volume._try_parts

    async def try_parts(self: Volume, segments: Any, perform: Any, done: Any) -> Any:
        found: list[Any] = []
        failed = await original(self, segments, perform, found)
        if failed:
            error = failed[0][1]
            return [(segment, error) for segment in segments]
        done += found
        return failed

    return [(Volume, "_try_parts", try_parts)]


def members_are_not_asked_at_a_preempt() -> list[Patch]:
    async def everyone_has(_self: UnitStates, _volume_id: str, _epoch: int) -> None:
        pass

    return [(UnitStates, "everyone_has", everyone_has)]


def lease_does_not_matter() -> list[Patch]:
    return [(Membership, "is_valid", lambda _self: True)]


def flags_are_not_refreshed() -> list[Patch]:
    return [(LogicalUnit, "refresh_all", lambda _self: None)]


def standing_still_is_not_noticed() -> list[Patch]:
    return [(Vigilance, "_look_still", lambda _self, _now_s: False)]


def stamps_do_not_age() -> list[Patch]:
    return [(owner, "STALE_TICKS", 1 << 40)]


def epochs_do_not_matter() -> list[Patch]:
    """Owners carry out what was judged by reservations of before."""
    original = Owner._check

    def check(self: Owner, peer: Any, request: Any, volume: Any) -> None:
        try:
            original(self, peer, request, volume)
        except owner._Refused as refused:
            if refused.status != Status.RECHECK:
                raise

    return [(Owner, "_check", check)]
