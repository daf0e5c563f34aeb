"""What an operator sees while the store is away: what the member knows, and that it may be old."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from san_target.admin.service import MemberService
from san_target.group.errors import NotFound
from san_target.metadata.memory import MemoryStore
from san_target.metadata.store import Compare, Delete, Put, Snapshot, Store, StoreUnavailable, TransactionResult
from san_target.server import last_known
from san_target.server.last_known import OLD
from tests.unit.server.conftest import MIB, MemoryEnvironment, Site, run, spec

AWAY = "the store is on holiday"


class LeavingStore(MemoryStore):
    """Until `away`: then it refuses, or (`silent`) says nothing at all."""

    away = False
    silent = False

    async def _ask(self) -> None:
        if self.silent:
            await asyncio.Event().wait()
        if self.away:
            raise StoreUnavailable(AWAY)

    async def range(self, prefix: str) -> Snapshot:
        await self._ask()
        return await super().range(prefix)

    async def transact(self, compares: Sequence[Compare], operations: Sequence[Put | Delete]) -> TransactionResult:
        await self._ask()
        return await super().transact(compares, operations)


class LeavingEnvironment(MemoryEnvironment):
    def make_store(self, url: str) -> Store:
        self.store = LeavingStore(self.data)
        return self.store


@pytest.mark.parametrize("how", ["away", "silent"])
def test_what_was_known_last_is_shown_and_marked(tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(last_known, "ANSWER_S", 0.1)
    environment = LeavingEnvironment()

    async def shows_all(service: MemberService, old: str) -> None:
        status = await service.group_status()
        assert (status.volumes, status.size_bytes, len(status.members)) == (2, 96 * MIB, 1)
        assert (status.state, OLD in status.reasons) == (("degraded", True) if old else ("ok", False))
        assert {one.name: (one.state, one.reason) for one in await service.volumes()} == {
            "a": ("ready", old),
            "b": ("ready", old),
        }
        assert (await service.volume("b")).reason == old
        assert [(one.name, one.state, one.reason) for one in await service.members()] == [("one", "active", old)]
        assert (await service.member("one")).reason == old
        assert sum(entry.end_lba - entry.start_lba for entry in await service.volume_map("b")) == 64 * MIB // 512

    async def body() -> None:
        async with Site(tmp_path, environment).started() as (_, service):
            await service.create_volume(spec("a", size_bytes=32 * MIB))
            await service.create_volume(spec("b", size_bytes=64 * MIB))
            await shows_all(service, "")
            setattr(environment.store, how, True)
            await shows_all(service, OLD)
            reasons = (await service.group_status()).reasons
            assert any(AWAY in reason or "did not answer within" in reason for reason in reasons)
            for look in (service.volume("c"), service.member("two")):
                with pytest.raises(NotFound, match=OLD):
                    await look
            setattr(environment.store, how, False)
            await shows_all(service, "")

    run(body)


def test_what_changes_something_asks_the_store(tmp_path: Path) -> None:
    environment = LeavingEnvironment()

    async def body() -> None:
        async with Site(tmp_path, environment).started() as (_, service):
            await service.create_volume(spec("a"))
            environment.store.away = True
            for change in (service.create_volume(spec("b")), service.delete_volume("a", force=True)):
                with pytest.raises(StoreUnavailable, match=AWAY):
                    await change
            environment.store.away = False

    run(body)
