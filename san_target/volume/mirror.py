"""The source's side of a piece that is moving away: every change of it is applied at the destination too.

While a mirror is on, whoever changes blocks of its range keeps their range lock until the destination has acknowledged
the same change. The destination gets what is here after the change, not the change: so a write that failed half-way
leaves the same blocks at both.

A mirrored change that fails there is acknowledged from here, and the attempt is spoiled: the piece is copied anew. Only
while it is not known whether the piece has been handed over (`mandatory`) both must have it.
"""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

from san_target.peer.frames import FLAG_DURABLE, Answer, Operation, Request, Status
from san_target.peer.link import PeerUnreachable
from san_target.storage.interface import StorageError
from san_target.volume.device import Unavailable
from san_target.volume.router import NotHere

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from san_target.storage.interface import BlocksFile
    from san_target.storage.threads import Threads

ANSWER_S: Final = 2.0
"""How long the destination may take; longer, and the initiator's write goes on without it."""
STEP_S: Final = 10.0
"""The same for a step that nobody's write waits for."""
RETRY_S: Final = 0.1
FRAME_BYTES: Final = 1 << 20
EXTENTS_MAX: Final = 4096


class MirrorFailed(Exception):
    """The destination did not do what it was asked."""


class MirrorLink(Protocol):
    """What is used here of `peer.link.PeerLink`: the link to one life of the destination."""

    async def request(self, request: Request, deadline_s: float) -> Answer: ...


class Mirror:
    """One attempt at one piece, [start, end).

    spoiled      why its copy is not complete, or "": such an attempt is never committed
    mandatory    it is not known whether the destination owns the piece by now
    writes       how many changes were mirrored
    """

    def __init__(
        self,
        link: MirrorLink,
        volume_id: bytes,
        block_size: int,
        start: int,
        end: int,
        generation: int,
        attempt: int,
        may_serve: Callable[[], bool],
    ) -> None:
        """may_serve: whether this member's lease surely holds; asked while the mirror is mandatory."""
        self.start: Final = start
        self.end: Final = end
        self.attempt: Final = attempt
        self.generation: Final = generation
        self.spoiled = ""
        self.mandatory = False
        self.writes = 0
        self._closed = False
        self._link: Final = link
        self._volume_id: Final = volume_id
        self._block_size: Final = block_size
        self._may_serve: Final = may_serve
        self._resolved = asyncio.Event()

    # What the blocks ask ----------------------------------------------------------------------------------------------

    def wants(self, start: int, end: int) -> bool:
        """Must a change of these blocks be mirrored?"""
        return start < self.end and self.start < end and (not self.spoiled or self.mandatory)

    def stops(self, lba: int, blocks: int) -> bool:
        """Must nothing of these blocks be served now?

        The piece may be the destination's, which serves it as soon as this member hands it over, or its lease ends.
        """
        if not (self._closed or self.mandatory) or lba >= self.end or lba + blocks <= self.start:
            return False
        return self._closed or not self._may_serve()

    def refusal(self) -> Unavailable:
        return NotHere(f"blocks {self.start}-{self.end} are being handed over to another member")

    # What the migration decides ---------------------------------------------------------------------------------------

    def spoil(self, reason: str) -> None:
        """This attempt is not to be committed."""
        self.spoiled = self.spoiled or reason

    def close(self) -> None:
        """The piece is the destination's: nothing of it is served here any more."""
        self._closed = True
        self._resolved.set()

    def release(self) -> None:
        """The piece stays here: what waits for the destination need not."""
        self.spoil("the attempt is over")
        self.mandatory = False
        self._resolved.set()

    # Frames -----------------------------------------------------------------------------------------------------------

    async def ask(
        self,
        operation: Operation,
        lba: int,
        blocks: int,
        payload: "bytes | bytearray | memoryview" = b"",
        patience_s: float = STEP_S,
        durable: bool = False,
        revision: int = 0,
    ) -> None:
        """One step at the destination. MirrorFailed."""
        request = Request(
            operation,
            self._volume_id,
            lba,
            blocks,
            payload,
            generation=self.generation,
            epoch=self.attempt,
            revision=revision,
            flags=FLAG_DURABLE if durable else 0,
        )
        try:
            answer = await self._link.request(request, asyncio.get_running_loop().time() + patience_s)
        except PeerUnreachable as error:
            raise MirrorFailed(str(error)) from error
        if answer.status != Status.GOOD:
            reason = bytes(answer.payload).decode(errors="replace")
            raise MirrorFailed(f"the destination says {Status(answer.status).name} {reason}".rstrip())

    async def follow(
        self, file: "BlocksFile", threads: "Threads", start: int, end: int, data: "Buffer | None" = None
    ) -> None:
        """The blocks [start, end) have changed here, and are locked: returns when this may be acknowledged.

        data: what they hold now; None: it is read. NotHere: they are the destination's, which has not got the change.
        """
        self.writes += 1
        while True:
            try:
                await self._follow(file, threads, start, end, data)
                return
            except (MirrorFailed, StorageError) as error:
                self.spoil(str(error))
                if not self.mandatory:
                    return
            # If it is the destination's, its readers would miss this change; so it cannot be acknowledged yet.
            try:
                await asyncio.wait_for(self._resolved.wait(), RETRY_S)
            except TimeoutError:
                continue
            if self._closed:
                raise self.refusal()
            return

    async def _follow(
        self, file: "BlocksFile", threads: "Threads", start: int, end: int, data: "Buffer | None"
    ) -> None:
        low, high = max(start, self.start), min(end, self.end)
        if data is not None:
            view = memoryview(data).cast("B")
            part = view[(low - start) * self._block_size : (high - start) * self._block_size]
            await self._send(Operation.MIRROR, low, part)
            return
        while low < high:
            extents = await threads.start(
                file.extents, low * self._block_size, (high - low) * self._block_size, self._block_size, EXTENTS_MAX
            )
            for extent in extents:
                low, blocks = extent.offset_bytes // self._block_size, extent.length_bytes // self._block_size
                if extent.is_data:
                    await self.send_blocks(Operation.MIRROR, file, threads, low, blocks)
                else:
                    await self.ask(Operation.MIRROR_UNMAP, low, blocks, b"", ANSWER_S, self.mandatory)
                low += blocks

    async def send_blocks(
        self, operation: Operation, file: "BlocksFile", threads: "Threads", lba: int, blocks: int
    ) -> None:
        """What these blocks, which are locked, hold now."""
        step = FRAME_BYTES // self._block_size
        for start in range(lba, lba + blocks, step):
            count = min(step, lba + blocks - start)
            data = await threads.start(file.read, start * self._block_size, count * self._block_size)
            await self._send(operation, start, memoryview(data))

    async def _send(self, operation: Operation, lba: int, data: memoryview) -> None:
        patience_s = ANSWER_S if operation is Operation.MIRROR else STEP_S
        await self.ask(operation, lba, len(data) // self._block_size, data, patience_s, self.mandatory)
