"""A volume as `scsi` sees it: consults the partition map, serves what is here, and passes on what is not.

A request whose blocks have several owners is done part by part, side by side; parts that are done are not repeated when
another one has to be tried again. What must be atomic has one owner.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final, TypeVar

from san_target.peer.frames import GOOD, Answer, Operation, Request, Status
from san_target.storage.records import HeldRange, resized
from san_target.volume.device import Done, Extent, MediumError, NotAtomic, Unavailable, VolumeError
from san_target.volume.forward import PATIENCE_S, Forwarder, RemoteBlocks, TryAgain
from san_target.volume.local import LocalBlocks
from san_target.volume.origin import ORIGIN
from san_target.volume.partition_map import LOST, Segment
from san_target.volume.router import NotHere, Router, uncut

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from san_target.peer.link import PeerLink
    from san_target.storage.interface import BlocksFile
    from san_target.storage.journal import Journal
    from san_target.storage.threads import Threads
    from san_target.volume.mirror import Mirror
    from san_target.volume.partition_map import MapSnapshot, Placement

T = TypeVar("T")
Perform = Callable[["LocalBlocks | RemoteBlocks", Segment], Awaitable[T]]
Cut = Callable[[int, int], list[Segment]]

RETRY_S_MIN: Final = 0.002
RETRY_S_MAX: Final = 0.25


class Volume:
    """Implements `device.BlockDevice`."""

    __slots__ = (
        "_blocks_ever",
        "_direct",
        "_file_try_read_into",
        "_forwarder",
        "_local",
        "_locks",
        "_map_changed",
        "_placed",
        "_router",
        "_told_revision",
        "block_size",
        "blocks",
        "reread",
        "try_view",
        "try_write",
        "volume_id",
    )

    def __init__(
        self,
        volume_id: str,
        block_size: int,
        blocks: int,
        map_snapshot: "MapSnapshot",
        member_name: str,
        blocks_file: "BlocksFile",
        held: Sequence[HeldRange],
        threads: "Threads",
        journal: "Journal | None" = None,
        write_through: bool = False,
        remote: Forwarder | None = None,
        revision: int = 0,
    ) -> None:
        """volume_id: 32 hex digits; blocks_file and held: from `Pool.open_volume`; journal: `Pool.journal`.

        remote: the way to other members (None: there are none); revision: of the store, when the map last changed.
        """
        self.volume_id: Final = volume_id
        self.block_size: Final = block_size
        self.blocks = blocks
        self._map_changed = asyncio.Event()
        self._router = Router(map_snapshot, member_name, held, revision)
        self._local: Final = LocalBlocks(
            volume_id, block_size, blocks, blocks_file, self._router, threads, journal, write_through
        )
        self._locks: Final = self._local.locks
        self._file_try_read_into: Final = blocks_file.try_read_into
        # What is done at once is done here, without a call in between.
        self.try_view: Final = self._local.try_view
        self.reread: Final = self._local.reread
        self.try_write: Final = self._local.try_write
        self._forwarder = remote
        self._direct = False
        # Migrations that were committed, at revisions that the store has not told of yet.
        self._told_revision = revision
        self._placed: list[tuple[int, int, int, Placement]] = []
        self._blocks_ever = blocks  # the largest number of them there has been
        self._check_size(blocks)

    def _check_size(self, blocks: int) -> None:
        if blocks != self._router.snapshot.blocks:
            raise AssertionError(f"{blocks} blocks, but the map has {self._router.snapshot.blocks}")
        self.blocks = self._local.blocks = blocks
        self._blocks_ever = max(blocks, self._blocks_ever)
        self._direct = self._router.whole and self._local.mirror is None
        if self._forwarder is not None:
            self._forwarder.revision = self._router.revision
        # Whoever waits for a change of the map has seen this one.
        self._map_changed.set()
        self._map_changed = asyncio.Event()

    @property
    def local(self) -> LocalBlocks:
        """The blocks that are here."""
        return self._local

    @property
    def revision(self) -> int:
        """Of the store, when the map last changed."""
        return self._router.revision

    @property
    def refusal(self) -> str:
        """Why this member's disk refuses changes now (its file system became read-only), or ""."""
        return self._local.refusal

    # Changes of map and size ------------------------------------------------------------------------------------------

    def update(self, map_snapshot: "MapSnapshot", held: Sequence[HeldRange], revision: int | None = None) -> None:
        """The map or the held record has changed (not the size). Requests that wait for a lock see the new one."""
        self._route(map_snapshot, held, revision)
        self._check_size(self.blocks)

    def place(self, start: int, end: int, placement: "Placement", held: Sequence[HeldRange], revision: int) -> None:
        """A migration was committed at this revision: its member hears of it before the store tells."""
        if revision > self._told_revision:
            self._placed.append((revision, start, end, placement))
        # The map from the store stays what it is; this lies over it.
        self._route(self._router.snapshot, held, self._told_revision)
        self._check_size(self.blocks)

    @property
    def snapshot(self) -> "MapSnapshot":
        """The map that is served by."""
        return self._router.snapshot

    @property
    def mirror(self) -> "Mirror | None":
        """The piece that is moving away."""
        return self._local.mirror

    @mirror.setter
    def mirror(self, mirror: "Mirror | None") -> None:
        self._local.mirror = mirror
        self._check_size(self.blocks)

    async def resize(
        self,
        new_blocks: int,
        map_snapshot: "MapSnapshot | None" = None,
        held: Sequence[HeldRange] | None = None,
        revision: int | None = None,
    ) -> None:
        """Serve `new_blocks` from now on. Grow after `Pool.resize_volume`, shrink before it.

        When this returns after a shrink, no request to the cut blocks is under way. Without a map and held record the
        last range grows or is cut.
        """
        old_blocks = self.blocks
        if map_snapshot is None:
            map_snapshot = self._router.snapshot.resized(new_blocks)
        if held is None:
            generation = self._router.snapshot.last.generation
            held = resized(self._router.held, old_blocks, new_blocks, generation)
        self._route(map_snapshot, held, revision)
        self._check_size(new_blocks)
        if new_blocks < old_blocks:
            lock = await self._locks.acquire(new_blocks, old_blocks - new_blocks, True)
            self._locks.release(lock)

    def _route(self, map_snapshot: "MapSnapshot", held: Sequence[HeldRange], revision: int | None = None) -> None:
        old = self._router
        if revision is not None:
            self._told_revision = revision
        if self._placed:
            # What the store has not told yet must not be lost by what it tells now.
            self._placed = [each for each in self._placed if each[0] > self._told_revision]
            for _revision, start, end, placement in self._placed:
                if start < map_snapshot.blocks:
                    map_snapshot = map_snapshot.replaced(start, min(end, map_snapshot.blocks), placement)
        # Whoever asks by an older map than this is told so: also by a flush.
        known = max((each[0] for each in self._placed), default=0)
        self._router = self._local.router = Router(map_snapshot, old.member_name, held, max(self._told_revision, known))

    def retire(self) -> None:
        """Begin nothing any more, whoever asks; then `drain`, and the file can be closed. There is no way back."""
        self._route(self._router.snapshot, ())
        self._direct = False
        self._local.retire()

    async def drain(self) -> None:
        """Wait until all that was begun here has ended, also what was cancelled. Needed before the file is closed."""
        await self._local.drain()

    # At once ----------------------------------------------------------------------------------------------------------

    def try_read_into(self, lba: int, blocks: int, into: memoryview) -> bool:
        if self._direct and self._locks.idle:
            return self._file_try_read_into(lba * self.block_size, into)
        return self._local.try_read_into(lba, blocks, into)

    # Begun here, done elsewhere ---------------------------------------------------------------------------------------

    def _only_remote(self, lba: int, blocks: int) -> "Segment | None":
        """The range, if all of it belongs to one other member."""
        if self._direct or self._forwarder is None:
            return None
        segment = self._router.snapshot.only_segment(lba, blocks)
        if segment is None or segment.owner == LOST or segment.owner == self._router.member_name:
            return None
        return segment

    def start_read(self, lba: int, blocks: int, heard_s: float, epoch: int, done: Done) -> bool:
        segment = self._only_remote(lba, blocks)
        if segment is None or self._forwarder is None:
            return False
        size = blocks * self.block_size
        prepared = self._forwarder.prepared(segment, Operation.READ, b"", size, heard_s, epoch)
        if prepared is None:
            return False
        request, link = prepared

        def ended(answer: "Answer") -> None:
            if answer.status == GOOD and len(answer.payload) == size:
                done(answer.payload, None)
            else:
                done(None, lambda: self.read(lba, blocks))

        return link.try_send(request, ended)

    def start_write(self, lba: int, data: "Buffer", heard_s: float, epoch: int, done: Done) -> bool:
        payload = bytes(data)
        segment = self._only_remote(lba, len(payload) // self.block_size)
        if segment is None or self._forwarder is None:
            return False
        prepared = self._forwarder.prepared(segment, Operation.WRITE, payload, 0, heard_s, epoch)
        if prepared is None:
            return False
        request, link = prepared

        def ended(answer: "Answer") -> None:
            if answer.status == GOOD:
                done(b"", None)
            elif answer.status in (Status.LOST, Status.TIMED_OUT):
                done(None, lambda: self._resume_write(request, link, lba, payload))
            else:
                done(None, lambda: self.write(lba, payload))

        return link.try_send(request, ended)

    async def _resume_write(self, request: "Request", link: "PeerLink", lba: int, data: bytes) -> None:
        if self._forwarder is None:
            raise AssertionError("a forwarded write without a forwarder")
        try:
            await self._forwarder.resume(request, link)
        except TryAgain:
            await self.write(lba, data)

    # Part by part -----------------------------------------------------------------------------------------------------

    def _segments(self, lba: int, blocks: int) -> "list[Segment]":
        if not 0 <= lba <= lba + blocks <= self.blocks:
            if 0 <= lba <= lba + blocks <= self._blocks_ever:
                # A command in several steps was checked before its first.
                raise Unavailable(f"blocks {lba}+{blocks}: the volume was shrunk to {self.blocks} blocks")
            raise AssertionError(f"blocks {lba}+{blocks} of a volume of {self.blocks}")
        return self._router.segments(lba, blocks)

    def _uncut(self, lba: int, blocks: int) -> "list[Segment]":
        return uncut(self._segments(lba, blocks))

    def _device(self, segment: "Segment") -> "LocalBlocks | RemoteBlocks":
        if segment.owner == self._router.member_name:
            return self._local
        if segment.owner == LOST:
            raise MediumError(segment.lba, "the member that held these blocks was removed, and they are lost")
        return self._remote(segment)

    def _remote(self, segment: "Segment") -> "RemoteBlocks":
        if self._forwarder is None:
            raise Unavailable(f"blocks {segment.lba}+{segment.blocks} are owned by member {segment.owner!r}")
        return self._forwarder(segment)

    async def _each(
        self, lba: int, blocks: int, perform: "Perform[T]", cut: "Cut | None" = None
    ) -> "list[tuple[Segment, T]]":
        """Do it to every part of the range, in order of LBA. Parts run side by side; what is done is not repeated.

        A part that was not carried out, since its blocks are elsewhere by now or their owner cannot be reached, is
        tried again by the map of then, for as long as an initiator waits. Unavailable after that; or what went wrong
        with a part, once all parts have ended.
        """
        deadline_s: float | None = None
        left = [(lba, blocks)]
        done: list[tuple[Segment, T]] = []
        delay_s = RETRY_S_MIN
        while True:
            segments = [segment for start, count in left for segment in (cut or self._segments)(start, count)]
            changed = self._map_changed
            failed = await self._try_parts(segments, perform, done)
            if not failed:
                return sorted(done, key=lambda part: part[0].lba)
            now_s = asyncio.get_running_loop().time()
            deadline_s = deadline_s or now_s + PATIENCE_S
            if now_s >= deadline_s:
                raise failed[0][1]
            if not changed.is_set():
                await _wait(changed, min(delay_s, deadline_s - now_s))
                delay_s = min(delay_s * 2, RETRY_S_MAX)
            origin = ORIGIN.get()
            if origin is not None:
                origin.require_wanted()
            left = [(segment.lba, segment.blocks) for segment, _error in failed]

    async def _try_parts(
        self, segments: "list[Segment]", perform: "Perform[T]", done: "list[tuple[Segment, T]]"
    ) -> "list[tuple[Segment, Unavailable]]":
        """Adds what was done to `done`; returns what may be tried again."""
        devices = [self._device(segment) for segment in segments]
        if len(segments) == 1:
            outcomes = [await _outcome(perform(devices[0], segments[0]))]
        else:
            parts = zip(devices, segments, strict=True)
            outcomes = await asyncio.gather(*(_outcome(perform(device, segment)) for device, segment in parts))
        failed: list[tuple[Segment, Unavailable]] = []
        for segment, outcome in zip(segments, outcomes, strict=True):
            if isinstance(outcome, TryAgain | NotHere):
                failed.append((segment, outcome))
            elif isinstance(outcome, BaseException):
                raise outcome
            else:
                done.append((segment, outcome))
        return failed

    def _part_of(self, lba: int, data: "Buffer") -> "tuple[int, Callable[[Segment], memoryview]]":
        """How many blocks the data is for, and what of it belongs to a segment."""
        view = memoryview(data).cast("B")
        if len(view) % self.block_size:
            raise AssertionError(f"{len(view)} bytes for blocks of {self.block_size}")
        size = self.block_size

        def part(segment: "Segment") -> memoryview:
            return view[(segment.lba - lba) * size : (segment.lba - lba + segment.blocks) * size]

        return len(view) // size, part

    async def _at_one_owner(self, lba: int, blocks: int, perform: "Perform[T]") -> T:
        parts = self._segments(lba, blocks)
        if len(parts) != 1:
            raise NotAtomic(f"blocks {lba}+{blocks} have {len(parts)} owners, and must be changed at one")
        return (await self._each(lba, blocks, perform))[0][1]

    async def read(self, lba: int, blocks: int) -> "Buffer":
        parts = await self._each(lba, blocks, lambda device, part: device.read(part.lba, part.blocks))
        return parts[0][1] if len(parts) == 1 else bytearray().join(memoryview(data) for _part, data in parts)

    async def write(self, lba: int, data: "Buffer", durable: bool = False) -> None:
        blocks, of = self._part_of(lba, data)
        await self._each(lba, blocks, lambda device, part: device.write(part.lba, of(part), durable))

    async def write_same(self, lba: int, blocks: int, block: "Buffer", durable: bool = False) -> None:
        await self._each(lba, blocks, lambda device, part: device.write_same(part.lba, part.blocks, block, durable))

    async def unmap(self, ranges: Sequence[tuple[int, int]]) -> None:
        for lba, blocks in ranges:
            await self._each(lba, blocks, lambda device, part: device.unmap([(part.lba, part.blocks)]))

    async def flush(self, lba: int, blocks: int) -> None:
        """At every owner of the range, by the map: who wrote through which member says nothing of where data is [32].

        One owner may have given up a part of it since the map here was read. It says by which map it went; if that is
        younger, all is flushed again by that one.
        """
        while True:
            revision = self._router.revision
            owners = dict.fromkeys(segment.owner for segment in self._segments(lba, blocks))
            revisions = await asyncio.gather(*(self._flush_at(owner, lba, blocks) for owner in owners))
            newest = max(revisions, default=0)
            if newest <= revision:
                return
            await self._until_revision(newest)

    async def _flush_at(self, owner: str, lba: int, blocks: int) -> int:
        if owner == self._router.member_name:
            await self._local.flush(lba, blocks)
            return self._router.revision
        segment = Segment(owner, lba, blocks, 0)
        deadline_s = asyncio.get_running_loop().time() + PATIENCE_S
        while True:
            try:
                return await self._remote(segment).flush_all(lba, blocks)
            except TryAgain:
                if asyncio.get_running_loop().time() >= deadline_s:
                    raise
                if all(part.owner != owner for part in self._segments(lba, blocks)):
                    return self._router.revision  # it owns nothing of this any more; the others are asked anew
                await _wait(self._map_changed, RETRY_S_MAX)

    async def _until_revision(self, revision: int) -> None:
        deadline_s = asyncio.get_running_loop().time() + PATIENCE_S
        while self._router.revision < revision:
            left_s = deadline_s - asyncio.get_running_loop().time()
            if left_s <= 0:
                raise Unavailable(f"the map of revision {revision} has not arrived here")
            await _wait(self._map_changed, left_s)

    async def compare_and_write(self, lba: int, compare: "Buffer", data: "Buffer", durable: bool = False) -> int | None:
        blocks = self._part_of(lba, data)[0]
        return await self._at_one_owner(
            lba, blocks, lambda device, part: device.compare_and_write(lba, compare, data, durable)
        )

    async def or_write(self, lba: int, data: "Buffer", durable: bool = False) -> None:
        blocks, of = self._part_of(lba, data)
        await self._each(lba, blocks, lambda device, part: device.or_write(part.lba, of(part), durable))

    async def write_atomic(self, lba: int, data: "Buffer", durable: bool = False) -> None:
        blocks = self._part_of(lba, data)[0]
        deadline_s = asyncio.get_running_loop().time() + PATIENCE_S
        while True:
            changed = self._map_changed
            try:
                await self._each(lba, blocks, lambda device, _: device.write_atomic(lba, data, durable), self._uncut)
                return
            except NotAtomic as error:
                if self._forwarder is None or asyncio.get_running_loop().time() >= deadline_s:
                    raise Unavailable(str(error)) from error
                await self._forwarder.unite(lba, blocks)
            await _wait(changed, RETRY_S_MAX)
            origin = ORIGIN.get()
            if origin is not None:
                origin.require_wanted()

    @property
    def atomic_blocks_max(self) -> int:
        return self._local.atomic_blocks_max

    async def allocation(self, lba: int, blocks: int, extents_max: int) -> list[Extent]:
        extents: list[Extent] = []
        for segment in self._segments(lba, blocks):
            parts = await self._each(
                segment.lba,
                segment.blocks,
                lambda device, part: device.allocation(part.lba, part.blocks, extents_max),
            )
            for extent in (extent for _part, found in parts for extent in found):
                last = extents[-1] if extents else None
                if last and last.mapped == extent.mapped:
                    extents[-1] = Extent(last.lba, last.blocks + extent.blocks, last.mapped)
                else:
                    extents.append(extent)
            if len(extents) > extents_max:
                break
        return extents[:extents_max]

    async def prefetch(self, lba: int, blocks: int) -> None:
        await self._each(lba, blocks, lambda device, part: device.prefetch(part.lba, part.blocks))

    async def sanitize_overwrite(self, lba: int, pattern: "Buffer", blocks: int) -> None:
        whole = bytes(pattern)

        def turned(part: "Segment") -> bytes:
            turn = (part.lba - lba) * self.block_size % len(whole)
            return whole[turn:] + whole[:turn]

        await self._each(
            lba, blocks, lambda device, part: device.sanitize_overwrite(part.lba, turned(part), part.blocks)
        )

    async def sanitize_erase(self) -> None:
        owners = dict.fromkeys(segment.owner for segment in self._segments(0, self.blocks))
        for owner in owners:
            await self._device(Segment(owner, 0, self.blocks, 0)).sanitize_erase()


async def _outcome(doing: "Awaitable[T]") -> "T | VolumeError":
    """What came of it, a failure too: other parts go on, and all have ended before anybody hears."""
    try:
        return await doing
    except VolumeError as error:
        return error


async def _wait(event: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)
