"""A group moves from one kind of store to another by a backup, and nothing is lost on the way."""

from san_target.group.backup import lines_of, read, restore
from san_target.metadata.memory import MemoryData, MemoryStore
from san_target.metadata.schema import GROUP_KEY, GroupRecord, decode, encode
from san_target.metadata.store import Put, Store
from tests.unit.metadata.test_store_conformance import World, run, world

__all__ = ["world"]


def test_into_any_store_and_back(world: World) -> None:
    async def test(first: Store, second: Store) -> None:
        source, target = MemoryStore(MemoryData(lambda: 0.0)), MemoryStore(MemoryData(lambda: 0.0))
        await source.open()
        await target.open()
        await source.skip_to(500)
        group = GroupRecord(id="aa" * 16, name="lab")
        values = {f"maps/{number:04}": b"%d" % number for number in range(300)} | {"odd": b"\xff\0", "empty": b""}
        for key, value in {**values, GROUP_KEY: encode(group)}.items():
            await source.transact([], [Put(key, value)])
        backup = read([line async for line in lines_of(source, "", "")], "file")
        assert await restore(first, backup, "bb" * 16) > backup.header.revision
        again = read([line async for line in lines_of(second, "", "")], "file")
        assert {key: value for key, value in again.values.items() if key != GROUP_KEY} == values
        await restore(target, again, "cc" * 16)
        item = await target.get(GROUP_KEY)
        assert item is not None
        restores = decode(GroupRecord, item.value, GROUP_KEY).restores
        assert [one.id for one in restores] == ["bb" * 16, "cc" * 16]
        assert restores[0].revision == backup.header.revision
        assert restores[1].revision >= restores[0].revision

    run(world, test)
