"""The blocks of a volume that another member owns: each request becomes a frame to that member, and its answer.

A request that was lost on its way may have been carried out. Reads are simply asked again, wherever the blocks are by
then. A change is asked again of the same life of the same member, which remembers what it did [33]; if that life has
ended nobody knows, and the command ends in BUSY, so that its initiator repeats it.
"""

import asyncio
import struct
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final, Protocol

from san_target.peer.frames import FLAG_DURABLE, FLAG_RETRY, Answer, Operation, Request, Status
from san_target.peer.link import PeerUnreachable
from san_target.volume.device import Extent, MediumError, OutOfSpace, Unavailable, VolumeError, WriteProtected
from san_target.volume.origin import ORIGIN, Origin

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from san_target.peer.link import PeerLink
    from san_target.volume.partition_map import Segment

EXTENT: Final = struct.Struct(">QQ?")
"""One extent in the answer to ALLOCATION: LBA, blocks, mapped."""

PATIENCE_S: Final = 20.0
"""How long a command is held for an owner that is away: less than an initiator waits. Then BUSY."""
OUTDATED_S: Final = 3.0
"""When the stamp of a request is surely too old for its owner to begin it."""
RETRY_S: Final = 0.02

READING: Final = frozenset({Operation.READ, Operation.FLUSH, Operation.ALLOCATION, Operation.PREFETCH})
"""What may be carried out twice, or at two members, without anybody seeing it."""


class TryAgain(Unavailable):
    """Not carried out: the map has changed, or the owner cannot be reached now. revision: of a map that knows more."""

    def __init__(self, message: str, revision: int = 0) -> None:
        super().__init__(message)
        self.revision = revision


class Links(Protocol):
    def link(self, member: str) -> "PeerLink | None":
        """The link to the present life of a member; None: there is none that may be used."""
        ...


async def _nobody_unites(lba: int, blocks: int) -> None:
    raise Unavailable(f"blocks {lba}+{blocks} have several owners, and must be changed at one")


class Forwarder:
    """One volume's way to the other members.

    revision: of the map that the requests are made by. requests, bytes: what was sent there so far, and data of it.
    unite: asks for blocks of several owners to be brought to one of them, and returns before they are. Unavailable.
    hurry: has the store's changes looked for that have not arrived here; an owner goes by a younger map.
    """

    def __init__(self, volume_id: str, block_size: int, peers: "Links", attempt_s: float = 2.0) -> None:
        """attempt_s: how long one attempt may take before the map is looked at again."""
        self.block_size: Final = block_size
        self.revision = 0
        self.unite: Callable[[int, int], Awaitable[None]] = _nobody_unites
        self.hurry: Callable[[], None] = lambda: None
        self.requests = 0
        self.bytes = 0
        self._volume_hex: Final = volume_id
        self._volume_id: Final = bytes.fromhex(volume_id)
        self._peers: Final = peers
        self._attempt_s: Final = attempt_s

    def __call__(self, segment: "Segment") -> "RemoteBlocks":
        return RemoteBlocks(self, segment.owner, segment.generation)

    def _origin(self) -> Origin | None:
        """The command that is carried out, if it is one of this volume: a copy also writes to others."""
        origin = ORIGIN.get()
        return origin if origin is not None and origin.volume_id == self._volume_hex else None

    async def perform(
        self,
        owner: str,
        generation: int,
        operation: Operation,
        lba: int,
        blocks: int,
        payload: "Buffer" = b"",
        durable: bool = False,
        answer_bytes: int = 0,
    ) -> Answer:
        """One request, until it is known what became of it. TryAgain, or what the owner says went wrong."""
        origin = self._origin()
        if origin is not None:
            origin.require_wanted()
        request = Request(
            operation,
            self._volume_id,
            lba,
            blocks,
            memoryview(payload),
            answer_bytes,
            generation,
            0 if origin is None else origin.epoch,
            self.revision,
            flags=FLAG_DURABLE if durable else 0,
        )
        self.requests += 1
        self.bytes += len(request.payload) + answer_bytes
        link = self._peers.link(owner)
        if link is None:
            raise TryAgain(f"member {owner!r}, which owns blocks {lba}+{blocks}, cannot be reached")
        answer = await self._ask(link, request, operation in READING)
        tells_revision = answer.status == Status.MOVED or operation == Operation.FLUSH
        if tells_revision and answer.detail > self.revision:
            self.hurry()
        if answer.status == Status.GOOD:
            return answer
        if origin is not None and answer.status == Status.RECHECK:
            origin.epoch = await origin.judge_again(answer.detail)
        elif origin is not None and answer.status == Status.STALE_TICK:
            origin.heard_s = await origin.hear_again()
        raise failure(answer, owner, operation, lba)

    def prepared(
        self, segment: "Segment", operation: Operation, payload: bytes, answer_bytes: int, heard_s: float, epoch: int
    ) -> "tuple[Request, PeerLink] | None":
        """A request without a task: to be given to `try_send` of this link, at once. None: there is no link."""
        owner, lba, blocks, generation = segment
        link = self._peers.link(owner)
        if link is None:
            return None
        self.requests += 1
        self.bytes += len(payload) + answer_bytes
        tick = link.tick_at(heard_s)
        request = Request(
            operation, self._volume_id, lba, blocks, payload, answer_bytes, generation, epoch, self.revision, tick
        )
        return request, link

    async def resume(self, request: Request, link: "PeerLink") -> None:
        """A change that was begun without a task and lost: until it is known what became of it. As `perform`."""
        request.flags |= FLAG_RETRY
        answer = await self._ask(link, request, False)
        if answer.status != Status.GOOD:
            raise failure(answer, link.name, request.operation, request.lba)

    async def _ask(self, link: "PeerLink", request: Request, reading: bool) -> Answer:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        while True:
            origin = self._origin()
            request.tick = link.tick if origin is None else link.tick_at(origin.heard_s)
            if request.flags & FLAG_RETRY and self._peers.link(link.name) is not link:
                raise Unavailable(f"member {link.name!r} ended while it was asked; nobody knows what it did")
            try:
                return await link.request(request, loop.time() + self._attempt_s)
            except PeerUnreachable as error:
                if reading or not (error.maybe_executed or request.flags & FLAG_RETRY):
                    raise TryAgain(str(error)) from error
                # From now on this request is a question to that life of that member: did you do this?
                request.flags |= FLAG_RETRY
                waited_s = loop.time() - began_s
                is_wanted = origin is None or origin.wanted()
                if waited_s > (PATIENCE_S if is_wanted else OUTDATED_S):
                    # Its stamp is old by now, so it is not begun any more; and if it had been begun, it is done before
                    # anything else that the owner does with these blocks.
                    raise Unavailable(f"nobody knows what became of a request: {error}") from error
                await asyncio.sleep(RETRY_S)


class RemoteBlocks:
    """Blocks at `owner`, under one generation: the waiting half of a `BlockDevice`."""

    __slots__ = ("_forwarder", "_generation", "_owner")

    def __init__(self, forwarder: Forwarder, owner: str, generation: int) -> None:
        self._forwarder = forwarder
        self._owner = owner
        self._generation = generation

    async def _change(self, operation: Operation, lba: int, blocks: int, payload: "Buffer", durable: bool) -> Answer:
        return await self._forwarder.perform(self._owner, self._generation, operation, lba, blocks, payload, durable)

    def _blocks_of(self, data: "Buffer") -> int:
        return memoryview(data).nbytes // self._forwarder.block_size

    async def read(self, lba: int, blocks: int) -> "Buffer":
        size = blocks * self._forwarder.block_size
        answer = await self._forwarder.perform(
            self._owner, self._generation, Operation.READ, lba, blocks, answer_bytes=size
        )
        if len(answer.payload) != size:
            raise Unavailable(f"member {self._owner!r} answered {len(answer.payload)} bytes where {size} were asked")
        return answer.payload

    async def write(self, lba: int, data: "Buffer", durable: bool = False) -> None:
        await self._change(Operation.WRITE, lba, self._blocks_of(data), data, durable)

    async def write_same(self, lba: int, blocks: int, block: "Buffer", durable: bool = False) -> None:
        await self._change(Operation.WRITE_SAME, lba, blocks, block, durable)

    async def unmap(self, ranges: Sequence[tuple[int, int]]) -> None:
        for lba, blocks in ranges:
            await self._change(Operation.UNMAP, lba, blocks, b"", False)

    async def compare_and_write(self, lba: int, compare: "Buffer", data: "Buffer", durable: bool = False) -> int | None:
        both = bytes(compare) + bytes(data)
        try:
            await self._change(Operation.COMPARE_AND_WRITE, lba, self._blocks_of(data), both, durable)
        except Miscompare as error:
            return error.offset_bytes
        return None

    async def or_write(self, lba: int, data: "Buffer", durable: bool = False) -> None:
        await self._change(Operation.OR_WRITE, lba, self._blocks_of(data), data, durable)

    async def write_atomic(self, lba: int, data: "Buffer", durable: bool = False) -> None:
        await self._change(Operation.WRITE_ATOMIC, lba, self._blocks_of(data), data, durable)

    async def allocation(self, lba: int, blocks: int, extents_max: int) -> list[Extent]:
        answer = await self._forwarder.perform(
            self._owner,
            self._generation,
            Operation.ALLOCATION,
            lba,
            blocks,
            answer_bytes=extents_max * EXTENT.size,
        )
        return [Extent(*found) for found in EXTENT.iter_unpack(bytes(answer.payload))]

    async def prefetch(self, lba: int, blocks: int) -> None:
        await self._forwarder.perform(self._owner, self._generation, Operation.PREFETCH, lba, blocks)

    async def sanitize_overwrite(self, lba: int, pattern: "Buffer", blocks: int) -> None:
        await self._change(Operation.SANITIZE_OVERWRITE, lba, blocks, pattern, True)

    async def flush_all(self, lba: int, blocks: int) -> int:
        """All that the member owns of the range, wherever it begins and ends; the revision of the map it went by."""
        return (await self._forwarder.perform(self._owner, 0, Operation.FLUSH, lba, blocks)).detail

    async def sanitize_erase(self) -> None:
        await self._change(Operation.SANITIZE_ERASE, 0, 0, b"", True)


class Miscompare(VolumeError):
    """A COMPARE AND WRITE found something else; at this byte."""

    def __init__(self, offset_bytes: int) -> None:
        super().__init__(f"miscompare at byte {offset_bytes}")
        self.offset_bytes = offset_bytes


def failure(answer: Answer, owner: str, operation: int, lba: int) -> VolumeError:
    """What an answer that is not GOOD means here. Anything that may be different the next time is a TryAgain."""
    reason = bytes(answer.payload).decode(errors="replace")
    kind = _FAILURES.get(answer.status)
    if kind is not None:
        return kind(f"member {owner!r}: {reason}")
    match answer.status:
        case Status.MEDIUM_ERROR:
            return MediumError(answer.detail, f"member {owner!r}: {reason}", operation not in READING)
        case Status.MISCOMPARE:
            return Miscompare(answer.detail)
        case Status.MOVED:
            return TryAgain(f"blocks at {lba} are not at member {owner!r} any more", answer.detail)
    return TryAgain(f"member {owner!r}: {Status(answer.status).name} {reason}")


_FAILURES: Final[dict[int, Callable[[str], VolumeError]]] = {
    Status.OUT_OF_SPACE: OutOfSpace,
    Status.WRITE_PROTECTED: WriteProtected,
    Status.FENCED: Unavailable,
    Status.MALFORMED: Unavailable,
    Status.FAILED: Unavailable,
}
