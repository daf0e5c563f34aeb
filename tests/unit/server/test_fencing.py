"""A change of reservations waits for commands of those that it keeps out, but never for one that waits for itself."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from san_target.metadata.memory import MemoryStore
from san_target.metadata.store import Compare, Delete, Put, Store, TransactionResult
from tests.unit.server.conftest import MIB, MemoryEnvironment, Site, run, spec
from tests.unit.server.initiator import Initiator
from tests.unit.server.test_group_state import (
    CLEAR,
    CONFLICT,
    PREEMPT,
    PREEMPT_AND_ABORT,
    REGISTER,
    RESERVE,
    reserve_out,
)

IQN = "iqn.2026-01.io.san-target:disk"
HOST_A, HOST_B = (f"iqn.1993-08.org.debian:01:{name}" for name in "ab")


class GatedStore(MemoryStore):
    """Transactions wait while the gate is closed; waiting: how many do."""

    def __init__(self, environment: "GatedEnvironment") -> None:
        super().__init__(environment.data)
        self._environment = environment

    async def transact(self, compares: Sequence[Compare], operations: Sequence[Put | Delete]) -> TransactionResult:
        self._environment.waiting += 1
        await self._environment.gate.wait()
        self._environment.waiting -= 1
        return await super().transact(compares, operations)


class GatedEnvironment(MemoryEnvironment):
    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()
        self.waiting = 0

    def make_store(self, url: str) -> Store:
        return GatedStore(self)


def test_a_mode_select_of_the_preempted_that_waits_for_its_turn(tmp_path: Path) -> None:
    """It waits for the PREEMPT, which must not wait for it."""
    environment = GatedEnvironment()

    async def log_in(portal: str, name: str) -> Initiator:
        initiator = await Initiator.connect(portal)
        assert await initiator.login(IQN, name) == 0
        return await initiator.ready() or initiator

    async def body() -> None:
        async with Site(tmp_path, environment).started() as (member, service):
            await service.create_volume(spec("disk", size_bytes=32 * MIB))
            portal = member.portals.bound[0]
            for action in (PREEMPT, PREEMPT_AND_ABORT):
                victim, other = await log_in(portal, HOST_A), await log_in(portal, HOST_B)
                assert await reserve_out(victim, REGISTER, service_key=0xA) == 0
                assert await reserve_out(victim, RESERVE, key=0xA) == 0
                assert await reserve_out(other, REGISTER, service_key=0xB) == 0
                page = bytearray((await victim.command(bytes([0x1A, 8, 0x0A, 0, 64, 0]), read=64))[1])
                page[0], page[2] = 0, 0
                page[4 + 2] ^= 0x04  # D_SENSE
                environment.gate.clear()
                preempting = asyncio.ensure_future(reserve_out(other, action, 0xB, 0xA))
                while not environment.waiting:
                    await asyncio.sleep(0.01)
                selecting = asyncio.ensure_future(victim.command(bytes([0x15, 0x10, 0, 0, len(page), 0]), bytes(page)))
                [session] = [one for one in member.portal_server.sessions() if one.initiator_name == HOST_A]
                while not any(task.executing for task in session.connection.tasks.values()):
                    await asyncio.sleep(0.01)
                environment.gate.set()
                assert await preempting == 0
                if action == PREEMPT:
                    assert (await selecting)[0] == CONFLICT  # it is judged by the state of its turn
                selecting.cancel()
                assert await reserve_out(other, CLEAR, key=0xB) == 0
                victim.close()
                other.close()

    run(body)
