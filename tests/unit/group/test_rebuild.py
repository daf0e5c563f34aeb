"""A store made of what the pools hold: who has what, what only a backup knows, and what does not belong together."""

import asyncio

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from san_target.group.backup import Backup, Header, lines_of, read, write
from san_target.group.group_record import ensure_group, find_group
from san_target.group.membership import Membership, PoolFacts
from san_target.group.rebuild import NOBODY, Claim, Fresh, RebuildError, Rebuilt, painted, rebuild
from san_target.group.volumes import Volumes
from san_target.metadata.memory import MemoryData, MemoryStore
from san_target.metadata.schema import (
    GROUP_KEY,
    GroupRecord,
    MemberRecord,
    PlacementRecord,
    ReservationsRecord,
    RestoreRecord,
    VolumeRecord,
    decode,
    encode,
    map_key,
    member_key,
    reservations_key,
    target_name_key,
    volume_key,
)
from san_target.metadata.store import Put
from san_target.storage.pool_contents import PoolContents
from san_target.storage.records import HELD, HeldRange, HeldRecord, PoolRecord, revision_allowed

GROUP_ID = "aa" * 16
VOLUME = "bb" * 16
OTHER = "cc" * 16
FRESH = Fresh("dd" * 16, "lab", bytes(range(32)))
BLOCKS = 2048


def held(volume_id: str, *pieces: HeldRange, blocks: int = BLOCKS, block_size: int = 512) -> HeldRecord:
    return HeldRecord(volume_id=volume_id, size_bytes=blocks * block_size, block_size=block_size, held=pieces)


def pool(name: str, *records: HeldRecord, revision: int = 50, restore: str = "", group: str = GROUP_ID) -> PoolContents:
    record = PoolRecord(pool_id=f"pool {name}", group_id=group, revision=revision, restore=restore)
    return PoolContents(pool=record, volumes=records)


def backup(*values: tuple[str, bytes], revision: int = 40, group: GroupRecord | None = None) -> Backup:
    group = group or GroupRecord(id=GROUP_ID, name="lab", portal_policy="round-robin")
    made = Backup(Header(1, group.name, group.id, revision), {GROUP_KEY: encode(group)})
    made.values |= dict(values)
    return made


def volume_values(record: VolumeRecord, *placements: tuple[int, int, str, int]) -> list[tuple[str, bytes]]:
    """placements: (start, end, owner, generation)"""
    maps = [
        (map_key(record.id, start), encode(PlacementRecord(end_lba=end, owner=owner, generation=generation)))
        for start, end, owner, generation in placements
    ]
    return [(volume_key(record.id), encode(record)), (target_name_key(record.iqn), record.id.encode()), *maps]


KNOWN = VolumeRecord(
    id=VOLUME,
    name="disk",
    iqn="iqn.2026-01.io.san-target:disk",
    size_bytes=BLOCKS * 512,
    allow=("eui.0123456789abcdef",),
)


def ranges(made: Rebuilt, volume_id: str = VOLUME) -> list[tuple[int, int, str, int]]:
    found = []
    for key, value in sorted(made.values.items()):
        if key.startswith(f"maps/{volume_id}/"):
            record = decode(PlacementRecord, value, key)
            found.append((int(key.rpartition("/")[2], 16), record.end_lba, record.owner, record.generation))
    return found


def record(made: Rebuilt, volume_id: str = VOLUME) -> VolumeRecord:
    return decode(VolumeRecord, made.values[volume_key(volume_id)], volume_id)


class TestMaps:
    def test_each_pool_has_what_it_holds(self) -> None:
        made = rebuild(
            {
                "one": pool("one", held(VOLUME, HeldRange(0, 512, 5), HeldRange(1024, 2048, 9))),
                "two": pool("two", held(VOLUME, HeldRange(512, 1024, 7))),
            },
            None,
            FRESH,
            {VOLUME: "disk"},
        )
        assert ranges(made) == [(0, 512, "one", 5), (512, 1024, "two", 7), (1024, 2048, "one", 9)]
        [found] = made.volumes
        assert (found.holders, found.lost_bytes, found.is_new) == (("one", "two"), 0, True)

    def test_the_later_placement_counts(self) -> None:
        """The source of a migration may still have what it gave away."""
        made = rebuild(
            {
                "one": pool("one", held(VOLUME, HeldRange(0, 2048, 5))),
                "two": pool("two", held(VOLUME, HeldRange(100, 200, 9))),
            },
            None,
            FRESH,
            {},
        )
        assert ranges(made) == [(0, 100, "one", 5), (100, 200, "two", 9), (200, 2048, "one", 5)]

    def test_what_was_not_complete_does_not_count(self) -> None:
        made = rebuild(
            {
                "one": pool("one", held(VOLUME, HeldRange(0, 2048, 5))),
                "two": pool("two", held(VOLUME, HeldRange(100, 200, 9, "sealed"))),
            },
            None,
            FRESH,
            {},
        )
        assert ranges(made) == [(0, 2048, "one", 5)]

    def test_what_nobody_holds_is_lost(self) -> None:
        made = rebuild({"one": pool("one", held(VOLUME, HeldRange(512, 1024, 5)), revision=60)}, None, FRESH, {})
        assert made.revision == 61
        assert ranges(made) == [(0, 512, "", 61), (512, 1024, "one", 5), (1024, 2048, "", 61)]
        assert made.volumes[0].lost_bytes == 1536 * 512

    def test_two_pools_with_the_same_claim(self) -> None:
        with pytest.raises(RebuildError, match=r"hold the same blocks .*LBA 100"):
            rebuild(
                {
                    "one": pool("one", held(VOLUME, HeldRange(0, 200, 5))),
                    "two": pool("two", held(VOLUME, HeldRange(100, 300, 5))),
                },
                None,
                FRESH,
                {},
            )

    claims = st.lists(
        st.tuples(st.integers(1, 6), st.integers(0, 29), st.integers(1, 12), st.sampled_from("abc")).map(
            lambda one: Claim(one[0] * 3 + "abc".index(one[3]), one[1], one[1] + one[2], one[3])
        ),
        max_size=12,
    )

    @given(claims)
    def test_each_block_is_where_the_latest_claim_says(self, claims: list[Claim]) -> None:
        snapshot = painted(30, claims, 99, "disk").snapshot()
        for lba in range(30):
            latest = max((claim for claim in claims if claim.start <= lba < claim.end), default=None)
            placement = snapshot.find(lba)
            expected = ("", 99) if latest is None else (latest.member, latest.generation)
            assert (placement.owner, placement.generation) == expected


class TestWithABackup:
    def test_names_and_rules_are_its_own(self) -> None:
        reservations = encode(ReservationsRecord(generation=3))
        made = rebuild(
            {"one": pool("one", held(VOLUME, HeldRange(0, 2048, 5)))},
            backup(*volume_values(KNOWN, (0, 2048, "one", 5)), (reservations_key(VOLUME), reservations)),
            FRESH,
            {},
        )
        assert record(made) == KNOWN
        assert made.values[target_name_key(KNOWN.iqn)] == VOLUME.encode()
        assert made.values[reservations_key(VOLUME)] == reservations
        group = decode(GroupRecord, made.values[GROUP_KEY], GROUP_KEY)
        assert (group.name, group.portal_policy) == ("lab", "round-robin")

    def test_what_it_waited_for_is_over(self) -> None:
        waiting = msgspec.structs.replace(KNOWN, state="creating", unconfirmed=("one", "two"), failure="x")
        made = rebuild(
            {"one": pool("one", held(VOLUME, HeldRange(0, 2048, 5)))}, backup(*volume_values(waiting)), FRESH, {}
        )
        assert record(made) == KNOWN
        deleted = msgspec.structs.replace(KNOWN, state="deleting")
        made = rebuild(
            {"one": pool("one", held(VOLUME, HeldRange(0, 2048, 5)))}, backup(*volume_values(deleted)), FRESH, {}
        )
        assert record(made).state == "deleting"

    def test_a_volume_that_has_another_size_by_now(self) -> None:
        made = rebuild(
            {
                "one": pool("one", held(VOLUME, HeldRange(0, 4096, 5), blocks=4096)),
                "two": pool("two", held(VOLUME, blocks=2048)),
            },
            backup(*volume_values(KNOWN, (0, 2048, "one", 5))),
            FRESH,
            {},
        )
        assert record(made).size_bytes == 4096 * 512
        assert any("it has 2097152 bytes, 1048576 in the backup" in note for note in made.notes)

    def test_volumes_that_it_does_not_know_admit_nobody(self) -> None:
        made = rebuild(
            {"one": pool("one", held(VOLUME, HeldRange(0, 2048, 5)), held(OTHER, HeldRange(0, 2048, 45)))},
            backup(*volume_values(KNOWN, (0, 2048, "one", 5))),
            FRESH,
            {},
        )
        new = record(made, OTHER)
        assert (new.name, new.allow) == (f"recovered-{OTHER[:8]}", (NOBODY,))
        assert any("nobody may log in" in note for note in made.notes)
        named = rebuild({"one": pool("one", held(OTHER, HeldRange(0, 2048, 45)))}, backup(), FRESH, {OTHER: "mine"})
        assert record(named, OTHER).iqn == "iqn.2026-01.io.san-target:mine"

    def test_volumes_that_no_pool_has_any_more_are_left_out(self) -> None:
        made = rebuild({"one": pool("one")}, backup(*volume_values(KNOWN, (0, 2048, "one", 5))), FRESH, {})
        assert made.volumes == []
        assert volume_key(VOLUME) not in made.values
        assert any("volume disk: no pool holds anything of it" in note for note in made.notes)

    def test_a_member_whose_pool_is_not_given_keeps_what_the_backup_says(self) -> None:
        two = MemberRecord(name="two", incarnation=4, portals=(), admin="", pool_id="pool two")
        made = rebuild(
            {"one": pool("one", held(VOLUME, HeldRange(0, 1000, 5), HeldRange(1500, 1600, 45)))},
            backup(
                *volume_values(KNOWN, (0, 1000, "one", 5), (1000, 2048, "two", 6)), (member_key("two"), encode(two))
            ),
            FRESH,
            {},
        )
        assert ranges(made) == [
            (0, 1000, "one", 5),
            (1000, 1500, "two", 6),
            (1500, 1600, "one", 45),
            (1600, 2048, "two", 6),
        ]
        assert any("member two: no pool was given" in note for note in made.notes)


class TestMembersAndGroup:
    def test_incarnations_are_newer_than_any(self) -> None:
        old = MemberRecord(name="one", incarnation=7, portals=(), admin="", pool_id="pool one", state="removed")
        made = rebuild(
            {"one": pool("one", revision=80), "two": pool("two")}, backup((member_key("one"), encode(old))), FRESH, {}
        )
        for name in ("one", "two"):
            found = decode(MemberRecord, made.values[member_key(name)], name)
            assert (found.incarnation, found.state, found.pool_id) == (81, "active", f"pool {name}")

    @pytest.mark.parametrize(
        "restores", [(), (RestoreRecord("r1", 10),), (RestoreRecord("r1", 10), RestoreRecord("r2", 20))]
    )
    def test_every_pool_that_was_given_is_admitted(self, restores: tuple[RestoreRecord, ...]) -> None:
        pools = {
            "one": pool("one", revision=80),
            "two": pool("two", revision=70, restore="r1"),
            "three": pool("three", revision=90, restore="unknown"),
        }
        group = GroupRecord(id=GROUP_ID, name="lab", restores=restores)
        made = rebuild(pools, backup(group=group), FRESH, {})
        line = [(one.id, one.revision) for one in decode(GroupRecord, made.values[GROUP_KEY], GROUP_KEY).restores]
        for contents in pools.values():
            allowed = revision_allowed(contents.pool.restore, made.revision + 5, line)
            assert allowed is not None
            assert allowed >= contents.pool.revision
        assert revision_allowed(FRESH.restore_id, 1000, line) == 1000
        more = revision_allowed("", 1000, line)
        assert more is not None
        assert more < 1000  # one that was left out and has seen more is not admitted

    @pytest.mark.parametrize(
        ("pools", "known", "message"),
        [
            ({}, None, "at least one pool"),
            ({"one": pool("one"), "two": pool("two", group="ee" * 16)}, None, "different groups"),
            ({"one": pool("one", group="ee" * 16)}, backup(), "different groups"),
            ({"one": pool("same"), "two": pool("same")}, None, "one and two are given the same pool"),
            (
                {"one": pool("x")},
                backup(
                    (
                        member_key("two"),
                        encode(MemberRecord(name="two", incarnation=1, portals=(), admin="", pool_id="pool x")),
                    )
                ),
                "the pool given for member one is that of member two",
            ),
            (
                {"one": pool("one", held(VOLUME)), "two": pool("two", held(VOLUME, block_size=4096, blocks=256))},
                None,
                "different places",
            ),
        ],
    )
    def test_what_does_not_belong_together(
        self, pools: dict[str, PoolContents], known: Backup | None, message: str
    ) -> None:
        with pytest.raises(RebuildError, match=message):
            rebuild(pools, known, FRESH, {})

    def test_two_volumes_cannot_get_one_name(self) -> None:
        both = pool("one", held(VOLUME, HeldRange(0, 8, 5)), held(OTHER, HeldRange(0, 8, 5)))
        with pytest.raises(RebuildError, match=r"--volume .*=NAME"):
            rebuild({"one": both}, None, FRESH, {VOLUME: "disk", OTHER: "Disk"})

    def test_a_record_that_cannot_be_read_is_told(self) -> None:
        contents = msgspec.structs.replace(pool("one"), unreadable={VOLUME: "x.held is damaged"})
        made = rebuild({"one": contents}, None, FRESH, {})
        assert "member one: x.held is damaged" in made.notes


def test_a_group_goes_on_with_the_store_that_was_made() -> None:
    """Members, a volume over both, everything lost but what the pools hold: then the same volume, and new ones."""

    async def body() -> None:
        store = MemoryStore(MemoryData(lambda: 0.0))
        await store.open()
        group = await ensure_group(store, "lab", GROUP_ID, bytes(32))
        volumes = Volumes(store, group)
        for name in ("one", "two"):
            await Membership(store, name, PoolFacts(f"pool {name}", True, 1 << 40, 1 << 40), lambda: 0.0).join((), "")
        disk = await volumes.create("disk", 1 << 30, allow=["eui.0123456789abcdef"])
        lines = [line async for line in lines_of(store, "", "")]
        late = await volumes.create("late", 1 << 20, members=["two"])
        pools = {}
        for name in ("one", "two"):
            records = []
            for volume in (disk, late):
                entries = await volumes.entries_of(volume.name)
                pieces = [
                    HeldRange(entry.start, entry.placement.end_lba, entry.placement.generation, HELD)
                    for entry in entries
                    if entry.placement.owner == name
                ]
                if pieces:
                    records.append(held(volume.id, *pieces, blocks=volume.size_bytes // 512))
            pools[name] = pool(name, *records, revision=(await store.range("")).revision)
        before = {volume: [entry[:2] for entry in await volumes.entries_of(volume)] for volume in ("disk", "late")}

        made = rebuild(pools, read(lines, "file"), FRESH, {late.id: "late"})
        new = MemoryStore(MemoryData(lambda: 0.0))
        await new.open()
        await write(new, made.values, made.revision, replace=False)
        found = await find_group(new)
        assert found is not None
        again = Volumes(new, found)
        for name in ("one", "two"):
            joined = await Membership(new, name, PoolFacts(f"pool {name}", True), lambda: 0.0).join((), "")
            assert joined.incarnation > made.revision
        assert {
            volume: [entry[:2] for entry in await again.entries_of(volume)] for volume in ("disk", "late")
        } == before
        assert (await again.named("disk")).allow == ("eui.0123456789abcdef",)
        created = await again.create("new", 1 << 30)
        generation = (await again.entries_of("new"))[0].placement.generation
        assert generation > max(contents.pool.revision for contents in pools.values())
        assert created.unconfirmed == ("one", "two")
        await new.transact([], [Put("x", b"")])

    asyncio.run(body())
