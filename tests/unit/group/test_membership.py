"""The group's record, members, incarnations and leases."""

import asyncio
from collections.abc import Awaitable, Callable

import msgspec
import pytest

from san_target.group.compatibility import Versions
from san_target.group.errors import Conflict
from san_target.group.group_record import ensure_group, find_group, group_secret, set_portal_policy
from san_target.group.membership import Membership, PoolFacts, Removed, member_records, worth_telling
from san_target.metadata.memory import MemoryData, MemoryStore
from san_target.metadata.schema import (
    GROUP_KEY,
    GROUP_SECRET_KEY,
    GroupSecretRecord,
    MemberRecord,
    decode,
    encode,
    lease_key,
    member_key,
)
from san_target.metadata.store import Delete, Put, Store, StoreError

SECRET = bytes(range(32))
POOL = PoolFacts("pool", has_volumes=True, capacity_bytes=1000, free_bytes=600)
OTHER_POOL = PoolFacts("other pool")


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
            made = await ensure_group(store, "lab", "aa" * 16, SECRET)
            assert (made.id, made.name, made.portal_group_tag, made.portal_policy) == ("aa" * 16, "lab", 1, "none")
            assert await ensure_group(store, "lab", "bb" * 16, SECRET) == made

        run(test)

    def test_the_secret_is_the_groups_and_stays(self) -> None:
        async def test(store: MemoryStore, clock: Clock) -> None:
            await ensure_group(store, "lab", "aa" * 16, SECRET)
            await ensure_group(store, "lab", "bb" * 16, bytes(32))
            assert await group_secret(store, bytes(32)) == SECRET

        run(test)

    def test_a_store_without_a_secret_gets_one(self) -> None:
        async def test(store: MemoryStore, clock: Clock) -> None:
            await ensure_group(store, "lab", "aa" * 16, SECRET)
            await store.transact([], [Delete(GROUP_SECRET_KEY)])
            secrets = await asyncio.gather(*(group_secret(store, bytes([number]) * 32) for number in range(3)))
            assert len(set(secrets)) == 1
            await store.transact([], [Put(GROUP_SECRET_KEY, encode(GroupSecretRecord(secret=b"short")))])
            with pytest.raises(StoreError, match="backup"):
                await group_secret(store, SECRET)

        run(test)

    def test_starting_together_makes_one(self) -> None:
        async def test(store: MemoryStore, clock: Clock) -> None:
            made = await asyncio.gather(*(ensure_group(store, "lab", f"{number:032x}", SECRET) for number in range(3)))
            assert len({record.id for record in made}) == 1

        run(test)

    def test_another_groups_store_is_refused(self) -> None:
        async def test(store: MemoryStore, clock: Clock) -> None:
            await ensure_group(store, "lab", "aa" * 16, SECRET)
            with pytest.raises(StoreError, match="'lab', not 'home'"):
                await ensure_group(store, "home", "bb" * 16, SECRET)

        run(test)

    def test_records_without_a_group_are_damage(self) -> None:
        async def test(store: MemoryStore, clock: Clock) -> None:
            await store.transact([], [Put("volumes/x", b"")])
            with pytest.raises(StoreError, match="backup"):
                await ensure_group(store, "lab", "aa" * 16, SECRET)
            assert await store.get(GROUP_KEY) is None

        run(test)

    def test_a_newer_or_damaged_record_is_not_misread(self) -> None:
        async def test(store: MemoryStore, clock: Clock) -> None:
            await store.transact([], [Put(GROUP_KEY, b'{"version":2,"id":"x","name":"lab"}')])
            with pytest.raises(StoreError, match="upgrade"):
                await ensure_group(store, "lab", "aa" * 16, SECRET)
            await store.transact([], [Put(GROUP_KEY, b'{"id":')])
            with pytest.raises(StoreError, match="backup"):
                await ensure_group(store, "lab", "aa" * 16, SECRET)

        run(test)

    def test_policy(self) -> None:
        async def test(store: MemoryStore, clock: Clock) -> None:
            with pytest.raises(StoreError, match="no group"):
                await set_portal_policy(store, "adaptive")
            made = await ensure_group(store, "lab", "aa" * 16, SECRET)
            assert (await set_portal_policy(store, "adaptive")).portal_policy == "adaptive"
            found = await find_group(store)
            assert found is not None
            assert (found.portal_policy, found.id) == ("adaptive", made.id)

        run(test)


class TestMembership:
    def test_each_start_is_a_new_incarnation(self) -> None:
        async def test(store: MemoryStore, clock: Clock) -> None:
            for expected in (1, 2, 3):
                member = Membership(store, "one", POOL, clock)
                record = await member.join(("127.0.0.1:3260",), "127.0.0.1:3280")
                assert record.incarnation == member.incarnation == expected
                assert record.portals == ("127.0.0.1:3260",)
                await member.leave()
            assert [record.name for record in await member_records(store)] == ["one"]

        run(test)

    def test_a_crashed_member_starts_again_at_once_on_its_pool(self) -> None:
        async def test(store: MemoryStore, clock: Clock) -> None:
            await Membership(store, "one", POOL, clock).join((), "")
            again = Membership(store, "one", POOL, clock)
            assert (await again.join((), "")).incarnation == 2
            clock.now += 9  # the dead incarnation's lease ends, which must not take the new sign of life with it
            assert await again.renew()
            clock.now += 5
            assert await store.get(lease_key("one")) is not None

        run(test)

    def test_the_same_name_on_another_pool_is_refused_while_alive(self) -> None:
        async def test(store: MemoryStore, clock: Clock) -> None:
            first = Membership(store, "one", POOL, clock)
            await first.join((), "")
            with pytest.raises(Conflict, match="another pool"):
                await Membership(store, "one", OTHER_POOL, clock).join((), "")
            assert await first.renew()
            clock.now += 10
            assert (await Membership(store, "one", OTHER_POOL, clock).join((), "")).incarnation == 2

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
            member = Membership(slow, "one", POOL, clock, ttl_s=10)
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
            member = Membership(store, "one", POOL, clock)
            await member.join((), "")
            clock.now += 10
            assert not await member.renew()
            assert not member.is_valid()

        run(test)

    def test_leaving_is_seen_at_once(self) -> None:
        async def test(store: MemoryStore, clock: Clock) -> None:
            member = Membership(store, "one", POOL, clock)
            await member.join((), "")
            await member.leave()
            assert await store.get(lease_key("one")) is None
            assert await store.get(member_key("one")) is not None
            assert not member.is_valid()
            await member.leave()

        run(test)


async def stored(store: Store, name: str = "one") -> MemberRecord:
    item = await store.get(member_key(name))
    assert item is not None
    return decode(MemberRecord, item.value, item.key)


async def set_state(store: Store, state: str, name: str = "one") -> None:
    record = msgspec.structs.replace(await stored(store, name), state=state)
    await store.transact([], [Put(member_key(name), encode(record))])


class TestTold:
    def test_what_others_learn_of_a_member(self) -> None:
        async def test(store: MemoryStore, clock: Clock) -> None:
            member = Membership(store, "one", POOL, clock)
            record = await member.join(("127.0.0.1:1",), "127.0.0.1:2", "127.0.0.1:3")
            assert record == await stored(store)
            assert (record.portals, record.admin, record.peer) == (("127.0.0.1:1",), "127.0.0.1:2", "127.0.0.1:3")
            assert (record.pool_id, record.capacity_bytes, record.free_bytes) == ("pool", 1000, 600)
            assert (record.state, record.serving, record.program) == ("active", False, Versions().program)
            await member.tell(portals=("127.0.0.1:9",), serving=True, free_bytes=500)
            told = await stored(store)
            assert (told.portals, told.admin, told.serving, told.free_bytes) == (
                ("127.0.0.1:9",),
                "127.0.0.1:2",
                True,
                500,
            )
            assert member.record == told
            revision = (await store.range("")).revision
            await member.tell(free_bytes=500)
            assert (await store.range("")).revision == revision

        run(test)

    def test_it_does_not_undo_what_the_operator_has_set_meanwhile(self) -> None:
        async def test(store: MemoryStore, clock: Clock) -> None:
            member = Membership(store, "one", POOL, clock)
            await member.join((), "")
            await set_state(store, "draining")
            await member.tell(serving=True)
            found = await stored(store)
            assert (found.state, found.serving) == ("draining", True)
            again = await Membership(store, "one", POOL, clock).join((), "")
            assert (again.state, again.serving) == ("draining", False)

        run(test)

    def test_an_old_incarnation_tells_nothing(self) -> None:
        async def test(store: MemoryStore, clock: Clock) -> None:
            old = Membership(store, "one", POOL, clock)
            await old.join((), "")
            await Membership(store, "one", POOL, clock).join((), "")
            with pytest.raises(Conflict, match="another process has started"):
                await old.tell(serving=True)

        run(test)

    @pytest.mark.parametrize(
        ("told", "free", "since_s", "worth"),
        [(1000, 940, 60, True), (1000, 940, 59, False), (1000, 951, 3600, False), (0, 1, 60, True), (0, 0, 60, False)],
    )
    def test_free_space_is_told_now_and_then(self, told: int, free: int, since_s: float, worth: bool) -> None:
        assert worth_telling(told, free, since_s) is worth


class TestRefusedMembers:
    def test_a_removed_member_that_starts_again(self) -> None:
        async def test(store: MemoryStore, clock: Clock) -> None:
            member = Membership(store, "one", POOL, clock)
            await member.join((), "")
            await member.leave()
            for state in ("removing", "removed"):
                await set_state(store, state)
                with pytest.raises(Removed, match=r"was removed from the group.*start with an empty --dir"):
                    await Membership(store, "one", POOL, clock).join((), "")
                assert await store.get(lease_key("one")) is None

        run(test)

    def test_a_running_member_that_is_removed_learns_of_it(self) -> None:
        async def test(store: MemoryStore, clock: Clock) -> None:
            member = Membership(store, "one", POOL, clock)
            await member.join((), "")
            await set_state(store, "removing")
            with pytest.raises(Removed):
                await member.tell(free_bytes=1)

        run(test)

    def test_its_pool_under_another_name(self) -> None:
        async def test(store: MemoryStore, clock: Clock) -> None:
            await Membership(store, "one", POOL, clock).join((), "")
            with pytest.raises(Conflict, match="belongs to member 'one'; start with --name one"):
                await Membership(store, "two", POOL, clock).join((), "")
            await set_state(store, "removed")
            with pytest.raises(Removed, match="belonged to member 'one', which was removed"):
                await Membership(store, "two", POOL, clock).join((), "")

        run(test)

    def test_a_new_disk_under_the_name_of_an_old_one(self) -> None:
        async def test(store: MemoryStore, clock: Clock) -> None:
            await (old := Membership(store, "one", POOL, clock)).join((), "")
            await old.leave()
            await set_state(store, "removed")
            used = PoolFacts("used pool", has_volumes=True)
            with pytest.raises(Removed):
                await Membership(store, "one", used, clock).join((), "")
            record = await Membership(store, "one", OTHER_POOL, clock).join((), "")
            assert (record.incarnation, record.state, record.pool_id) == (2, "active", "other pool")

        run(test)

    def test_a_program_that_does_not_fit_those_that_run(self) -> None:
        async def test(store: MemoryStore, clock: Clock) -> None:
            await (one := Membership(store, "one", POOL, clock)).join((), "")
            new = Versions("9.0", Versions().schema, 7, 8)
            with pytest.raises(Conflict, match=r"member 'one' .* is too old to talk to this program \(9.0\)"):
                await Membership(store, "two", OTHER_POOL, clock, versions=new).join((), "")
            assert await store.get(member_key("two")) is None
            await one.leave()  # those that do not run do not matter
            await Membership(store, "two", OTHER_POOL, clock, versions=new).join((), "")
            with pytest.raises(Conflict, match="upgrade this member"):
                await Membership(store, "one", POOL, clock).join((), "")

        run(test)
