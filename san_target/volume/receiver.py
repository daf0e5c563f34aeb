"""The destination's side of migrations: pieces that other members bring here, until they are this member's own.

A piece is received in attempts. Each begins with PREPARE, which waits for all that came in the attempt before, and
empties the piece; its frames carry the number of the attempt, and are looked at when they are applied, under the range
lock. SEAL makes the piece durable, HANDOVER makes it served.

The pool's record says what is here in every moment: "receiving" blocks mean nothing, "sealed" ones are complete and may
be this member's already - only the store knows -, "held" ones are.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

import structlog

from san_target.peer.frames import FLAG_DURABLE, Answer, Operation, Request, Status
from san_target.storage.records import HELD, HeldRange, PoolError
from san_target.volume.device import OutOfSpace, VolumeError
from san_target.volume.held import RECEIVING, SEALED, overlapping, with_state, without
from san_target.volume.origin import CHECK, Overtaken
from san_target.volume.partition_map import Placement

if TYPE_CHECKING:
    from san_target.peer.identity import PeerIdentity
    from san_target.volume.local import LocalBlocks
    from san_target.volume.partition_map import MapSnapshot

log = structlog.get_logger()

Respond = Callable[[Answer], None]
HeldChange = Callable[[tuple[HeldRange, ...]], Sequence[HeldRange]]

STEPS: Final = frozenset(
    {
        Operation.PREPARE,
        Operation.COPY,
        Operation.MIRROR,
        Operation.MIRROR_UNMAP,
        Operation.SEAL,
        Operation.HANDOVER,
        Operation.CANCEL,
    }
)
"""The operations of migrations."""
FILLING: Final = frozenset({Operation.COPY, Operation.MIRROR, Operation.MIRROR_UNMAP})
SEEN_S: Final = 2.0


class ReceivingVolume(Protocol):
    """A volume at the destination. `change_held` is durable when it returns, and one at a time."""

    @property
    def local(self) -> "LocalBlocks": ...

    @property
    def held(self) -> tuple[HeldRange, ...]: ...

    @property
    def map_now(self) -> "MapSnapshot": ...

    async def change_held(self, change: HeldChange) -> None:
        """PoolError."""
        ...

    def place(self, start: int, end: int, placement: Placement, revision: int) -> None: ...


class _Refused(Overtaken):
    def __init__(self, status: Status, message: str = "") -> None:
        super().__init__(message or status.name)
        self.status = status


class Reception:
    """One piece of one migration, in its present attempt. is_ready: the piece is empty; under_way: frames that are not
    answered yet."""

    __slots__ = ("attempt", "end", "generation", "idle", "is_over", "is_ready", "source", "start", "under_way")

    def __init__(self, source: tuple[str, int], generation: int, attempt: int, start: int, end: int) -> None:
        self.source = source
        self.generation = generation
        self.attempt = attempt
        self.start = start
        self.end = end
        self.is_ready = False
        self.is_over = False
        self.under_way = 0
        self.idle = asyncio.Event()
        self.idle.set()

    def fits(self, peer: "PeerIdentity", request: Request) -> bool:
        """Is this a frame of this attempt, by the life of the source that began it?"""
        return (
            self.is_ready
            and not self.is_over
            and request.epoch == self.attempt
            and (peer.name, peer.incarnation) == self.source
            and self.start <= request.lba < request.lba + request.blocks <= self.end
        )

    def begin(self) -> None:
        self.under_way += 1
        self.idle.clear()

    def finish(self) -> None:
        self.under_way -= 1
        if not self.under_way:
            self.idle.set()

    async def end_it(self) -> None:
        """Nothing of it is applied any more when this returns."""
        self.is_over = True
        await self.idle.wait()


class Receiver:
    """All receptions of this member.

    volume_of       by the 16 bytes of its id; None: it is not open here
    until_revision  returns when this member has followed the store so far
    """

    def __init__(
        self,
        member_name: str,
        volume_of: Callable[[bytes], ReceivingVolume | None],
        until_revision: Callable[[int], Coroutine[Any, Any, None]],
        spawn: Callable[[Coroutine[Any, Any, None]], object],
    ) -> None:
        self._member_name = member_name
        self._volume_of = volume_of
        self._until_revision = until_revision
        self._spawn = spawn
        self._receptions: dict[tuple[bytes, int], Reception] = {}

    def is_receiving(self, volume_id: bytes, generation: int) -> bool:
        return (volume_id, generation) in self._receptions

    def handle(self, peer: "PeerIdentity", request: Request, respond: Respond) -> None:
        """Answers now, or later. The payload is valid only inside this call."""
        reception = None
        if request.operation in FILLING:
            reception = self._receptions.get((request.volume_id, request.generation))
            volume = self._volume_of(request.volume_id)
            if reception is None or volume is None or not reception.fits(peer, request):
                respond(Answer(request.request_id, Status.MOVED))
                return
            if self._at_once(reception, request, volume.local):
                respond(Answer(request.request_id))
                return
            reception.begin()
        request.payload = bytes(request.payload)
        self._spawn(self._later(peer, request, respond, reception))

    def _at_once(self, reception: Reception, request: Request, local: "LocalBlocks") -> bool:
        # What arrived before goes first: it would overwrite this.
        if request.operation == Operation.MIRROR_UNMAP or request.flags or reception.under_way:
            return False
        fits = len(request.payload) == request.blocks * local.block_size
        return fits and local.try_bring(request.lba, request.payload)

    async def _later(
        self, peer: "PeerIdentity", request: Request, respond: Respond, reception: Reception | None
    ) -> None:
        answer = Answer(request.request_id, Status.FAILED)
        try:
            volume = self._volume_of(request.volume_id)
            if volume is None:
                raise _Refused(Status.UNKNOWN_VOLUME)
            if reception is not None:
                await self._fill(peer, request, volume, reception)
            else:
                await _STEPS[Operation(request.operation)](self, peer, request, volume)
            answer = Answer(request.request_id)
        except _Refused as refused:
            answer = Answer(request.request_id, refused.status, 0, str(refused).encode())
        except OutOfSpace as error:
            answer = Answer(request.request_id, Status.OUT_OF_SPACE, 0, str(error).encode())
        except (VolumeError, PoolError) as error:
            answer = Answer(request.request_id, Status.FAILED, 0, str(error).encode())
        except Exception as error:
            log.error("a step of a migration failed by a defect of this program", peer=peer.name, exc_info=error)
        finally:
            if reception is not None:
                reception.finish()
            respond(answer)

    # Frames -----------------------------------------------------------------------------------------------------------

    async def _fill(
        self, peer: "PeerIdentity", request: Request, volume: ReceivingVolume, reception: Reception
    ) -> None:
        def check() -> None:
            """Under the range lock."""
            if peer.lost or not reception.fits(peer, request):
                raise _Refused(Status.FENCED, "the attempt is over")

        CHECK.set(check)
        local, durable = volume.local, bool(request.flags & FLAG_DURABLE)
        if request.operation == Operation.MIRROR_UNMAP:
            await local.clear(request.lba, request.blocks, durable)
            return
        if len(request.payload) != request.blocks * local.block_size:
            raise _Refused(Status.MALFORMED)
        await local.bring(request.lba, request.payload, durable)

    # Steps ------------------------------------------------------------------------------------------------------------

    async def _prepare(self, peer: "PeerIdentity", request: Request, volume: ReceivingVolume) -> None:
        key = request.volume_id, request.generation
        source = peer.name, peer.incarnation
        before = self._receptions.get(key)
        if before is not None:
            if (before.source[1], before.attempt) >= (source[1], request.epoch) or before.source[0] != source[0]:
                raise _Refused(Status.FENCED, "a later attempt has begun")
            # Whatever it sent in the attempt before has been applied, or is discarded [6].
            await before.end_it()
        reception = self._receptions[key] = Reception(source, request.generation, request.epoch, *_range_of(request))
        try:
            await self._empty(peer, request, volume)
        except BaseException:
            if self._receptions.get(key) is reception:
                del self._receptions[key]
            raise
        reception.is_ready = True

    async def _empty(self, peer: "PeerIdentity", request: Request, volume: ReceivingVolume) -> None:
        await self._seen(request.revision)
        start, end = _range_of(request)
        if not 0 <= start < end <= volume.local.blocks:
            raise _Refused(Status.MALFORMED, "these are no blocks of the volume")

        def check() -> None:
            """Under the lock, so that whatever empties these blocks has ended [5]."""
            owners = {segment.owner for segment in volume.map_now.segments(start, end - start)}
            if owners != {peer.name}:
                raise _Refused(Status.BUSY, "the blocks are not the source's by the map here")
            for known in overlapping(volume.held, start, end):
                if known.state == HELD or known.generation != request.generation:
                    raise _Refused(Status.BUSY, "an earlier stay of the blocks has not been cleared away yet")
            if peer.lost:
                raise _Refused(Status.FENCED)

        CHECK.set(check)
        # Recorded first: whatever lies there from now on is to be cleared away.
        await volume.local.check_unserved(start, end - start)
        await volume.change_held(lambda held: with_state(held, start, end, request.generation, RECEIVING))
        await volume.local.clear(start, end - start)

    async def _seen(self, revision: int) -> None:
        """The source has seen this revision; what it does makes sense only to those who have, too."""
        try:
            await asyncio.wait_for(self._until_revision(revision), SEEN_S)
        except TimeoutError:
            raise _Refused(Status.BUSY, "the store's changes have not arrived here yet") from None

    async def _seal(self, peer: "PeerIdentity", request: Request, volume: ReceivingVolume) -> None:
        """Without the flag only what is there by now is made durable, so that sealing takes less time."""
        reception = self._receptions.get((request.volume_id, request.generation))
        if reception is None or not reception.fits(peer, request):
            raise _Refused(Status.MOVED, "the attempt is over")
        await volume.local.flush(reception.start, reception.end - reception.start)
        if not request.flags & FLAG_DURABLE:
            return
        await reception.idle.wait()
        await volume.local.flush(reception.start, reception.end - reception.start)
        start, end, generation = reception.start, reception.end, reception.generation
        if not reception.fits(peer, request):
            raise _Refused(Status.MOVED, "the attempt is over")
        await volume.change_held(lambda held: with_state(held, start, end, generation, SEALED))

    async def _handover(self, _peer: "PeerIdentity", request: Request, volume: ReceivingVolume) -> None:
        """The source has seen the commit, and serves the piece no more. Also asked of a later life of this member."""
        await self.take_over(
            volume, request.volume_id, request.generation, request.lba, request.lba + request.blocks, request.revision
        )

    async def take_over(
        self, volume: ReceivingVolume, volume_id: bytes, generation: int, start: int, end: int, revision: int
    ) -> None:
        """Serve what was sealed. Once more is harmless. Only when nobody else serves it, nor will."""
        known = overlapping(volume.held, start, end)
        is_whole = sum(piece.end_lba - piece.start_lba for piece in known) == end - start
        if not is_whole or any(each.generation != generation or each.state not in (SEALED, HELD) for each in known):
            raise _Refused(Status.FAILED, "the piece was not sealed here")
        # The reception stays until the piece is served: whoever looks meanwhile must not take it for left over.
        reception = self._receptions.get((volume_id, generation))
        if reception is not None and reception.start < end and start < reception.end:
            await reception.end_it()
        await volume.change_held(lambda held: with_state(held, start, end, generation, HELD))
        volume.place(start, end, Placement(self._member_name, generation=generation), revision)
        if reception is not None and reception.is_over:
            self._forget(volume_id, reception)

    def _forget(self, volume_id: bytes, reception: Reception) -> None:
        key = volume_id, reception.generation
        if self._receptions.get(key) is reception:
            del self._receptions[key]

    async def _cancel(self, peer: "PeerIdentity", request: Request, volume: ReceivingVolume) -> None:
        """The source knows that this attempt is not and will not be committed."""
        reception = self._receptions.get((request.volume_id, request.generation))
        if reception is not None:
            if not reception.fits(peer, request):
                raise _Refused(Status.FENCED, "a later attempt has begun")
            del self._receptions[(request.volume_id, request.generation)]
            await reception.end_it()
        await self.discard(volume, request.volume_id, request.generation, *_range_of(request))

    async def discard(
        self,
        volume: ReceivingVolume,
        volume_id: bytes,
        generation: int,
        start: int,
        end: int,
        still: Callable[[], bool] = lambda: True,
    ) -> None:
        """Clear away what was received and is surely not this member's, nor will be [2]; unless it is received anew.

        still: whether that is so; asked again under the lock.
        """

        def check() -> None:
            known = overlapping(volume.held, start, end)
            is_new = (volume_id, generation) in self._receptions or any(each.state == HELD for each in known)
            if is_new or not still():
                raise _Refused(Status.BUSY, "the blocks are received anew, or this member's by now")

        def forget(held: tuple[HeldRange, ...]) -> tuple[HeldRange, ...]:
            check()
            return without(held, start, end, generation)

        for piece in overlapping(volume.held, start, end):
            if piece.state != HELD and piece.generation == generation:
                token = CHECK.set(check)
                try:
                    await volume.local.clear(piece.start_lba, piece.end_lba - piece.start_lba)
                finally:
                    CHECK.reset(token)
        await volume.change_held(forget)

    async def end_all(self) -> None:
        """This life of the member is over: sources begin anew with the next one."""
        receptions, self._receptions = self._receptions, {}
        for reception in receptions.values():
            await reception.end_it()

    async def end_of(self, volume_id: bytes, generation: int) -> None:
        """One migration is over."""
        reception = self._receptions.pop((volume_id, generation), None)
        if reception is not None:
            await reception.end_it()


def _range_of(request: Request) -> tuple[int, int]:
    return request.lba, request.lba + request.blocks


_STEPS: Final = {
    Operation.PREPARE: Receiver._prepare,
    Operation.SEAL: Receiver._seal,
    Operation.HANDOVER: Receiver._handover,
    Operation.CANCEL: Receiver._cancel,
}
