"""Interleavings that would lose data: store answers that are lost or late, members that begin anew, blocks that return.

Three members in this process. A host writes all the time, and every acknowledged write must be read afterwards, through
another member.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from san_target.admin.service import Migration, MigrationRequest
from san_target.metadata.store import Compare, Delete, Put, StoreUnavailable, TransactionResult
from san_target.peer.frames import Answer, Operation, Request, Status
from tests.unit.server.conftest import MIB, run
from tests.unit.server.group_kit import OTHER_ISID, Group, group
from tests.unit.server.test_migrations import BLOCK, SLOT_BLOCKS, Initiator, migrate, owners, read, write

SIZE_BYTES = 8 * MIB
SLOTS = SIZE_BYTES // (SLOT_BLOCKS * BLOCK)

Commit = Callable[[Callable[[], Awaitable[TransactionResult]]], Awaitable[TransactionResult]]


class Load:
    """Writes by one host at m1; `check` reads all of it by another at m3."""

    def __init__(self, made: Group, host: Initiator) -> None:
        self._made = made
        self._host = host
        self._wanted: dict[int, bytes] = {}
        self._over = False
        self.longest_s = 0.0
        self.count = 0

    async def run(self, seed: int = 1) -> None:
        draws, loop = random.Random(seed), asyncio.get_running_loop()
        while not self._over:
            slot = draws.randrange(SLOTS)
            data = draws.randbytes(SLOT_BLOCKS * BLOCK)
            began_s = loop.time()
            await write(self._host, slot, data)
            self._wanted[slot] = data
            assert await read(self._host, slot) == data
            self.longest_s = max(self.longest_s, loop.time() - began_s)
            self.count += 1
            await asyncio.sleep(0)

    async def end(self, task: "asyncio.Task[None]") -> None:
        self._over = True
        await task
        other = await self._made.log_in("m3", isid=OTHER_ISID, name="iqn.1993-08.org.debian:01:reader")
        for slot, data in self._wanted.items():
            assert await read(other, slot) == data, f"slot {slot}"


@contextlib.asynccontextmanager
async def loaded(directory: Path) -> AsyncIterator[tuple[Group, Load]]:
    """A volume of two pieces, all at m1, and a load on it that is checked at the end."""
    async with group(directory, "m1", "m2", "m3", size_bytes=SIZE_BYTES) as made:
        if set(owners(made, "m1")) != {"m1"}:
            await migrate(made, "m1")
        host = await made.log_in("m1")
        load = Load(made, host)
        task = asyncio.create_task(load.run())
        yield made, load
        await load.end(task)


def on_commit(made: Group, name: str, *fates: Commit) -> list[TransactionResult | None]:
    """What becomes of the next commits of pieces by a member; returns what became of each in the store."""
    store: Any = made.members[name].store
    transact, left, outcomes = store.transact, list(fates), []

    async def disturbed(compares: Sequence[Compare], operations: Sequence[Put | Delete]) -> TransactionResult:
        async def really() -> TransactionResult:
            result: TransactionResult = await transact(compares, operations)
            outcomes.append(result)
            return result

        if left and any(each.key.startswith("maps/") for each in operations):
            return await left.pop(0)(really)
        return await really()

    store.transact = disturbed
    return outcomes


Really = Callable[[], Awaitable[TransactionResult]]


async def applied_but_unanswered(really: Really) -> TransactionResult:
    await really()
    raise StoreUnavailable("no answer")


async def never_applied(_really: Really) -> TransactionResult:
    raise StoreUnavailable("no answer")


async def applied_later(really: Really) -> TransactionResult:
    async def later() -> None:
        await asyncio.sleep(0.03)  # while the piece is copied anew
        result = await really()
        assert not result.succeeded, "it was given up"

    LATER.append(asyncio.create_task(later()))
    raise StoreUnavailable("no answer")


LATER: list["asyncio.Task[None]"] = []


async def finished(made: Group, ids: list[str]) -> list[Migration]:
    async with asyncio.timeout(40):
        while True:
            found = [await made.services["m1"].migration(each) for each in ids]
            if all(each.state in ("done", "cancelled") for each in found):
                return found
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("fate", [applied_but_unanswered, never_applied, applied_later])
def test_a_commit_without_an_answer(tmp_path: Path, fate: Commit) -> None:
    async def body() -> None:  # [1]
        async with loaded(tmp_path) as (made, load):
            on_commit(made, "m1", fate, fate)
            done = await migrate(made, "m2", limit_bytes_per_second=4 * MIB)
            assert done.state == "done"
            assert owners(made, "m2") == ["m2"]
            assert load.count > 0
            await asyncio.gather(*LATER)
            LATER.clear()
            assert owners(made, "m2") == ["m2"]

    run(body)


def test_what_is_in_doubt_is_not_cleared_away(tmp_path: Path) -> None:
    async def body() -> None:  # [1, 5]
        async with loaded(tmp_path) as (made, load):
            store: Any = made.members["m1"].store
            get, away = store.get, [True]

            async def no_answer(key: str) -> Any:
                if away[0] and key.startswith("migrations/"):
                    raise StoreUnavailable("no answer")
                return await get(key)

            (started,) = await made.services["m1"].start_migrations(MigrationRequest(volume="disk", to="m2"))
            on_commit(made, "m1", applied_but_unanswered)
            await until_phase(made, started.id, "copying")
            store.get = no_answer
            await until_phase(made, started.id, "in_doubt")
            export = next(iter(made.members["m1"].exports.by_id.values()))
            while export.map_now.find(0).owner != "m2":  # the watch tells what the store does not answer
                await asyncio.sleep(0.01)
            for _ in range(3):
                await made.members["m1"].life.migrations._settle(export)
            away[0] = False
            await finished(made, [started.id])
            assert load.count > 0

    run(body)


def test_initiators_do_not_wait_for_a_store_that_is_away(tmp_path: Path) -> None:
    async def body() -> None:  # [10]
        async with loaded(tmp_path) as (made, load):
            store: Any = made.members["m1"].store
            back = asyncio.Event()
            get = store.get

            async def away(really: Really) -> TransactionResult:
                async def get_later(key: str) -> Any:
                    await back.wait()
                    return await get(key)

                store.get = get_later
                await back.wait()
                return await really()

            on_commit(made, "m1", away)
            started = await made.services["m2"].start_migrations(MigrationRequest(volume="disk", to="m2"))
            while made.members["m1"].life.migrations.phase_of(started[0].id) != "in_doubt":
                await asyncio.sleep(0.01)
            mirror = next(iter(made.members["m1"].exports.by_id.values())).local.mirror
            assert mirror is not None
            assert mirror.mandatory, "the piece may be the destination's"
            before = load.count
            while load.count < before + 200:
                await asyncio.sleep(0.01)
            assert set(owners(made, "m1")) == {"m1"}
            back.set()
            store.get = get
            assert [each.state for each in await finished(made, [started[0].id])] == ["done"]
            assert load.longest_s < 15

    run(body)


@pytest.mark.parametrize("when", ["copy", "commit"])
def test_the_destination_begins_anew_before_the_commit(tmp_path: Path, when: str) -> None:
    async def body() -> None:  # [2, 3]
        async with loaded(tmp_path) as (made, _load):
            destination = made.members["m2"]
            begun: list[int] = []

            async def begin_anew() -> None:
                begun.append(destination.membership.incarnation)
                await destination._begin_anew("a test")

            async def commit(really: Really) -> TransactionResult:
                await begin_anew()
                result = await really()
                assert not result.succeeded, "what was sealed is forgotten"
                return result

            if when == "commit":
                on_commit(made, "m1", commit)
            else:
                disturb(made, "m2", Operation.COPY, lambda request: asyncio.create_task(begin_anew()))
            done = await migrate(made, "m2")
            assert done.state == "done"
            assert done.restarts > 0
            assert begun
            assert owners(made, "m1") == ["m2"]

    run(body)


def test_the_source_begins_anew_while_a_commit_is_on_its_way(tmp_path: Path) -> None:
    async def body() -> None:  # [1, 18]
        async with loaded(tmp_path) as (made, _load):
            results: list[TransactionResult] = []

            async def late(really: Really) -> TransactionResult:
                async def later() -> None:
                    await asyncio.sleep(1.0)
                    results.append(await really())

                LATER.append(asyncio.create_task(later()))
                raise StoreUnavailable("no answer")

            on_commit(made, "m1", late)
            started = await made.services["m2"].start_migrations(MigrationRequest(volume="disk", to="m2"))
            while not LATER:
                await asyncio.sleep(0.005)
            # Hosts are sent away by that, so the load here ends: the blocks are what counts.
            done = await finished(made, [started[0].id])
            await asyncio.gather(*LATER)
            LATER.clear()
            assert done[0].state == "done"
            assert [each.succeeded for each in results] == [False]

    run(body)


def disturb(
    made: Group, name: str, operation: Operation, fate: Callable[[Request], object], times: int = 1
) -> list[Request]:
    """What becomes of the next requests of a kind at a member: fate's answer, if it is one; else they are handled."""
    receiver: Any = made.members[name].life.receiver
    handle, met = receiver.handle, []

    def disturbed(peer: Any, request: Request, respond: Callable[[Answer], None]) -> None:
        if request.operation == operation and len(met) < times:
            met.append(request)
            answer = fate(request)
            if isinstance(answer, Answer):
                respond(answer)
                return
        handle(peer, request, respond)

    receiver.handle = disturbed
    return met


def failed(request: Request) -> Answer:
    return Answer(request.request_id, Status.FAILED, payload=b"injected")


def unmap(lba: int, blocks: int) -> tuple[bytes, bytes]:
    """CDB and parameter list."""
    data = (22).to_bytes(2, "big") + (16).to_bytes(2, "big") + bytes(4)
    data += lba.to_bytes(8, "big") + blocks.to_bytes(4, "big") + bytes(4)
    return b"\x42" + bytes(6) + len(data).to_bytes(2, "big") + b"\0", data


def test_an_unmap_that_fails_at_the_destination(tmp_path: Path) -> None:
    async def body() -> None:  # [4]
        async with group(tmp_path, "m1", "m2", "m3", size_bytes=SIZE_BYTES) as made:
            if set(owners(made, "m1")) != {"m1"}:
                await migrate(made, "m1")
            host = await made.log_in("m1")
            await write(host, 3, b"\x77" * SLOT_BLOCKS * BLOCK)
            await write(host, 4, b"\x78" * SLOT_BLOCKS * BLOCK)
            statuses: list[int] = []

            def while_sealing(_request: Request) -> None:
                async def go() -> None:
                    status, _sense = await host.command(*unmap(3 * SLOT_BLOCKS, SLOT_BLOCKS))
                    statuses.append(status)

                LATER.append(asyncio.create_task(go()))

            # All is copied when the piece is made durable for the first time; then the blocks are given back.
            sealing = disturb(made, "m2", Operation.SEAL, while_sealing)
            failing = disturb(made, "m2", Operation.MIRROR_UNMAP, failed)
            done = await migrate(made, "m2")
            await asyncio.gather(*LATER)
            LATER.clear()
            assert (len(sealing), statuses) == (1, [0])
            if failing:
                assert done.restarts >= 1
            assert await read(host, 3) == bytes(SLOT_BLOCKS * BLOCK)
            assert await read(host, 4) == b"\x78" * SLOT_BLOCKS * BLOCK

    run(body)


def test_a_mirrored_write_that_fails_restarts_its_piece(tmp_path: Path) -> None:
    async def body() -> None:
        async with loaded(tmp_path) as (made, load):
            failing = disturb(made, "m2", Operation.MIRROR, failed, times=2)
            # Copied slowly, so that writes come in between.
            done = await migrate(made, "m2", limit_bytes_per_second=4 * MIB)
            assert done.state == "done"
            assert len(failing) == 2
            assert done.restarts >= 1
            assert done.mirrored_writes > 0
            assert load.count > 0

    run(body)


def test_blocks_come_back_before_they_were_cleared_away(tmp_path: Path) -> None:
    async def body() -> None:  # [5]
        async with loaded(tmp_path) as (made, _load):
            export: Any = next(iter(made.members["m1"].exports.by_id.values()))
            local, go_on = export.local, asyncio.Event()
            clear = local.clear

            async def late(*arguments: Any) -> None:
                await go_on.wait()
                await clear(*arguments)

            local.clear = late
            first = asyncio.create_task(migrate(made, "m2"))
            async with asyncio.timeout(20):
                while owners(made, "m2") != ["m2"]:
                    await asyncio.sleep(0.01)
            started = await made.services["m2"].start_migrations(MigrationRequest(volume="disk", to="m1"))
            async with asyncio.timeout(20):
                while (await made.services["m2"].migration(started[0].id)).restarts == 0:
                    await asyncio.sleep(0.01)
            found = await made.services["m2"].migration(started[0].id)
            assert found.pieces_done == 0
            assert "cleared away" in found.reason
            go_on.set()
            assert (await first).state == "done"
            assert [each.state for each in await finished(made, [started[0].id])] == ["done"]
            assert set(owners(made, "m1")) == {"m1"}

    run(body)


def test_a_volume_is_deleted_while_it_moves(tmp_path: Path) -> None:
    async def body() -> None:  # [14]
        async with group(tmp_path, "m1", "m2", "m3", size_bytes=SIZE_BYTES) as made:
            volume_id = next(iter(made.members["m1"].exports.by_id))

            async def delete_first(really: Really) -> TransactionResult:
                LATER.append(asyncio.create_task(made.services["m3"].delete_volume("disk", force=True)))
                while made.members["m3"].exports.record(volume_id).state != "deleting":  # type: ignore[union-attr]
                    await asyncio.sleep(0.001)
                return await really()

            source = owners(made, "m1")[0]
            destination = next(name for name in ("m2", "m1", "m3") if name != source)
            outcomes = on_commit(made, source, delete_first)
            started = await made.services["m3"].start_migrations(MigrationRequest(volume="disk", to=destination))
            ours = [each.id for each in started if each.source == source]
            async with asyncio.timeout(40):
                while (await made.services["m1"].migration(ours[0])).state != "cancelled":
                    await asyncio.sleep(0.02)
            await asyncio.gather(*LATER)
            LATER.clear()
            assert outcomes
            assert (await made.members["m1"].store.range(f"maps/{volume_id}/")).items == ()
            for member in made.members.values():
                async with asyncio.timeout(10):
                    while volume_id in member.pool.list_volumes():
                        await asyncio.sleep(0.02)

    run(body)


def test_pause_resume_and_cancel(tmp_path: Path) -> None:
    async def body() -> None:
        async with loaded(tmp_path) as (made, _load):
            service = made.services["m3"]
            request = MigrationRequest(volume="disk", to="m2", limit_bytes_per_second=MIB // 4)
            migration = (await service.start_migrations(request))[0]
            await service.pause_migration(migration.id)
            async with asyncio.timeout(20):
                while (await service.migration(migration.id)).state != "paused":
                    await asyncio.sleep(0.02)
            await service.resume_migration(migration.id)
            async with asyncio.timeout(20):
                while (await service.migration(migration.id)).state != "running":
                    await asyncio.sleep(0.02)
            await service.cancel_migration(migration.id)
            assert (await finished(made, [migration.id]))[0].state == "cancelled"
            held = next(iter(made.members["m2"].exports.by_id.values()))
            async with asyncio.timeout(20):
                while {each.state for each in held.held} - {"held"}:
                    await asyncio.sleep(0.02)

    run(body)


async def until_phase(made: Group, migration_id: str, *phases: str) -> None:
    async with asyncio.timeout(20):
        while made.members["m1"].life.migrations.phase_of(migration_id) not in phases:
            await asyncio.sleep(0.001)


async def filled_at_m1(made: Group) -> Initiator:
    if set(owners(made, "m1")) != {"m1"}:
        await migrate(made, "m1")
    host = await made.log_in("m1")
    for slot in range(0, SLOTS, 2):
        await write(host, slot, bytes([slot % 255 + 1]) * SLOT_BLOCKS * BLOCK)
    return host


def test_a_sanitize_reaches_what_is_under_way(tmp_path: Path) -> None:
    async def body() -> None:  # [15]
        async with group(tmp_path, "m1", "m2", "m3", size_bytes=SIZE_BYTES) as made:
            host = await filled_at_m1(made)
            request = MigrationRequest(volume="disk", to="m2", limit_bytes_per_second=2 * MIB)
            migration = (await made.services["m3"].start_migrations(request))[0]
            await until_phase(made, migration.id, "copying")
            status, sense = await host.command(b"\x48\x02" + bytes(8))
            assert status == 0, sense.hex()
            assert (await finished(made, [migration.id]))[0].state == "done"
            for slot in range(0, SLOTS, 2):
                assert await read(host, slot) == bytes(SLOT_BLOCKS * BLOCK)
            for name in ("m1", "m2"):
                found = made.members[name].pool.find_volume(next(iter(made.members[name].exports.by_id)))
                assert found is not None
                assert bytes(found.file.read(0, SIZE_BYTES)) == bytes(SIZE_BYTES), f"remnants at {name}"

    run(body)


def test_a_volume_is_shrunk_and_grows_while_it_moves(tmp_path: Path) -> None:
    async def body() -> None:  # [14]
        async with group(tmp_path, "m1", "m2", "m3", size_bytes=SIZE_BYTES) as made:
            await filled_at_m1(made)
            service = made.services["m3"]
            request = MigrationRequest(volume="disk", to="m2", limit_bytes_per_second=4 * MIB)
            migration = (await service.start_migrations(request))[0]
            await until_phase(made, migration.id, "copying")
            await service.resize_volume("disk", 5 * MIB, force=True)
            await service.resize_volume("disk", SIZE_BYTES, force=False)
            assert (await finished(made, [migration.id]))[0].state == "done"
            host = await made.log_in("m3", isid=OTHER_ISID)
            for slot in range(0, SLOTS, 2):
                kept = (slot + 1) * SLOT_BLOCKS * BLOCK <= 5 * MIB
                expected = bytes([slot % 255 + 1] if kept else 1) * SLOT_BLOCKS * BLOCK
                assert await read(host, slot) == expected, slot

    run(body)
