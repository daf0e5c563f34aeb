"""Volumes as records: what may be created and changed, and what the store holds afterwards."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from san_target.group.errors import Conflict, Invalid, NotFound
from san_target.group.group_record import ensure_group
from san_target.group.membership import Membership, PoolFacts
from san_target.group.volumes import DELETING, Volumes
from san_target.metadata.memory import MemoryData, MemoryStore
from san_target.metadata.schema import (
    ChapRecord,
    MemberRecord,
    PlacementRecord,
    ReservationsRecord,
    VolumeRecord,
    decode,
    encode,
    map_key,
    member_key,
    reservations_key,
    volume_key,
)
from san_target.metadata.store import Compare, Delete, Put, Store, TransactionResult

MIB = 1 << 20


class Rival(MemoryStore):
    """A store in which somebody else is quicker: `before` runs once, before the next transaction."""

    before: Callable[[MemoryStore], Awaitable[object]] | None = None

    async def transact(self, compares: Any, operations: Any) -> TransactionResult:
        if self.before is not None:
            action, self.before = self.before, None
            await action(self)
        return await super().transact(compares, operations)


class Room:
    """Volumes on a fresh memory store with the members "one" and "two", which do nothing by themselves."""

    names = ("one", "two")

    def __init__(self) -> None:
        self.store = Rival(MemoryData(clock=lambda: 0.0))
        self.sessions: dict[str, int] = {}
        self.members: dict[str, Membership] = {}

    async def open(self) -> Volumes:
        await self.store.open()
        group = await ensure_group(self.store, "group", "00" * 16, bytes(32))
        for name in self.names:
            facts = PoolFacts(f"pool {name}", capacity_bytes=1 << 40, free_bytes=1 << 40)
            self.members[name] = Membership(self.store, name, facts, lambda: 0.0)
            await self.members[name].join((), "")
        return Volumes(self.store, group, sessions_on=lambda volume_id: self.sessions.get(volume_id, 0))

    async def set_state(self, name: str, state: str) -> None:
        item = await self.store.get(member_key(name))
        assert item is not None
        record = msgspec.structs.replace(decode(MemberRecord, item.value, item.key), state=state)
        await self.store.transact([], [Put(item.key, encode(record))])

    async def keys(self) -> list[str]:
        items = (await self.store.range("")).items
        own = ("group", "group-secret", "members", "leases")
        return [item.key for item in items if item.key.split("/")[0] not in own]


def run(test: Callable[[Room, Volumes], Awaitable[None]]) -> None:
    async def body() -> None:
        room = Room()
        await test(room, await room.open())

    asyncio.run(body())


async def create_ready(volumes: Volumes, name: str, size_bytes: int, **options: Any) -> VolumeRecord:
    """A volume whose members (if not told otherwise: "one") have made its blocks."""
    record = await volumes.create(name, size_bytes, **{"members": ["one"]} | options)
    await carried_out(volumes, name)
    assert record.unconfirmed
    return await volumes.named(name)


async def carried_out(volumes: Volumes, name: str) -> None:
    """Every member has done what it is asked to."""
    record = await volumes.named(name)
    for member in record.unconfirmed:
        await volumes.confirm(record, member)


async def ranges_of(volumes: Volumes, name: str) -> list[tuple[int, int, str]]:
    """(start LBA, end LBA, owner)"""
    return [(entry.start, entry.placement.end_lba, entry.placement.owner) for entry in await volumes.entries_of(name)]


def secret(user: str = "alice", text: str = "a-secret-of-16-b") -> ChapRecord:
    return ChapRecord(user, text)


class TestCreate:
    def test_a_volume_and_its_map(self) -> None:
        async def test(room: Room, volumes: Volumes) -> None:
            before = (await room.store.range("")).revision
            record = await volumes.create("Demo_1", 8 * MIB, block_size=4096, members=["one"], read_only=True)
            assert record.iqn == "iqn.2026-01.io.san-target:demo-1"
            assert (record.size_bytes, record.block_size, record.members) == (8 * MIB, 4096, ("one",))
            assert record.read_only
            assert record.state == "creating"
            assert len(bytes.fromhex(record.id)) == 16
            assert await volumes.named("Demo_1") == record
            [entry] = await volumes.entries_of("Demo_1")
            assert entry == (0, PlacementRecord(end_lba=2048, owner="one", generation=before), before + 1)
            assert record.unconfirmed == ("one",)
            assert (await room.store.range("")).revision == before + 1

        run(test)

    def test_a_volume_at_another_member(self) -> None:
        async def test(room: Room, volumes: Volumes) -> None:
            await volumes.create("demo", MIB, members=["two"])
            assert await ranges_of(volumes, "demo") == [(0, 2048, "two")]

        run(test)

    def test_all_are_listed_by_name(self) -> None:
        async def test(room: Room, volumes: Volumes) -> None:
            for name in ("b", "c", "a"):
                await volumes.create(name, MIB)
            assert [record.name for record in await volumes.all()] == ["a", "b", "c"]
            assert len({record.id for record in await volumes.all()}) == 3

        run(test)

    @pytest.mark.parametrize("name", ["demo", "DEMO", "a.b-c", "x" * 64, "7"])
    def test_good_names(self, name: str) -> None:
        async def test(room: Room, volumes: Volumes) -> None:
            assert (await volumes.create(name, MIB)).name == name

        run(test)

    @pytest.mark.parametrize("name", ["", "x" * 65, "-a", "a-", "a b", "a/b", "a\n", "ä", "a:b", "..", "a,b"])
    def test_bad_names(self, name: str) -> None:
        async def test(room: Room, volumes: Volumes) -> None:
            with pytest.raises(Invalid, match="is no name"):
                await volumes.create(name, MIB)
            assert await room.keys() == []

        run(test)

    @pytest.mark.parametrize(
        ("size_bytes", "block_size"), [(0, 512), (-512, 512), (513, 512), (512, 4096), (MIB, 1024), (1 << 63, 512)]
    )
    def test_bad_sizes(self, size_bytes: int, block_size: int) -> None:
        async def test(room: Room, volumes: Volumes) -> None:
            with pytest.raises(Invalid):
                await volumes.create("demo", size_bytes, block_size=block_size)
            assert await room.keys() == []

        run(test)

    @pytest.mark.parametrize("copies", [0, 2])
    def test_one_copy_only(self, copies: int) -> None:
        async def test(room: Room, volumes: Volumes) -> None:
            with pytest.raises(Invalid, match="copies are not supported"):
                await volumes.create("demo", MIB, copies=copies)

        run(test)

    def test_members_must_exist(self) -> None:
        async def test(room: Room, volumes: Volumes) -> None:
            with pytest.raises(NotFound, match="'three'"):
                await volumes.create("demo", MIB, members=["three"])
            with pytest.raises(Invalid, match="at most 32 members"):
                await volumes.create("demo", MIB, members=[f"m{number}" for number in range(33)])

        run(test)

    @pytest.mark.parametrize("second", ["demo", "DEMO"])
    def test_target_names_are_unique(self, second: str) -> None:
        async def test(room: Room, volumes: Volumes) -> None:
            await volumes.create("demo", MIB)
            with pytest.raises(Conflict, match="choose another name"):
                await volumes.create(second, MIB)
            assert len(await volumes.all()) == 1

        run(test)

    def test_a_rival_that_takes_the_name_in_between_wins(self) -> None:
        async def test(room: Room, volumes: Volumes) -> None:
            room.store.before = lambda store: volumes.create("demo", 2 * MIB)
            with pytest.raises(Conflict):
                await volumes.create("demo", MIB)
            assert [record.size_bytes for record in await volumes.all()] == [2 * MIB]

        run(test)

    @pytest.mark.parametrize(
        "allow", ["iqn.1993-08.org.debian:01:host", "eui.02004567A425678D", "naa.52004567BA64678D"]
    )
    def test_good_initiator_names(self, allow: str) -> None:
        async def test(room: Room, volumes: Volumes) -> None:
            assert (await volumes.create("demo", MIB, allow=[allow, allow])).allow == (allow,)

        run(test)

    @pytest.mark.parametrize(
        "allow", ["", "host", "iqn.1993-13.org:x", "iqn.1993-08.org debian", "eui.0200", "iqn.2026-01." + 220 * "x"]
    )
    def test_bad_initiator_names(self, allow: str) -> None:
        async def test(room: Room, volumes: Volumes) -> None:
            with pytest.raises(Invalid, match="is no iSCSI name"):
                await volumes.create("demo", MIB, allow=[allow])

        run(test)


class TestChap:
    def test_one_way_and_mutual(self) -> None:
        async def test(room: Room, volumes: Volumes) -> None:
            mutual = secret("target", "another-secret-")
            record = await volumes.create("demo", MIB, chap=[secret()], mutual_chap=mutual)
            assert (record.chap, record.mutual_chap) == ((secret(),), mutual)

        run(test)

    @pytest.mark.parametrize(
        ("chap", "mutual", "why"),
        [
            ([secret(text="x" * 11)], None, "has 11 bytes"),
            ([secret(text="x" * 129)], None, "has 129 bytes"),
            ([secret(text="x" * 12 + "\n")], None, "control characters"),
            ([secret("")], None, "no CHAP user name"),
            ([secret("a\n")], None, "no CHAP user name"),
            ([secret(), secret(text="other" * 5)], None, "given twice"),
            ([], secret(), "needs one-way CHAP"),
            ([secret()], secret("target"), "different ones"),
            ([secret()], secret("target", "short"), "has 5 bytes"),
        ],
    )
    def test_rules(self, chap: list[ChapRecord], mutual: ChapRecord | None, why: str) -> None:
        async def test(room: Room, volumes: Volumes) -> None:
            with pytest.raises(Invalid, match=why) as caught:
                await volumes.create("demo", MIB, chap=chap, mutual_chap=mutual)
            assert "a-secret-of" not in str(caught.value)

        run(test)

    @pytest.mark.parametrize("length", [12, 128])
    def test_length_limits_are_good(self, length: int) -> None:
        async def test(room: Room, volumes: Volumes) -> None:
            await volumes.create("demo", MIB, chap=[secret(text="x" * length)])

        run(test)


class TestConfirm:
    def test_a_volume_being_created_cannot_be_changed_but_deleted(self) -> None:
        async def test(room: Room, volumes: Volumes) -> None:
            record = await volumes.create("demo", MIB, members=["one"])
            for call in (volumes.resize("demo", 2 * MIB), volumes.change("demo", read_only=True)):
                with pytest.raises(Conflict, match="is being created"):
                    await call
            await volumes.delete("demo")
            await volumes.confirm(record, "one")
            assert (await volumes.named("demo")).state == DELETING

        run(test)

    def test_twice_or_by_others_or_never_known_is_harmless(self) -> None:
        async def test(room: Room, volumes: Volumes) -> None:
            created = await volumes.create("demo", MIB, members=["one"])
            await volumes.confirm(created, "two")
            assert (await volumes.named("demo")).state == "creating"
            await volumes.confirm(created, "one")
            assert (await volumes.named("demo")).state == "ready"
            revision = (await room.store.range("")).revision
            await volumes.confirm(created, "one")
            await volumes.confirm(msgspec.structs.replace(created, id="0" * 32), "one")
            assert (await room.store.range("")).revision == revision

        run(test)

    def test_a_volume_is_ready_when_all_have_made_their_blocks(self) -> None:
        async def test(room: Room, volumes: Volumes) -> None:
            record = await volumes.create("demo", 4 * MIB, members=["one", "two"])
            assert record.unconfirmed == ("one", "two")
            await volumes.confirm(record, "two")
            found = await volumes.named("demo")
            assert (found.state, found.unconfirmed) == ("creating", ("one",))
            await volumes.confirm(record, "one")
            found = await volumes.named("demo")
            assert (found.state, found.unconfirmed) == ("ready", ())

        run(test)

    def test_members_that_confirm_at_the_same_time(self) -> None:
        async def test(room: Room, volumes: Volumes) -> None:
            record = await volumes.create("demo", 4 * MIB, members=["one", "two"])
            room.store.before = lambda store: volumes.confirm(record, "one")
            await volumes.confirm(record, "two")
            assert (await volumes.named("demo")).state == "ready"

        run(test)

    def test_a_failure_is_told_until_it_works(self) -> None:
        async def test(room: Room, volumes: Volumes) -> None:
            record = await volumes.create("demo", MIB, members=["one"])
            await volumes.fail(record, "two", "not asked")
            assert (await volumes.named("demo")).failure == ""
            await volumes.fail(record, "one", "no space is left")
            assert (await volumes.named("demo")).failure == "member one: no space is left"
            revision = (await room.store.range("")).revision
            await volumes.fail(record, "one", "no space is left")
            assert (await room.store.range("")).revision == revision
            await volumes.confirm(record, "one")
            found = await volumes.named("demo")
            assert (found.state, found.failure) == ("ready", "")

        run(test)


class TestPlacing:
    def test_a_large_volume_is_spread_over_all_that_run(self) -> None:
        async def test(room: Room, volumes: Volumes) -> None:
            record = await volumes.create("demo", 1 << 30)
            ranges = await ranges_of(volumes, "demo")
            assert record.unconfirmed == ("one", "two")
            assert record.members == ()
            assert len(ranges) == 64
            assert (ranges[0][0], ranges[-1][1]) == (0, (1 << 30) // 512)
            assert {owner for _, _, owner in ranges} == {"one", "two"}

        run(test)

    @pytest.mark.parametrize("reason", ["gone", "draining"])
    def test_nothing_new_goes_to_a_member_that_is_gone_or_drained(self, reason: str) -> None:
        async def test(room: Room, volumes: Volumes) -> None:
            if reason == "gone":
                await room.members["two"].leave()
            else:
                await room.set_state("two", "draining")
            await volumes.create("demo", 1 << 30)
            assert {owner for _, _, owner in await ranges_of(volumes, "demo")} == {"one"}
            with pytest.raises(
                Conflict, match=r"'two' is (not running; start it|draining; activate it), or leave it out"
            ):
                await volumes.create("other", 1 << 30, members=["one", "two"])
            await room.members["one"].leave()
            with pytest.raises(Conflict, match="no member of the group can take a volume now"):
                await volumes.create("other", 1 << 30)

        run(test)

    def test_a_removed_member_is_none(self) -> None:
        async def test(room: Room, volumes: Volumes) -> None:
            await room.set_state("two", "removed")
            with pytest.raises(NotFound, match="no member 'two'"):
                await volumes.create("demo", MIB, members=["two"])
            await volumes.create("demo", 1 << 30)
            assert {owner for _, _, owner in await ranges_of(volumes, "demo")} == {"one"}

        run(test)


class TestChange:
    def test_only_what_is_given_changes(self) -> None:
        async def test(room: Room, volumes: Volumes) -> None:
            record = await create_ready(volumes, "demo", MIB, chap=[secret()], removable=True)
            changed = await volumes.change("demo", read_only=True, allow=["eui.02004567A425678D"])
            assert changed == msgspec.structs.replace(record, read_only=True, allow=("eui.02004567A425678D",))
            assert await volumes.named("demo") == changed
            assert (await volumes.change("demo", chap=[], allow=[])).chap == ()

        run(test)

    def test_the_whole_record_is_checked(self) -> None:
        async def test(room: Room, volumes: Volumes) -> None:
            await create_ready(volumes, "demo", MIB, chap=[secret()], mutual_chap=secret("t", "another-secret"))
            with pytest.raises(Invalid, match="needs one-way"):
                await volumes.change("demo", chap=[])
            await volumes.change("demo", chap=[], mutual_chap=None)

        run(test)

    def test_nothing_changed_writes_nothing(self) -> None:
        async def test(room: Room, volumes: Volumes) -> None:
            await create_ready(volumes, "demo", MIB)
            revision = (await room.store.range("")).revision
            await volumes.change("demo", read_only=False)
            await volumes.resize("demo", MIB)
            assert (await room.store.range("")).revision == revision

        run(test)

    def test_a_rival_change_is_not_overwritten(self) -> None:
        async def test(room: Room, volumes: Volumes) -> None:
            await create_ready(volumes, "demo", MIB)
            room.store.before = lambda store: volumes.change("demo", removable=True)
            with pytest.raises(Conflict, match="at the same time"):
                await volumes.change("demo", read_only=True)
            record = await volumes.named("demo")
            assert (record.removable, record.read_only) == (True, False)

        run(test)

    def test_unknown_volume(self) -> None:
        async def test(room: Room, volumes: Volumes) -> None:
            for call in (volumes.named("x"), volumes.change("x", read_only=True), volumes.resize("x", MIB)):
                with pytest.raises(NotFound, match="'x'"):
                    await call
            with pytest.raises(NotFound):
                await volumes.delete("x")
            with pytest.raises(NotFound):
                await volumes.entries_of("x")

        run(test)


class TestResize:
    def test_growing_extends_the_last_range(self) -> None:
        async def test(room: Room, volumes: Volumes) -> None:
            record = await create_ready(volumes, "demo", MIB)
            await split(room.store, record.id, 1024)
            await volumes.resize("demo", 3 * MIB)
            found = await volumes.named("demo")
            assert (found.size_bytes, found.growing_from_bytes, found.unconfirmed) == (3 * MIB, MIB, ("one",))
            assert await ranges_of(volumes, "demo") == [(0, 1024, "one"), (1024, 6144, "one")]
            await carried_out(volumes, "demo")
            found = await volumes.named("demo")
            assert (found.size_bytes, found.growing_from_bytes, found.unconfirmed) == (3 * MIB, 0, ())

        run(test)

    def test_large_growth_is_spread_and_keeps_regions_whole(self) -> None:
        async def test(room: Room, volumes: Volumes) -> None:
            await create_ready(volumes, "demo", MIB + 512, members=["one"])
            await room.store.transact(
                [],
                [
                    Put(
                        volume_key((await volumes.named("demo")).id),
                        encode(msgspec.structs.replace(await volumes.named("demo"), members=())),
                    )
                ],
            )
            before = (await volumes.entries_of("demo"))[0].placement.generation
            await volumes.resize("demo", 1 << 30)
            record, entries = await volumes.named("demo"), await volumes.entries_of("demo")
            assert record.unconfirmed == ("one", "two")
            assert entries[0].placement.owner == "one"
            assert entries[0].placement.generation == before
            assert entries[0].placement.end_lba >= 4096
            assert all(entry.start % 2048 == 0 for entry in entries)
            assert all(entry.placement.generation > before for entry in entries[1:])
            assert {entry.placement.owner for entry in entries} == {"one", "two"}
            assert len(entries) <= 65

        run(test)

    def test_growth_stays_with_the_members_that_were_named(self) -> None:
        async def test(room: Room, volumes: Volumes) -> None:
            await create_ready(volumes, "demo", MIB, members=["two"])
            await volumes.resize("demo", 1 << 30)
            assert {owner for _, _, owner in await ranges_of(volumes, "demo")} == {"two"}
            await carried_out(volumes, "demo")
            await room.members["two"].leave()
            with pytest.raises(Conflict, match="grows at member two, of which none is running"):
                await volumes.resize("demo", 2 << 30)

        run(test)

    def test_growth_that_needs_a_member_that_is_away(self) -> None:
        """The last region is not whole, and has one owner."""

        async def test(room: Room, volumes: Volumes) -> None:
            record = await create_ready(volumes, "demo", 3 * MIB - 512, members=["one"])
            await split(room.store, record.id, 2048, owner="two")
            await room.members["two"].leave()
            with pytest.raises(Conflict, match="ends at member two, which must take part"):
                await volumes.resize("demo", 5 * MIB)
            await volumes.resize("demo", 2 * MIB, force=True)
            assert (await volumes.named("demo")).unconfirmed == ("one", "two")

        run(test)

    def test_one_change_of_size_after_the_other(self) -> None:
        async def test(room: Room, volumes: Volumes) -> None:
            await create_ready(volumes, "demo", 2 * MIB)
            await volumes.resize("demo", 4 * MIB)
            with pytest.raises(Conflict, match="is growing to 4194304 bytes"):
                await volumes.resize("demo", 8 * MIB)
            await volumes.resize("demo", 2 * MIB)  # taken back; nobody has seen the new blocks
            found = await volumes.named("demo")
            assert (found.size_bytes, found.growing_from_bytes, found.shrinking) == (2 * MIB, 0, True)
            assert await ranges_of(volumes, "demo") == [(0, 4096, "one")]
            with pytest.raises(Conflict, match="is being shrunk to 2097152 bytes"):
                await volumes.resize("demo", 4 * MIB)
            await volumes.resize("demo", MIB, force=True)
            await volumes.resize("demo", MIB)  # asked for again
            await carried_out(volumes, "demo")
            await volumes.resize("demo", 4 * MIB)
            with pytest.raises(Conflict, match="--force"):
                await volumes.resize("demo", MIB // 2)

        run(test)

    def test_a_stale_confirmation_confirms_nothing(self) -> None:
        async def test(room: Room, volumes: Volumes) -> None:
            await create_ready(volumes, "demo", 2 * MIB)
            growing = await volumes.resize("demo", 4 * MIB)
            await volumes.resize("demo", 2 * MIB)
            await volumes.confirm(growing, "one")
            assert (await volumes.named("demo")).unconfirmed == ("one",)

        run(test)

    def test_a_map_of_many_ranges_is_cut_in_small_transactions(self) -> None:
        async def test(room: Room, volumes: Volumes) -> None:
            record = await create_ready(volumes, "demo", 300 * MIB)
            await many_ranges(room.store, record, 300)
            shrinking = await volumes.resize("demo", MIB + 512, force=True)
            assert await ranges_of(volumes, "demo") == [(0, 2048, "one"), (2048, 2049, "two")]
            assert shrinking.unconfirmed == ("one", "two")

        run(test)

    def test_a_cut_that_was_interrupted_is_finished_by_whoever_confirms_last(self) -> None:
        async def test(room: Room, volumes: Volumes) -> None:
            record = await create_ready(volumes, "demo", 4 * MIB)
            await many_ranges(room.store, record, 4)
            shrinking = msgspec.structs.replace(record, size_bytes=MIB, shrinking=True, unconfirmed=("one", "two"))
            await room.store.transact([], [Put(volume_key(record.id), encode(shrinking))])
            await volumes.confirm(shrinking, "one")
            assert len(await ranges_of(volumes, "demo")) == 4
            await volumes.confirm(shrinking, "two")
            assert await ranges_of(volumes, "demo") == [(0, 2048, "one")]
            assert (await volumes.named("demo")).shrinking is False

        run(test)

    def test_shrinking_needs_force_and_cuts_the_map(self) -> None:
        async def test(room: Room, volumes: Volumes) -> None:
            record = await create_ready(volumes, "demo", 2 * MIB)
            await split(room.store, record.id, 2048)
            with pytest.raises(Conflict, match="--force"):
                await volumes.resize("demo", MIB // 2)
            assert (await volumes.named("demo")).size_bytes == 2 * MIB
            await volumes.resize("demo", MIB // 2, force=True)
            assert await ranges_of(volumes, "demo") == [(0, 1024, "one")]

        run(test)

    def test_no_multiple_of_the_block_size(self) -> None:
        async def test(room: Room, volumes: Volumes) -> None:
            await create_ready(volumes, "demo", MIB, block_size=4096)
            with pytest.raises(Invalid, match="multiple"):
                await volumes.resize("demo", MIB + 512)

        run(test)

    def test_a_map_that_changed_in_between_is_not_overwritten(self) -> None:
        async def test(room: Room, volumes: Volumes) -> None:
            record = await create_ready(volumes, "demo", MIB)
            room.store.before = lambda store: split(store, record.id, 1024)
            with pytest.raises(Conflict):
                await volumes.resize("demo", 2 * MIB)
            assert await ranges_of(volumes, "demo") == [(0, 1024, "one"), (1024, 2048, "one")]

        run(test)


async def split(store: Store, volume_id: str, at_lba: int, owner: str = "one") -> None:
    """Divide the volume's only range at this LBA, as a migration would."""
    item = await store.get(map_key(volume_id, 0))
    assert item is not None
    whole = msgspec.json.decode(item.value, type=PlacementRecord)
    front = msgspec.structs.replace(whole, end_lba=at_lba)
    back = msgspec.structs.replace(whole, owner=owner)
    result = await store.transact(
        [Compare(item.key, item.mod_revision)],
        [Put(item.key, encode(front)), Put(map_key(volume_id, at_lba), encode(back))],
    )
    assert result.succeeded


async def many_ranges(store: Store, record: VolumeRecord, count: int) -> None:
    """Cut the volume's only range into `count`, at "one" and "two" in turns."""
    blocks = record.size_bytes // record.block_size // count
    puts = [
        Put(
            map_key(record.id, number * blocks),
            encode(PlacementRecord(end_lba=(number + 1) * blocks, owner=("one", "two")[number % 2], generation=3)),
        )
        for number in range(count)
    ]
    for start in range(0, count, 100):
        await store.transact([], puts[start : start + 100])


class TestDelete:
    def test_state_first_then_data_then_keys(self) -> None:
        async def test(room: Room, volumes: Volumes) -> None:
            record = await create_ready(volumes, "demo", MIB)
            await room.store.transact([], [Put(reservations_key(record.id), encode(ReservationsRecord(generation=1)))])
            assert (await volumes.delete("demo")).state == DELETING
            assert volume_key(record.id) in await room.keys()
            assert (await volumes.delete("demo")).state == DELETING
            assert await volumes.forget(record.id, "one")
            assert await room.keys() == []
            assert await volumes.forget(record.id, "one")
            assert (await volumes.create("demo", MIB)).id != record.id

        run(test)

    def test_while_it_is_being_deleted(self) -> None:
        async def test(room: Room, volumes: Volumes) -> None:
            await create_ready(volumes, "demo", MIB)
            await volumes.delete("demo")
            for call in (volumes.create("demo", MIB), volumes.create("DEMO", MIB)):
                with pytest.raises(Conflict, match="still being deleted"):
                    await call
            with pytest.raises(Conflict, match="being deleted"):
                await volumes.resize("demo", 2 * MIB)
            with pytest.raises(Conflict, match="being deleted"):
                await volumes.change("demo", read_only=True)

        run(test)

    def test_sessions_hinder_it_unless_forced(self) -> None:
        async def test(room: Room, volumes: Volumes) -> None:
            record = await create_ready(volumes, "demo", MIB)
            room.sessions[record.id] = 2
            with pytest.raises(Conflict, match="2 sessions are logged in"):
                await volumes.delete("demo")
            assert (await volumes.named("demo")).state == "ready"
            assert (await volumes.delete("demo", force=True)).state == DELETING

        run(test)

    def test_a_volume_that_is_not_being_deleted_is_not_forgotten(self) -> None:
        async def test(room: Room, volumes: Volumes) -> None:
            record = await create_ready(volumes, "demo", MIB)
            with pytest.raises(Conflict, match="is not being deleted"):
                await volumes.forget(record.id, "one")
            assert await volumes.named("demo") == record

        run(test)

    def test_the_last_holder_removes_the_tombstone(self) -> None:
        async def test(room: Room, volumes: Volumes) -> None:
            record = await create_ready(volumes, "demo", MIB)
            await split(room.store, record.id, 1024, owner="two")
            await volumes.delete("demo")
            assert not await volumes.forget(record.id, "one")
            assert not await volumes.forget(record.id, "one")
            assert [key for key in await room.keys() if key.startswith("maps/")] == [map_key(record.id, 1024)]
            assert (await volumes.named("demo")).state == DELETING
            assert await volumes.forget(record.id, "two")
            assert await room.keys() == []

        run(test)

    def test_a_map_of_many_ranges_goes_in_small_transactions(self) -> None:
        async def test(room: Room, volumes: Volumes) -> None:
            record = await create_ready(volumes, "demo", 300 * MIB)
            await many_ranges(room.store, record, 300)
            await volumes.delete("demo")
            assert not await volumes.forget(record.id, "two")
            assert {owner for _, _, owner in await ranges_of(volumes, "demo")} == {"one"}
            assert await volumes.forget(record.id, "one")
            assert await room.keys() == []

        run(test)

    def test_lost_ranges_are_forgotten_by_anybody(self) -> None:
        async def test(room: Room, volumes: Volumes) -> None:
            record = await create_ready(volumes, "demo", MIB)
            await split(room.store, record.id, 1024, owner="")
            await volumes.delete("demo")
            assert await volumes.forget(record.id, "one")
            assert await room.keys() == []

        run(test)

    def test_forgetting_is_redone_if_the_map_changed_in_between(self) -> None:
        async def test(room: Room, volumes: Volumes) -> None:
            record = await create_ready(volumes, "demo", MIB)
            await volumes.delete("demo")
            room.store.before = lambda store: split(store, record.id, 1024)
            assert not await volumes.forget(record.id, "one")
            assert await volumes.forget(record.id, "one")
            assert await room.keys() == []

        run(test)

    @pytest.mark.parametrize("steps", [0, 1, 2])
    def test_a_deletion_interrupted_anywhere_can_be_completed(self, steps: int) -> None:
        """Each prefix of the steps leaves a state from which the same steps end the same way."""

        async def test(room: Room, volumes: Volumes) -> None:
            record = await create_ready(volumes, "demo", MIB)
            if steps > 0:
                await volumes.delete("demo")
            if steps > 1:
                await volumes.forget(record.id, "one")
            if steps < 2:
                await volumes.delete("demo")
            assert await volumes.forget(record.id, "one")
            assert await room.keys() == []

        run(test)


def test_unknown_options_are_a_bug_of_the_caller() -> None:
    async def test(room: Room, volumes: Volumes) -> None:
        await create_ready(volumes, "demo", MIB)
        with pytest.raises(TypeError, match="size_bytes"):
            await volumes.change("demo", size_bytes=1)  # type: ignore[call-arg]
        with pytest.raises(TypeError):
            await volumes.change("demo", id="0")  # type: ignore[call-arg]

    run(test)


def test_deleting_a_key_by_hand_is_no_tombstone() -> None:
    """A missing record never counts as permission to forget map entries."""

    async def test(room: Room, volumes: Volumes) -> None:
        record = await create_ready(volumes, "demo", MIB)
        await room.store.transact([], [Delete(volume_key(record.id))])
        await volumes.forget(record.id, "one")
        assert map_key(record.id, 0) in await room.keys()

    run(test)
