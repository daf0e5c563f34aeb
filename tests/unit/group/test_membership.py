"""The group's record, members, incarnations and leases."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from san_target.group.errors import Conflict
from san_target.group.group_record import ensure_group, find_group, set_portal_policy
from san_target.group.membership import Membership, member_names
from san_target.metadata.memory import MemoryData, MemoryStore
from san_target.metadata.schema import GROUP_KEY, lease_key, member_key
from san_target.metadata.store import Put, StoreError


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def run(test: Callable[[MemoryStore, Clock], Awaitable[None]]) -> None:
    async def body() -> None:
        clock = Clock()
        store = MemoryStore(MemoryData(clock))
        await store.open()
        await test(store, clock)

    asyncio.run(body())


class TestGroup:
    def test_the_first_start_makes_it_and_later_ones_find_it(self) -> None:
        async def test(store: MemoryStore, clock: Clock) -> None:
            assert await find_group(store) is None
            made = await ensure_group(store, "lab", "aa" * 16)
            assert (made.id, made.name, made.portal_group_tag, made.portal_policy) == ("aa" * 16, "lab", 1, "none")
            assert await ensure_group(store, "lab", "bb" * 16) == made

        run(test)

    def test_starting_together_makes_one(self) -> None:
        async def test(store: MemoryStore, clock: Clock) -> None:
            made = await asyncio.gather(*(ensure_group(store, "lab", f"{number:032x}") for number in range(3)))
            assert len({record.id for record in made}) == 1

        run(test)

    def test_another_groups_store_is_refused(self) -> None:
        async def test(store: MemoryStore, clock: Clock) -> None:
            await ensure_group(store, "lab", "aa" * 16)
            with pytest.raises(StoreError, match="'lab', not 'home'"):
                await ensure_group(store, "home", "bb" * 16)

        run(test)

    def test_records_without_a_group_are_damage(self) -> None:
        async def test(store: MemoryStore, clock: Clock) -> None:
            await store.transact([], [Put("volumes/x", b"")])
            with pytest.raises(StoreError, match="backup"):
                await ensure_group(store, "lab", "aa" * 16)
            assert await store.get(GROUP_KEY) is None

        run(test)

    def test_a_newer_or_damaged_record_is_not_misread(self) -> None:
        async def test(store: MemoryStore, clock: Clock) -> None:
            await store.transact([], [Put(GROUP_KEY, b'{"version":2,"id":"x","name":"lab"}')])
            with pytest.raises(StoreError, match="upgrade"):
                await ensure_group(store, "lab", "aa" * 16)
            await store.transact([], [Put(GROUP_KEY, b'{"id":')])
            with pytest.raises(StoreError, match="backup"):
                await ensure_group(store, "lab", "aa" * 16)

        run(test)

    def test_policy(self) -> None:
        async def test(store: MemoryStore, clock: Clock) -> None:
            with pytest.raises(StoreError, match="no group"):
                await set_portal_policy(store, "adaptive")
            made = await ensure_group(store, "lab", "aa" * 16)
            assert (await set_portal_policy(store, "adaptive")).portal_policy == "adaptive"
            found = await find_group(store)
            assert found is not None
            assert (found.portal_policy, found.id) == ("adaptive", made.id)

        run(test)


class TestMembership:
    def test_each_start_is_a_new_incarnation(self) -> None:
        async def test(store: MemoryStore, clock: Clock) -> None:
            for expected in (1, 2, 3):
                member = Membership(store, "one", "pool", clock)
                record = await member.join(("127.0.0.1:3260",), "127.0.0.1:3280")
                assert record.incarnation == member.incarnation == expected
                assert record.portals == ("127.0.0.1:3260",)
                await member.leave()
            assert await member_names(store) == {"one"}

        run(test)

    def test_a_crashed_member_starts_again_at_once_on_its_pool(self) -> None:
        async def test(store: MemoryStore, clock: Clock) -> None:
            await Membership(store, "one", "pool", clock).join((), "")
            again = Membership(store, "one", "pool", clock)
            assert (await again.join((), "")).incarnation == 2
            clock.now += 9  # the dead incarnation's lease ends, which must not take the new sign of life with it
            assert await again.renew()
            clock.now += 5
            assert await store.get(lease_key("one")) is not None

        run(test)

    def test_the_same_name_on_another_pool_is_refused_while_alive(self) -> None:
        async def test(store: MemoryStore, clock: Clock) -> None:
            first = Membership(store, "one", "pool", clock)
            await first.join((), "")
            with pytest.raises(Conflict, match="another pool"):
                await Membership(store, "one", "other pool", clock).join((), "")
            assert await first.renew()
            clock.now += 10
            assert (await Membership(store, "one", "other pool", clock).join((), "")).incarnation == 2

        run(test)

    def test_validity_is_counted_from_before_the_renewal(self) -> None:
        async def test(store: MemoryStore, clock: Clock) -> None:
            class Slow(MemoryStore):
                async def renew_lease(self, lease_id: int) -> bool:
                    result = await super().renew_lease(lease_id)
                    clock.now += 4
                    return result

            slow = Slow(store.data)
            await slow.open()
            member = Membership(slow, "one", "pool", clock, ttl_s=10)
            assert not member.is_valid()
            await member.join((), "")
            assert member.is_valid()
            assert await member.renew()
            clock.now += 4.9
            assert member.is_valid()
            clock.now += 0.2
            assert not member.is_valid()
            assert await store.get(lease_key("one")) is not None  # the store waits longer than we trust it

        run(test)

    def test_a_lost_lease_is_noticed(self) -> None:
        async def test(store: MemoryStore, clock: Clock) -> None:
            member = Membership(store, "one", "pool", clock)
            await member.join((), "")
            clock.now += 10
            assert not await member.renew()
            assert not member.is_valid()

        run(test)

    def test_leaving_is_seen_at_once(self) -> None:
        async def test(store: MemoryStore, clock: Clock) -> None:
            member = Membership(store, "one", "pool", clock)
            await member.join((), "")
            await member.leave()
            assert await store.get(lease_key("one")) is None
            assert await store.get(member_key("one")) is not None
            assert not member.is_valid()
            await member.leave()

        run(test)
