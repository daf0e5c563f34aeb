"""The two ends of a migration of one volume, "a" to "b", joined by a link that a test can disturb."""

import asyncio
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

from san_target.peer.frames import FLAG_DURABLE, Answer, Operation, Request, Status
from san_target.peer.link import PeerUnreachable
from san_target.storage.interface import BlocksFile
from san_target.storage.memory import MemoryFile
from san_target.storage.records import HELD, HeldRange
from san_target.storage.threads import SynchronousThreads, Threads
from san_target.volume.held import RECEIVING, SEALED
from san_target.volume.mirror import Mirror
from san_target.volume.partition_map import MapSnapshot, PartitionMap, Placement
from san_target.volume.receiver import Receiver
from san_target.volume.volume import Volume
from tests.unit.volume.kit import VOLUME_ID

BLOCK = 512
BLOCKS = 1024
PIECE = (256, 512)
GENERATION = 7
ID = bytes.fromhex(VOLUME_ID)


def block(number: int) -> bytes:
    return number.to_bytes(2, "big") * (BLOCK // 2)


class End:
    """A volume at one member: what the receiver and the mover see of it."""

    def __init__(self, name: str, threads: Threads | None = None, file: BlocksFile | None = None) -> None:
        self.file = file or MemoryFile(BLOCKS * BLOCK)
        self.held: tuple[HeldRange, ...] = (HeldRange(0, BLOCKS, 1),) if name == "a" else ()
        snapshot = PartitionMap(BLOCKS, Placement("a", generation=1)).snapshot()
        self.volume = Volume(
            VOLUME_ID, BLOCK, BLOCKS, snapshot, name, self.file, self.held, threads or SynchronousThreads(), revision=5
        )
        self.on_held: Callable[[tuple[HeldRange, ...]], None] = lambda held: None

    @property
    def local(self) -> Any:
        return self.volume.local

    @property
    def map_now(self) -> MapSnapshot:
        return self.volume.snapshot

    async def change_held(self, change: Callable[[tuple[HeldRange, ...]], Sequence[HeldRange]]) -> None:
        self.held = tuple(change(self.held))
        self.on_held(self.held)
        self.volume.update(self.volume.snapshot, self.held)

    def place(self, start: int, end: int, placement: Placement, revision: int) -> None:
        self.volume.place(start, end, placement, self.held, revision)

    def states(self, start: int = PIECE[0], end: int = PIECE[1]) -> set[str]:
        return {each.state for each in self.held if each.start_lba < end and start < each.end_lba}

    def read(self, lba: int, blocks: int = 1) -> bytes:
        """What lies in the file, whoever owns it."""
        return bytes(self.file.read(lba * BLOCK, blocks * BLOCK))


class Pair:
    """source, destination, and the link between them. sent: all requests; faults: what becomes of the next ones of an
    operation: "fail", "lost" (not carried out), "silent" (carried out, no answer)."""

    def __init__(self, source_threads: Threads | None = None, destination_threads: Threads | None = None) -> None:
        self.source = End("a", source_threads)
        self.destination = End("b", destination_threads)
        self.tasks: set[asyncio.Task[None]] = set()
        self.receiver = Receiver("b", lambda _id: self.destination, self._seen, self._spawn)
        self.peer = SimpleNamespace(name="a", incarnation=3, lost=False)
        self.incarnation = 1
        self.state = "up"
        self.sent: list[Request] = []
        self.faults: dict[Operation, list[str]] = {}
        self.numbers = 0

    async def _seen(self, revision: int) -> None:
        return

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def deliver(self, request: Request) -> "asyncio.Future[Answer]":
        """Hand it to the destination, as it comes from the wire."""
        self.numbers += 1
        request.request_id = self.numbers
        answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.receiver.handle(self.peer, request, answered.set_result)  # type: ignore[arg-type]
        return answered

    async def request(self, request: Request, deadline_s: float) -> Answer:
        self.sent.append(request)
        faults = self.faults.get(Operation(request.operation), [])
        fault = faults.pop(0) if faults else ""
        if fault == "lost":
            raise PeerUnreachable("lost", True)
        if fault == "fail":
            return Answer(request.request_id, Status.FAILED, payload=b"injected")
        answer = await self.deliver(request)
        if fault == "silent":
            raise PeerUnreachable("no answer in time", True)
        return answer

    # --- steps --------------------------------------------------------------------------------------------------------

    def mirror(self, attempt: int = 1, may_serve: Callable[[], bool] = lambda: True) -> Mirror:
        return Mirror(self, ID, BLOCK, *PIECE, GENERATION, attempt, may_serve)

    async def begin(self, attempt: int = 1) -> Mirror:
        """PREPARE, and the mirror on."""
        mirror = self.mirror(attempt)
        await mirror.ask(Operation.PREPARE, PIECE[0], PIECE[1] - PIECE[0])
        self.source.volume.mirror = mirror
        return mirror

    def frame(self, operation: Operation, lba: int, data: bytes = b"", attempt: int = 1, **fields: Any) -> Request:
        blocks = fields.pop("blocks", len(data) // BLOCK)
        return Request(operation, ID, lba, blocks, data, generation=GENERATION, epoch=attempt, **fields)


__all__ = ["BLOCK", "FLAG_DURABLE", "HELD", "PIECE", "RECEIVING", "SEALED", "End", "Pair", "block"]
