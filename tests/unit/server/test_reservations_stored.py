"""Persistent reservations over restarts, outages and preemption, as initiators see them."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from san_target.metadata.memory import MemoryData, MemoryStore
from san_target.metadata.schema import (
    RegistrationRecord,
    ReservationsRecord,
    VolumeRecord,
    decode,
    encode,
    reservations_key,
    volume_key,
)
from san_target.metadata.store import Compare, Delete, Put, Store, StoreUnavailable, TransactionResult
from san_target.scsi.shared_state import Outdated
from san_target.server.member import Member
from san_target.server.reservation_records import save_reservations
from san_target.volume.device import Unavailable
from tests.unit.server.conftest import MemoryEnvironment, Site, run, spec
from tests.unit.server.initiator import Initiator

WRITE_10 = bytes.fromhex("2a000000000000000100")
READ_KEYS = bytes([0x5E, 0, 0, 0, 0, 0, 0, 0x01, 0, 0])
REGISTER, RESERVE, PREEMPT, PREEMPT_AND_ABORT = 0, 1, 4, 5
WRITE_EXCLUSIVE = 1
CONFLICT = 0x18
RECORD = ReservationsRecord(generation=3, registrations=(RegistrationRecord("a", "t", 1),))


async def reserve_out(
    initiator: Initiator, action: int, key: int = 0, service_key: int = 0, aptpl: bool = False
) -> int:
    kind = 0 if action == REGISTER else WRITE_EXCLUSIVE
    cdb = bytes([0x5F, action, kind, 0, 0, 0, 0, 0, 24, 0])
    parameters = key.to_bytes(8, "big") + service_key.to_bytes(8, "big") + bytes(4) + bytes([aptpl, 0, 0, 0])
    return (await initiator.command(cdb, parameters))[0]


async def keys(initiator: Initiator) -> list[int]:
    status, data = await initiator.command(READ_KEYS, read=256)
    assert status == 0
    return [int.from_bytes(data[at : at + 8], "big") for at in range(8, 8 + int.from_bytes(data[4:8], "big"), 8)]


async def logged_in(member: Member, iqn: str, isid: int) -> Initiator:
    initiator = await Initiator.connect(member.portals.bound[0], b"\x80\0\0\0\0" + bytes([isid]))
    assert await initiator.login(iqn) == 0
    await initiator.ready()
    return initiator


@pytest.mark.parametrize("aptpl", [True, False])
def test_only_aptpl_survives_a_restart(site: Site, aptpl: bool) -> None:
    async def body() -> None:
        async with site.started() as (member, service):
            volume = await service.create_volume(spec())
            first = await logged_in(member, volume.iqn, 1)
            assert await reserve_out(first, REGISTER, service_key=0xA, aptpl=aptpl) == 0
            assert await reserve_out(first, RESERVE, key=0xA) == 0
        async with site.started() as (member, _):
            first, second = await logged_in(member, volume.iqn, 1), await logged_in(member, volume.iqn, 2)
            assert await keys(second) == ([0xA] if aptpl else [])
            assert (await second.command(WRITE_10, bytes(512)))[0] == (CONFLICT if aptpl else 0)
            assert (await first.command(WRITE_10, bytes(512)))[0] == 0
            first.close()
            second.close()

    run(body)


@pytest.mark.parametrize("action", [PREEMPT, PREEMPT_AND_ABORT])
def test_a_preemption_ends_what_the_other_has_under_way(site: Site, action: int) -> None:
    async def body() -> None:
        async with site.started() as (member, service):
            volume = await service.create_volume(spec())
            first, second = await logged_in(member, volume.iqn, 1), await logged_in(member, volume.iqn, 2)
            assert await reserve_out(first, REGISTER, service_key=0xA) == 0
            assert await reserve_out(second, REGISTER, service_key=0xB) == 0
            assert await reserve_out(first, RESERVE, key=0xA) == 0
            assert (await second.command(WRITE_10, bytes(512)))[0] == CONFLICT
            assert await reserve_out(second, action, key=0xB, service_key=0xA) == 0
            assert await keys(second) == [0xB]
            await first.ready()
            assert (await first.command(WRITE_10, bytes(512)))[0] == CONFLICT
            assert (await second.command(WRITE_10, bytes(512)))[0] == 0
            first.close()
            second.close()

    run(body)


@pytest.mark.parametrize("action", [PREEMPT, PREEMPT_AND_ABORT])
def test_two_that_preempt_each_other_do_not_wait_for_each_other(tmp_path: Path, action: int) -> None:
    class SlowStore(MemoryStore):
        """Commits of reservations take long enough for the second command to arrive during the first."""

        async def transact(self, compares, operations):  # type: ignore[no-untyped-def]
            if any(operation.key.startswith("reservations/") for operation in operations):
                await asyncio.sleep(0.05)
            return await super().transact(compares, operations)

    class SlowEnvironment(MemoryEnvironment):
        def make_store(self, url: str) -> Store:
            return SlowStore(self.data)

    async def body() -> None:
        async with Site(tmp_path, SlowEnvironment()).started() as (member, service):
            volume = await service.create_volume(spec())
            first, second = await logged_in(member, volume.iqn, 1), await logged_in(member, volume.iqn, 2)
            assert await reserve_out(first, REGISTER, service_key=0xA) == 0
            assert await reserve_out(second, REGISTER, service_key=0xB) == 0
            async with asyncio.timeout(10):
                winner = asyncio.ensure_future(reserve_out(first, action, key=0xA, service_key=0xB))
                loser = asyncio.ensure_future(reserve_out(second, action, key=0xB, service_key=0xA))
                assert await winner == 0
                await asyncio.wait((loser,), timeout=0.2)  # aborted commands are not answered
            assert await keys(first) == [0xA]
            loser.cancel()
            first.close()
            second.close()

    run(body)


def test_a_volume_with_a_damaged_reservation_is_not_served(site: Site) -> None:
    async def body() -> None:
        async with site.started() as (member, service):
            volume = await service.create_volume(spec())
            bad = ReservationsRecord(generation=1, holder=4, type=1, aptpl=True)
            await member.store.transact([], [Put(reservations_key(volume.id), encode(bad))])
        async with site.started() as (_, service):
            shown = await service.volume("demo")
            assert shown.state == "not-ready"
            assert "reservations record is inconsistent" in shown.reason

    run(body)


class Fickle(MemoryStore):
    """Fails as told."""

    fails: BaseException | None = None
    touched_between: int = 0

    async def transact(self, compares, operations):  # type: ignore[no-untyped-def]
        if self.fails is not None:
            raise self.fails
        if self.touched_between:
            self.touched_between -= 1
            item = self.data.get(volume_key("v"))
            assert item is not None
            await super().transact([], [Put(item.key, item.value)])
        result: TransactionResult = await super().transact(compares, operations)
        return result


def fickle_store(state: str = "ready") -> Fickle:
    store = Fickle(MemoryData(clock=lambda: 0.0))
    store._is_open = True
    record = VolumeRecord(id="v", name="v", iqn="iqn.x", size_bytes=512, state=state)
    store.data.transact([], [Put(volume_key("v"), encode(record))])
    return store


def stored(store: Fickle) -> tuple[ReservationsRecord, int] | None:
    item = store.data.get(reservations_key("v"))
    return None if item is None else (decode(ReservationsRecord, item.value, item.key), item.mod_revision)


def test_a_record_is_stored_under_the_epoch_that_is_told() -> None:
    store = fickle_store()
    epoch = asyncio.run(save_reservations(store, "v", RECORD, 0))
    assert stored(store) == (RECORD, epoch)
    again = asyncio.run(save_reservations(store, "v", RECORD, epoch))
    assert stored(store) == (RECORD, again)
    assert again > epoch


def test_a_record_made_of_an_older_one_is_not_stored() -> None:
    store = fickle_store()
    epoch = asyncio.run(save_reservations(store, "v", RECORD, 0))
    for old in (0, epoch - 1, epoch + 1):
        with pytest.raises(Outdated):
            asyncio.run(save_reservations(store, "v", ReservationsRecord(generation=9), old))
    assert stored(store) == (RECORD, epoch)


def test_a_volume_that_changes_meanwhile_is_no_hindrance() -> None:
    store = fickle_store()
    store.touched_between = 2
    epoch = asyncio.run(save_reservations(store, "v", RECORD, 0))
    assert stored(store) == (RECORD, epoch)
    store.touched_between = 3
    with pytest.raises(Unavailable):
        asyncio.run(save_reservations(store, "v", RECORD, epoch))


def test_a_store_that_is_away_makes_the_volume_busy() -> None:
    store = fickle_store()
    store.fails = StoreUnavailable("locked")
    with pytest.raises(Unavailable, match="locked"):
        asyncio.run(save_reservations(store, "v", RECORD, 0))


def test_a_volume_being_deleted_leaves_no_reservations() -> None:
    store = fickle_store(state="deleting")
    with pytest.raises(Unavailable):
        asyncio.run(save_reservations(store, "v", RECORD, 0))
    assert stored(store) is None


def test_a_store_that_is_away_at_the_start_only_delays_a_volume(tmp_path: Path) -> None:
    """What a restart ended must be stored before the volume is served; until then the member tries again."""

    class Refusing(MemoryStore):
        refusals = 2

        async def transact(self, compares: Sequence[Compare], operations: Sequence[Put | Delete]) -> TransactionResult:
            if self.refusals and any(operation.key.startswith("reservations/") for operation in operations):
                self.refusals -= 1
                raise StoreUnavailable("away")
            return await super().transact(compares, operations)

    class Outage(MemoryEnvironment):
        store: type[MemoryStore] = MemoryStore

        def make_store(self, url: str) -> Store:
            return self.store(self.data)

        async def sleep(self, seconds: float) -> None:
            await asyncio.sleep(min(seconds, 0.01))

    async def body() -> None:
        environment = Outage()
        site = Site(tmp_path, environment)
        async with site.started() as (member, service):
            volume = await service.create_volume(spec())
            initiator = await logged_in(member, volume.iqn, 1)
            assert await reserve_out(initiator, REGISTER, service_key=0xA) == 0
            initiator.close()
        environment.store = Refusing
        async with site.started() as (member, service):
            assert (await service.volume("demo")).state == "ready"
            initiator = await logged_in(member, volume.iqn, 1)
            assert await keys(initiator) == []
            initiator.close()

    run(body)
