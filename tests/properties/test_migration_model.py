"""Migrations against a plain model: whatever fails and whenever, no acknowledged change is lost and none is read old.

One volume moves from "a" to "b" and hosts change and read it all the time. Steps at the destination fail, are lost or
go unanswered; commits are lost, late or unanswered; the destination loses power, with all that it had not made durable.
Time is virtual, and threads take as long as the example says.
"""

import asyncio
import random
from collections.abc import Sequence
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from san_target.group.migrator import Migrator
from san_target.group.piece_mover import Source
from san_target.metadata.memory import MemoryData, MemoryStore
from san_target.metadata.schema import (
    LeaseRecord,
    MigrationRecord,
    PlacementRecord,
    VolumeRecord,
    decode,
    encode,
    lease_key,
    map_key,
    map_prefix,
    migration_key,
    volume_key,
)
from san_target.metadata.store import Compare, Delete, Put, StoreUnavailable, TransactionResult
from san_target.peer.frames import Operation
from san_target.storage.records import HELD
from san_target.storage.threads import SynchronousThreads
from san_target.volume.device import Unavailable
from tests.support.virtual_time import run
from tests.unit.volume.kit import VOLUME_ID, Elsewhere
from tests.unit.volume.migration_kit import BLOCK, BLOCKS, ID, Pair

PIECE_BYTES = 256 * BLOCK
HOSTS = 3
CHANGES = 60

STEPS = [
    Operation.PREPARE,
    Operation.COPY,
    Operation.MIRROR,
    Operation.MIRROR_UNMAP,
    Operation.SEAL,
    Operation.HANDOVER,
]
faults = st.dictionaries(
    st.sampled_from(STEPS), st.lists(st.sampled_from(["", "", "", "fail", "lost", "silent"]), max_size=6), max_size=4
)
fates = st.lists(st.sampled_from(["", "unanswered", "never", "late"]), max_size=4)
power_failures = st.lists(st.floats(0.0, 0.3), max_size=2)


class World(Pair):
    """The two members and their store."""

    def __init__(self, seed: int, fates_of_commits: Sequence[str]) -> None:
        self.draws = random.Random(seed)
        threads = SynchronousThreads(lambda: self.draws.choice((0.0, 0.001, 0.02)))
        super().__init__(threads, threads)
        self.source.volume._forwarder = Elsewhere(self.destination.volume)
        self.data = MemoryData()
        self.store = MemoryStore(self.data)
        self.fates = list(fates_of_commits)
        self.late: list[asyncio.Task[TransactionResult]] = []
        self._really = self.store.transact
        self.store.transact = self._transact  # type: ignore[method-assign]

    async def begin(self) -> None:  # type: ignore[override]
        await self.store.open()
        record = VolumeRecord(id=VOLUME_ID, name="d", iqn="iqn.d", size_bytes=BLOCKS * BLOCK)
        await self._put(volume_key(VOLUME_ID), encode(record))
        await self._put(map_key(VOLUME_ID, 0), encode(PlacementRecord(end_lba=BLOCKS, owner="a", generation=1)))
        await self._put(lease_key("a"), encode(LeaseRecord(name="a", incarnation=3, pool_id="a")))
        await self._put(lease_key("b"), encode(LeaseRecord(name="b", incarnation=1, pool_id="b")))
        migration = MigrationRecord(
            id="m", volume_id=VOLUME_ID, volume="d", start_lba=0, end_lba=BLOCKS, source="a", destination="b"
        )
        await self._put(migration_key("m"), encode(migration))

    async def _put(self, key: str, value: bytes) -> None:
        await self._really([], [Put(key, value)])

    async def _transact(self, compares: Sequence[Compare], operations: Sequence[Put | Delete]) -> TransactionResult:
        is_commit = any(each.key.startswith("maps/") for each in operations)
        fate = self.fates.pop(0) if is_commit and self.fates else ""
        if fate == "late":
            self.late.append(asyncio.create_task(self._later(compares, operations)))
        if fate == "unanswered":
            await self._really(compares, operations)
        if fate:
            raise StoreUnavailable("no answer")
        return await self._really(compares, operations)

    async def _later(self, compares: Sequence[Compare], operations: Sequence[Put | Delete]) -> TransactionResult:
        await asyncio.sleep(self.draws.choice((0.001, 0.01, 0.1, 1.0)))
        return await self._really(compares, operations)

    async def lose_power(self) -> None:
        """At the destination: a new life finds what was durable, and does what it does at its beginning."""
        self.state = "waiting"
        self.peer.lost = True
        self.destination.file.lose_power(self.draws.choice)  # type: ignore[attr-defined]
        self.incarnation += 1
        await self.receiver.end_all()
        await self._put(lease_key("b"), encode(LeaseRecord(name="b", incarnation=self.incarnation, pool_id="b")))
        items = (await self.store.range(map_prefix(VOLUME_ID))).items
        theirs = []
        for item in items:
            found = decode(PlacementRecord, item.value, item.key)
            if found.owner == "b":
                theirs.append((int(item.key.rpartition("/")[2], 16), found.end_lba, found.generation))
        for piece in self.destination.held:
            is_mine = any(low <= piece.start_lba < high and piece.generation == each for low, high, each in theirs)
            if piece.state != HELD and not is_mine:
                await self.receiver.discard(self.destination, ID, piece.generation, piece.start_lba, piece.end_lba)
        self.peer = type(self.peer)(name="a", incarnation=3, lost=False)
        self.state = "up"

    def migrator(self) -> Migrator:
        source = Source(
            "a",
            self.store,
            lambda _name: Life(self),  # type: ignore[arg-type,return-value]
            lambda: True,
            lambda: str(self.draws.random()),
            asyncio.get_running_loop().time,
            asyncio.sleep,
        )
        return Migrator(source, "m", 3, lambda _id: self.source, lambda: 0.0, None, PIECE_BYTES)  # type: ignore[arg-type,return-value]


class Life:
    """The link to one life of the destination."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.incarnation = world.incarnation
        self.state = "up"

    async def request(self, request: Any, deadline_s: float) -> Any:
        if self._world.incarnation != self.incarnation:
            from san_target.peer.link import PeerUnreachable

            raise PeerUnreachable("it has ended", True)
        return await self._world.request(request, deadline_s)


class Host:
    """Changes its own blocks one after another, and knows what must be there."""

    def __init__(self, world: World, number: int) -> None:
        self.volume = world.source.volume
        self.draws = random.Random(world.draws.random())
        self.low = number * BLOCKS // HOSTS
        self.blocks = BLOCKS // HOSTS
        self.data = bytearray(self.blocks * BLOCK)

    async def fill(self) -> None:
        """So that there is something to be copied, and holes."""
        for offset in range(0, self.blocks, 40):
            blocks = min(30, self.blocks - offset)
            new = self.draws.randbytes(blocks * BLOCK)
            await self.volume.write(self.low + offset, new)
            self.data[offset * BLOCK : (offset + blocks) * BLOCK] = new

    async def run(self) -> None:
        for _ in range(CHANGES):
            offset = self.draws.randrange(self.blocks)
            blocks = self.draws.randint(1, min(self.blocks - offset, self.draws.choice((1, 8, 300))))
            while True:
                try:
                    await self._change(offset, blocks)
                    break
                except Unavailable:
                    await asyncio.sleep(0.01)  # BUSY: a host tries again
            await asyncio.sleep(self.draws.choice((0, 0, 0.001, 0.02)))

    async def _change(self, offset: int, blocks: int) -> None:
        lba, here = self.low + offset, slice(offset * BLOCK, (offset + blocks) * BLOCK)
        byte = self.draws.randrange(1, 256)
        new = bytes([byte]) * (blocks * BLOCK)
        match self.draws.randrange(6):
            case 0:
                await self.volume.unmap([(lba, blocks)])
                new = bytes(len(new))
            case 1:
                await self.volume.write_same(lba, blocks, new[:BLOCK])
            case 2:
                await self.volume.or_write(lba, new)
                new = bytes(old | byte for old in self.data[here])
            case 3:
                assert bytes(await self.volume.read(lba, blocks)) == self.data[here]
                new = bytes(self.data[here])
            case _:
                if blocks > 8 or not self.volume.try_write(lba, blocks, new):
                    await self.volume.write(lba, new)
        self.data[here] = new

    async def check(self) -> None:
        assert bytes(await self.volume.read(self.low, self.blocks)) == self.data


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 1 << 32), faults_of_steps=faults, fates_of_commits=fates, powers=power_failures)
@example(1, {Operation.MIRROR: ["fail"] * 3}, [], [])
@example(2, {Operation.MIRROR: ["lost", "silent", "fail"], Operation.MIRROR_UNMAP: ["fail", "lost"]}, [], [])
@example(3, {Operation.COPY: ["lost", "", "silent"], Operation.SEAL: ["", "silent"]}, ["late", "unanswered"], [0.05])
@example(4, {Operation.HANDOVER: ["silent", "lost", "fail"]}, ["never", "late", "late"], [0.1])
def test_no_acknowledged_change_is_lost(
    seed: int, faults_of_steps: dict[Operation, list[str]], fates_of_commits: list[str], powers: list[float]
) -> None:
    async def work() -> None:
        world = World(seed, fates_of_commits)
        await world.begin()
        world.faults = {operation: list(each) for operation, each in faults_of_steps.items()}
        hosts = [Host(world, number) for number in range(HOSTS)]
        for host in hosts:
            await host.fill()
        running = [asyncio.create_task(host.run()) for host in hosts]
        migrating = asyncio.create_task(world.migrator().run())
        for pause_s in powers:
            await asyncio.sleep(pause_s)
            if len(world.destination.held) == 0 or all(piece.state != HELD for piece in world.destination.held):
                await world.lose_power()  # (what it serves would have to be flushed by hosts first)
        await asyncio.gather(*running)
        await migrating
        await asyncio.gather(*world.late)
        for host in hosts:
            await host.check()
        item = await world.store.get(map_key(VOLUME_ID, 0))
        assert item is not None
        assert decode(PlacementRecord, item.value, item.key).owner == "b"
        assert decode(PlacementRecord, item.value, item.key).end_lba == BLOCKS
        assert {piece.state for piece in world.destination.held} == {HELD}
        assert world.source.held == ()

    run(work())
