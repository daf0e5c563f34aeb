"""What this member does for others with the blocks that it owns.

A request is looked at when it comes and again at execution, under the range lock: is it still this member's range under
that generation [16], is the state of reservations and resets that it was judged by still in force [29], is its stamp
young [28], is its sender still the one that this member listens to? Plain reads and writes of cached, unlocked blocks
are served inside the call; everything else is a task.

The result of a change is remembered until it is surely known, so that a request that is asked again after its link was
lost is answered, and not carried out twice [33].
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

import structlog

from san_target.peer.frames import FLAG_DURABLE, FLAG_RETRY, Answer, Operation, Request, Status
from san_target.volume.device import MediumError, OutOfSpace, Unavailable, VolumeError, WriteProtected
from san_target.volume.forward import EXTENT, READING
from san_target.volume.origin import CHECK, Overtaken
from san_target.volume.receiver import STEPS
from san_target.volume.router import NotHere

if TYPE_CHECKING:
    from san_target.peer.identity import PeerIdentity
    from san_target.peer.service import AnswerMemory
    from san_target.volume.local import LocalBlocks
    from san_target.volume.receiver import Receiver

log = structlog.get_logger()

STALE_TICKS: Final = 4
"""A stamp that is this many ticks old (of half a second each) is refused [28]."""
REVISION_PATIENCE_S: Final = 2.0
"""How long a request waits for this member's watch to see what its sender has seen [9]."""
REMEMBERED_MAX: Final = 8192
"""Results of changes, of each peer: more than a link's credit lets be under way."""

Respond = Callable[[Answer], None]


class OwnedVolume(Protocol):
    """local: the blocks here. revision: of the map here. epoch: of reservations and resets."""

    @property
    def local(self) -> "LocalBlocks": ...

    @property
    def revision(self) -> int: ...

    @property
    def epoch(self) -> int: ...


class _Refused(Overtaken):
    """At execution the request was found to be out of date."""

    def __init__(self, status: Status, detail: int = 0) -> None:
        super().__init__(status.name)
        self.status = status
        self.detail = detail


class Remembered:
    """What became of the changes of one life of one peer: status and detail by request id, the newest ones."""

    __slots__ = ("_results",)

    def __init__(self) -> None:
        self._results: OrderedDict[int, tuple[int, int]] = OrderedDict()

    def note(self, answer: Answer) -> None:
        self._results[answer.request_id] = answer.status, answer.detail
        if len(self._results) > REMEMBERED_MAX:
            self._results.popitem(last=False)

    def find(self, request_id: int) -> Answer | None:
        found = self._results.get(request_id)
        return None if found is None else Answer(request_id, *found)


class Owner:
    """All volumes of this member, for its peers. A `peer.service.Handler` without the control messages.

    volume_of          by the 16 bytes of its id; None: it is not served here
    seen_revision      the store revision up to which this member has followed
    until_revision     returns when that has reached a revision
    tick_now, memory   of the peer service
    receiver           for the steps of migrations
    requests, bytes    what peers asked for so far, and data of it, without those steps
    """

    def __init__(
        self,
        volume_of: Callable[[bytes], OwnedVolume | None],
        seen_revision: Callable[[], int],
        until_revision: Callable[[int], Awaitable[None]],
        spawn: Callable[[Coroutine[Any, Any, None]], object],
    ) -> None:
        self._volume_of = volume_of
        self._seen_revision = seen_revision
        self._until_revision = until_revision
        self._spawn = spawn
        self._remembered: dict[tuple[str, int], Remembered] = {}
        self.requests = 0
        self.bytes = 0
        self.tick_now: Callable[[], int]
        self.memory: AnswerMemory
        self.receiver: Receiver | None = None

    # --- the fast way -------------------------------------------------------------------------------------------------

    def handle(self, peer: "PeerIdentity", request: Request, respond: Respond) -> None:
        """Answers now, or later. The payload is valid only inside this call."""
        operation = request.operation
        if operation in STEPS and self.receiver is not None:
            self.receiver.handle(peer, request, respond)
            return
        self.requests += 1
        self.bytes += len(request.payload) + request.answer_bytes
        if operation == Operation.READ or operation == Operation.WRITE:
            volume = self._volume_of(request.volume_id)
            if volume is not None and not request.flags and not self._is_behind(request, volume):
                try:
                    self._check(peer, request, volume)
                except _Refused as refused:
                    respond(Answer(request.request_id, refused.status, refused.detail))
                    return
                if self._at_once(peer, request, volume.local, respond):
                    return
        request.payload = bytes(request.payload)
        self._spawn(self._later(peer, request, respond))

    def _at_once(self, peer: "PeerIdentity", request: Request, local: "LocalBlocks", respond: Respond) -> bool:
        lba, blocks = request.lba, request.blocks
        if request.operation == Operation.READ:
            if blocks * local.block_size != request.answer_bytes:
                return False
            into = self.memory.take(request.answer_bytes)
            if not local.try_read_into(lba, blocks, into):
                return False
            respond(Answer(request.request_id, payload=into))
            return True
        if len(request.payload) != blocks * local.block_size or not local.try_write(lba, blocks, request.payload):
            return False
        answer = Answer(request.request_id)
        self._remember(peer, answer)
        respond(answer)
        return True

    def _is_behind(self, request: Request, volume: OwnedVolume | None) -> bool:
        """Must this member follow the store before it can answer?

        Not for blocks that it serves under the very generation that its peer knows of: both mean the same stay of them
        here. The map may have changed elsewhere; while a volume migrates it does so many times a second.
        """
        if request.revision <= self._seen_revision():
            return False
        return volume is None or request.operation not in _RANGED or not _serves(volume.local, request)

    def _check(self, peer: "PeerIdentity", request: Request, volume: OwnedVolume) -> None:
        """Whether the request may be carried out now. _Refused."""
        if peer.lost:
            raise _Refused(Status.FENCED)
        operation = request.operation
        if operation in _RANGED and not _serves(volume.local, request):
            raise _Refused(Status.MOVED, volume.revision)
        if operation in READING:
            return
        if request.epoch and request.epoch < volume.epoch:
            raise _Refused(Status.RECHECK, volume.epoch)
        if request.tick + STALE_TICKS < self.tick_now():
            raise _Refused(Status.STALE_TICK)

    # --- the waiting way ----------------------------------------------------------------------------------------------

    async def _later(self, peer: "PeerIdentity", request: Request, respond: Respond) -> None:
        answer = Answer(request.request_id, Status.FAILED)
        try:
            answer = await self._answer(peer, request)
        except Exception as error:
            log.error("a request of a peer failed by a defect of this program", peer=peer.name, exc_info=error)
        finally:
            respond(answer)

    async def _answer(self, peer: "PeerIdentity", request: Request) -> Answer:
        number, changing = request.request_id, request.operation not in READING
        if changing and request.flags & FLAG_RETRY:
            known = self._memory_of(peer).find(number)
            if known is not None:
                return known
        try:
            answer = await self._carry_out(peer, request)
        except _Refused as refused:
            return Answer(number, refused.status, refused.detail)
        except NotHere:
            # While it waited for its lock the blocks have moved away.
            volume = self._volume_of(request.volume_id)
            return Answer(number, Status.MOVED, 0 if volume is None else volume.revision)
        except VolumeError as error:
            answer = Answer(number, *_meaning(error), str(error).encode())
        if changing:
            self._remember(peer, answer)
        return answer

    async def _carry_out(self, peer: "PeerIdentity", request: Request) -> Answer:
        if self._is_behind(request, self._volume_of(request.volume_id)):
            try:
                await asyncio.wait_for(self._until_revision(request.revision), REVISION_PATIENCE_S)
            except TimeoutError:
                raise Unavailable("the store's changes have not arrived here yet") from None
        volume = self._volume_of(request.volume_id)
        if volume is None:
            raise _Refused(Status.UNKNOWN_VOLUME)
        perform = _OPERATIONS.get(Operation(request.operation))
        if perform is None:
            raise _Refused(Status.MALFORMED)
        check = partial(self._check, peer, request, volume)
        check()
        CHECK.set(check)
        answer = await perform(volume.local, request)
        if request.operation == Operation.FLUSH:
            answer.detail = volume.revision
        return answer

    # --- results ------------------------------------------------------------------------------------------------------

    def _remember(self, peer: "PeerIdentity", answer: Answer) -> None:
        self._memory_of(peer).note(answer)

    def _memory_of(self, peer: "PeerIdentity") -> Remembered:
        key = peer.name, peer.incarnation
        memory = self._remembered.get(key)
        if memory is None:
            # A new life of a peer: nobody asks for the older ones' requests any more.
            for old in [known for known in self._remembered if known[0] == peer.name and known[1] < peer.incarnation]:
                del self._remembered[old]
            memory = self._remembered[key] = Remembered()
        return memory


_RANGED: Final = frozenset(Operation) - {Operation.FLUSH, Operation.SANITIZE_ERASE}
"""What is about one range under one generation."""


def _serves(local: "LocalBlocks", request: Request) -> bool:
    """Are the blocks served here, under the generation that the request names?"""
    serves = local.router.serves_up_to if request.operation == Operation.WRITE_ATOMIC else local.router.serves_under
    return serves(request.lba, request.blocks, request.generation)


def _meaning(error: VolumeError) -> tuple[int, int]:
    """Status and detail."""
    match error:
        case OutOfSpace():
            return Status.OUT_OF_SPACE, 0
        case MediumError():
            return Status.MEDIUM_ERROR, error.lba
        case WriteProtected():
            return Status.WRITE_PROTECTED, 0
    return Status.BUSY, 0


# --- the operations, each on the blocks that are here -----------------------------------------------------------------


def _durable(request: Request) -> bool:
    return bool(request.flags & FLAG_DURABLE)


def _data(local: "LocalBlocks", request: Request, times: int = 1) -> bytes:
    """The payload, which must be as long as the blocks."""
    if len(request.payload) != request.blocks * local.block_size * times:
        raise _Refused(Status.MALFORMED)
    return bytes(request.payload)


async def _read(local: "LocalBlocks", request: Request) -> Answer:
    if request.blocks * local.block_size != request.answer_bytes:
        raise _Refused(Status.MALFORMED)  # so that no more memory is taken than the peer has credit for
    return Answer(request.request_id, payload=await local.read(request.lba, request.blocks))  # type: ignore[arg-type]


async def _write(local: "LocalBlocks", request: Request) -> Answer:
    await local.write(request.lba, _data(local, request), _durable(request))
    return Answer(request.request_id)


async def _write_same(local: "LocalBlocks", request: Request) -> Answer:
    if len(request.payload) != local.block_size:
        raise _Refused(Status.MALFORMED)
    await local.write_same(request.lba, request.blocks, request.payload, _durable(request))
    return Answer(request.request_id)


async def _unmap(local: "LocalBlocks", request: Request) -> Answer:
    await local.unmap([(request.lba, request.blocks)])
    return Answer(request.request_id)


async def _flush(local: "LocalBlocks", request: Request) -> Answer:
    await local.flush(request.lba, request.blocks)
    return Answer(request.request_id)


async def _compare_and_write(local: "LocalBlocks", request: Request) -> Answer:
    both = _data(local, request, 2)
    half = len(both) // 2
    offset = await local.compare_and_write(request.lba, both[:half], both[half:], _durable(request))
    return Answer(request.request_id) if offset is None else Answer(request.request_id, Status.MISCOMPARE, offset)


async def _or_write(local: "LocalBlocks", request: Request) -> Answer:
    await local.or_write(request.lba, _data(local, request), _durable(request))
    return Answer(request.request_id)


async def _write_atomic(local: "LocalBlocks", request: Request) -> Answer:
    if request.blocks > local.atomic_blocks_max:
        raise _Refused(Status.MALFORMED)
    await local.write_atomic(request.lba, _data(local, request), _durable(request))
    return Answer(request.request_id)


async def _allocation(local: "LocalBlocks", request: Request) -> Answer:
    extents_max = request.answer_bytes // EXTENT.size
    if not extents_max:
        raise _Refused(Status.MALFORMED)
    extents = await local.allocation(request.lba, request.blocks, extents_max)
    return Answer(request.request_id, payload=b"".join(EXTENT.pack(*extent) for extent in extents))


async def _prefetch(local: "LocalBlocks", request: Request) -> Answer:
    await local.prefetch(request.lba, request.blocks)
    return Answer(request.request_id)


async def _sanitize_overwrite(local: "LocalBlocks", request: Request) -> Answer:
    if not request.payload or len(request.payload) % local.block_size:
        raise _Refused(Status.MALFORMED)
    await local.sanitize_overwrite(request.lba, request.payload, request.blocks)
    return Answer(request.request_id)


async def _sanitize_erase(local: "LocalBlocks", request: Request) -> Answer:
    await local.sanitize_erase()
    return Answer(request.request_id)


_OPERATIONS: Final[dict[Operation, Callable[["LocalBlocks", Request], Awaitable[Answer]]]] = {
    Operation.READ: _read,
    Operation.WRITE: _write,
    Operation.WRITE_SAME: _write_same,
    Operation.UNMAP: _unmap,
    Operation.FLUSH: _flush,
    Operation.COMPARE_AND_WRITE: _compare_and_write,
    Operation.OR_WRITE: _or_write,
    Operation.WRITE_ATOMIC: _write_atomic,
    Operation.ALLOCATION: _allocation,
    Operation.PREFETCH: _prefetch,
    Operation.SANITIZE_OVERWRITE: _sanitize_overwrite,
    Operation.SANITIZE_ERASE: _sanitize_erase,
}
