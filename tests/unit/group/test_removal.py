"""Taking a member out of the group: when it may be, what is lost, and that it can be interrupted anywhere."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from san_target.group.errors import Conflict, NotFound
from san_target.group.membership import Removed
from san_target.group.removal import Removal, without
from san_target.group.volumes import Volumes
from san_target.metadata.memory import MemoryStore
from san_target.metadata.schema import (
    PlacementRecord,
    encode,
    map_key,
)
from san_target.metadata.store import Put, StoreUnavailable, TransactionResult
from tests.unit.group.test_volumes import MIB, Room, carried_out, create_ready, many_ranges, ranges_of


class Group(Room):
    """Three members; "one" is asked. slept: how long it waited."""

    names = ("one", "two", "three")

    def __init__(self) -> None:
        super().__init__()
        self.slept_s = 0.0
        self.at_sleep: Callable[[], Awaitable[None]] | None = None

    async def sleep(self, seconds: float) -> None:
        self.slept_s += seconds
        if self.at_sleep is not None:
            await self.at_sleep()

    def removal(self, volumes: Volumes, own_name: str = "one") -> Removal:
        return Removal(self.store, volumes, own_name, self.sleep, ttl_s=10)

    async def ended(self, name: str) -> None:
        await self.members[name].leave()


def run(test: Callable[[Group, Volumes], Awaitable[None]]) -> None:
    async def body() -> None:
        group = Group()
        await test(group, await group.open())

    asyncio.run(body())


class TestInPeace:
    def test_one_that_has_ended_and_holds_nothing(self) -> None:
        async def test(group: Group, volumes: Volumes) -> None:
            await create_ready(volumes, "demo", MIB)
            await group.ended("two")
            report = await group.removal(volumes).remove("two")
            assert report.lost == []
            with pytest.raises(NotFound):
                await group.removal(volumes).remove("two")
            with pytest.raises(Removed):
                await group.members["two"].join((), "")

        run(test)

    def test_one_that_holds_something(self) -> None:
        async def test(group: Group, volumes: Volumes) -> None:
            await create_ready(volumes, "demo", 2 * MIB, members=["two"])
            await group.ended("two")
            with pytest.raises(Conflict, match="'two' holds 2097152 bytes of 'demo'; drain it first"):
                await group.removal(volumes).remove("two")
            await group.members["two"].join((), "")

        run(test)

    def test_one_that_runs(self) -> None:
        async def test(group: Group, volumes: Volumes) -> None:
            with pytest.raises(Conflict, match="is running; stop it first, or drain it"):
                await group.removal(volumes).remove("two")
            assert group.slept_s == 0

        run(test)

    def test_a_drained_one_ends_by_itself(self) -> None:
        async def test(group: Group, volumes: Volumes) -> None:
            await group.set_state("two", "draining")
            states = []

            async def notice() -> None:
                """As the member does when it sees that it is being removed."""
                with pytest.raises(Removed) as caught:
                    await group.members["two"].tell(free_bytes=1)
                states.append(str(caught.value))
                await group.ended("two")

            group.at_sleep = notice
            await group.removal(volumes).remove("two")
            assert len(states) == 1

        run(test)

    def test_a_drained_one_that_does_not_end(self) -> None:
        async def test(group: Group, volumes: Volumes) -> None:
            await group.set_state("two", "draining")
            with pytest.raises(Conflict, match="is being removed, but still runs"):
                await group.removal(volumes).remove("two")
            assert 10 <= group.slept_s <= 30
            await group.ended("two")
            await group.removal(volumes).remove("two")

        run(test)

    def test_others_than_members(self) -> None:
        async def test(group: Group, volumes: Volumes) -> None:
            with pytest.raises(NotFound, match="no member 'four'"):
                await group.removal(volumes).remove("four")
            with pytest.raises(Conflict, match="cannot remove itself; ask another"):
                await group.removal(volumes).remove("one", force=True)

        run(test)


class TestWithForce:
    def test_its_ranges_are_lost_under_a_new_generation(self) -> None:
        async def test(group: Group, volumes: Volumes) -> None:
            record = await create_ready(volumes, "demo", 300 * MIB)
            await many_ranges(group.store, record, 300)  # at "one" and "two" in turns
            await create_ready(volumes, "other", MIB)
            before = (await group.store.range("")).revision
            await group.ended("two")
            report = await group.removal(volumes).remove("two", force=True)
            assert [(share.volume, share.ranges, share.bytes) for share in report.lost] == [("demo", 150, 150 * MIB)]
            entries = await volumes.entries_of("demo")
            assert [entry.placement.owner for entry in entries] == ["one", ""] * 150
            assert all(entry.placement.generation >= before for entry in entries[1::2])
            assert all(entry.placement.generation == 3 for entry in entries[::2])
            assert {owner for _, _, owner in await ranges_of(volumes, "other")} == {"one"}

        run(test)

    def test_a_lease_that_is_gone_counts_for_its_time(self) -> None:
        """etcd can end one early; its member still takes it for valid, and answers reads."""

        async def test(group: Group, volumes: Volumes) -> None:
            await create_ready(volumes, "demo", MIB, members=["two"])
            await group.ended("two")

            async def nothing_is_lost_yet() -> None:
                assert group.slept_s < 10 or await ranges_of(volumes, "demo") == [(0, 2048, "two")]

            group.at_sleep = nothing_is_lost_yet
            await group.removal(volumes).remove("two", force=True)
            assert group.slept_s >= 10
            assert await ranges_of(volumes, "demo") == [(0, 2048, "")]

        run(test)

    def test_one_that_runs_is_never_given_up(self) -> None:
        async def test(group: Group, volumes: Volumes) -> None:
            await create_ready(volumes, "demo", MIB, members=["two"])
            with pytest.raises(Conflict, match="'two' is running; stop it first"):
                await group.removal(volumes).remove("two", force=True)
            assert 10 <= group.slept_s <= 30  # it may have died just now
            assert await ranges_of(volumes, "demo") == [(0, 2048, "two")]
            await group.members["two"].tell(serving=True)

        run(test)

    def test_one_that_died_a_moment_ago_is_waited_for(self) -> None:
        async def test(group: Group, volumes: Volumes) -> None:
            await create_ready(volumes, "demo", MIB, members=["two"])

            async def lease_ends() -> None:
                if group.slept_s > 5:
                    await group.ended("two")

            group.at_sleep = lease_ends
            await group.removal(volumes).remove("two", force=True)
            assert await ranges_of(volumes, "demo") == [(0, 2048, "")]

        run(test)

    def test_one_that_starts_at_that_moment_stays(self) -> None:
        async def test(group: Group, volumes: Volumes) -> None:
            await create_ready(volumes, "demo", MIB, members=["two"])
            await group.ended("two")
            group.store.before = lambda store: group.members["two"].join((), "")
            with pytest.raises(Conflict, match="did it start"):
                await group.removal(volumes).remove("two", force=True)
            assert await ranges_of(volumes, "demo") == [(0, 2048, "two")]

        run(test)

    def test_what_waits_for_it_goes_on(self) -> None:
        """A volume being made, one that grows, one that shrinks, and one that is being deleted."""

        async def test(group: Group, volumes: Volumes) -> None:
            both = ["one", "two"]
            for name in ("grows", "shrinks", "deleted"):
                await create_ready(volumes, name, 4 * MIB, members=both)
            made = await volumes.create("made", 4 * MIB, members=both)
            grows = await volumes.resize("grows", 1 << 30)
            shrinks = await volumes.resize("shrinks", MIB, force=True)
            deleted = await volumes.delete("deleted")
            for record in (made, grows, shrinks):
                assert set(record.unconfirmed) == set(both)
                await volumes.confirm(record, "one")
            assert not await volumes.forget(deleted.id, "one")
            await group.ended("two")
            await group.removal(volumes).remove("two", force=True)
            for name in ("grows", "shrinks", "made"):
                record = await volumes.named(name)
                assert (record.state, record.unconfirmed, record.growing_from_bytes) == ("ready", (), 0)
                assert record.shrinking is False
                assert record.members == ("one",)
            assert await volumes.forget(deleted.id, "three")  # anybody: nobody holds what is left

        run(test)

    def test_a_range_that_changes_meanwhile_is_looked_at_again(self) -> None:
        async def test(group: Group, volumes: Volumes) -> None:
            record = await create_ready(volumes, "demo", MIB, members=["two"])
            await group.ended("two")

            class Moving(MemoryStore):
                moved = False

                async def transact(self, compares: Any, operations: Any) -> TransactionResult:
                    if not self.moved and operations[0].key.startswith("maps/"):
                        self.moved = True
                        placement = PlacementRecord(end_lba=1024, owner="three", generation=9)
                        back = PlacementRecord(end_lba=2048, owner="two", generation=2)
                        puts = [
                            Put(map_key(record.id, 0), encode(placement)),
                            Put(map_key(record.id, 1024), encode(back)),
                        ]
                        await super().transact([], puts)
                    return await super().transact(compares, operations)

            store = Moving(group.store.data)
            await store.open()
            await Removal(store, volumes, "one", group.sleep).remove("two", force=True)
            assert await ranges_of(volumes, "demo") == [(0, 1024, "three"), (1024, 2048, "")]

        run(test)


def test_a_removal_that_was_interrupted_anywhere_is_finished_by_the_next() -> None:
    async def once(steps: int) -> bool:
        """Die at the transaction after `steps` of them; False if there are not so many."""
        group = Group()
        volumes = await group.open()
        record = await create_ready(volumes, "demo", 4 * MIB, members=["one", "two"])
        await many_ranges(group.store, record, 4)
        await volumes.resize("demo", MIB, force=True)
        await group.ended("two")

        class Dying(MemoryStore):
            left = steps

            async def transact(self, compares: Any, operations: Any) -> TransactionResult:
                if self.left == 0:
                    raise StoreUnavailable("the removing member died")
                self.left -= 1
                return await super().transact(compares, operations)

        dying = Dying(group.store.data)
        await dying.open()
        interrupted = True
        try:
            await Removal(dying, Volumes(dying, volumes._group), "one", group.sleep).remove("two", force=True)
            interrupted = False
        except StoreUnavailable:
            if steps:
                with pytest.raises(Removed):  # from the first step on it gets no lease any more
                    await group.members["two"].join((), "")
            await group.removal(volumes).remove("two", force=True)
        await carried_out(volumes, "demo")
        found = await volumes.named("demo")
        assert (found.state, found.shrinking, found.members) == ("ready", False, ("one",))
        assert await ranges_of(volumes, "demo") == [(0, 2048, "one")]
        with pytest.raises(NotFound):
            await group.removal(volumes).remove("two")
        return interrupted

    async def body() -> None:
        steps = 0
        while await once(steps):
            steps += 1
        assert steps >= 4

    asyncio.run(body())


def test_copies_and_ranges_being_filled_lose_the_name_only() -> None:
    placement = PlacementRecord(end_lba=8, owner="a", copies=("b", "c"), joining="d", generation=1)
    assert without(placement, "b", 9) == msgspec.structs.replace(placement, copies=("c",))
    assert without(placement, "d", 9) == msgspec.structs.replace(placement, joining="")
    assert without(placement, "x", 9) == placement
    assert without(placement, "a", 9) == msgspec.structs.replace(placement, owner="", generation=9)
