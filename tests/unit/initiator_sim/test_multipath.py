"""Several paths to one disk: work in turn, and what becomes of commands when paths are lost."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from initiator_sim import cdb
from initiator_sim.client import Disk, Initiator
from initiator_sim.path import Path
from initiator_sim.task import Failure
from tests.unit.initiator_sim.fake_target import FakeTarget
from tests.unit.initiator_sim.test_path import IQN, QUICK, play, until


async def connect(*targets: FakeTarget, replacement_timeout_s: float = 60.0) -> tuple[list[Path], Disk]:
    """One path to each target."""
    personality = replace(QUICK, replacement_timeout_s=replacement_timeout_s)
    initiator = Initiator(personality=personality)
    paths = [initiator.path(target.portal, IQN) for target in targets]
    for path in paths:
        await path.connect()
    disk = Disk(paths, 0)
    disk.block_bytes = 512
    return paths, disk


def abort(paths: list[Path]) -> None:
    for path in paths:
        path.abort()


def test_with_several_paths_a_lost_one_is_not_missed() -> None:
    async def scenario(first: FakeTarget, second: FakeTarget) -> None:
        paths, disk = await connect(first, second)
        for _ in range(4):
            await disk.read(0, 1)
        assert [len(target.visits[0].commands) for target in (first, second)] == [2, 2]
        first.silent = True
        first.refusals = [0x0301] * 100
        reading = [asyncio.ensure_future(disk.read(0, 1)) for _ in range(2)]
        await until(lambda: len(first.visits[0].commands) == 3)
        first.visits[0].drop()
        assert await asyncio.gather(*reading) == [bytes(512)] * 2
        assert await disk.read(0, 1) == bytes(512)
        abort(paths)

    play(scenario)


def test_with_all_paths_down_commands_wait_for_the_first_that_comes_back() -> None:
    async def scenario(first: FakeTarget, second: FakeTarget) -> None:
        paths, disk = await connect(first, second)
        first.silent = second.silent = True
        reading = [asyncio.ensure_future(disk.read(lba, 1)) for lba in range(4)]
        await until(lambda: len(first.visits[0].commands) == len(second.visits[0].commands) == 2)
        first.refusals, second.refusals = [0x0301] * 1000, [0x0301] * 1000
        for path in paths:
            path.drop_connection()
        reading.append(asyncio.ensure_future(disk.read(4, 1)))
        first.silent = second.silent = False
        second.refusals = []  # the first path stays down
        assert await asyncio.gather(*reading) == [bytes(512)] * 5
        assert {command.cdb for command in second.visits[-1].commands} == {cdb.read16(lba, 1) for lba in range(5)}
        assert not paths[0].up
        abort(paths)

    play(scenario)


def test_a_path_that_is_given_up_fails_nothing_while_another_may_come_back() -> None:
    async def scenario(first: FakeTarget, second: FakeTarget) -> None:
        paths, disk = await connect(first, second, replacement_timeout_s=0.2)
        first.refusals, second.refusals = [0x0203], [0x0301] * 2  # final there, to be tried again here
        for path in paths:
            path.drop_connection()
        reading = asyncio.ensure_future(disk.read(0, 1))
        await until(lambda: paths[0].failed)
        assert await reading == bytes(512)
        abort(paths)

    play(scenario)


def test_with_all_paths_given_up_commands_fail() -> None:
    async def scenario(first: FakeTarget, second: FakeTarget) -> None:
        paths, disk = await connect(first, second, replacement_timeout_s=0.2)
        first.refusals, second.refusals = [0x0301] * 1000, [0x0301] * 1000
        for path in paths:
            path.drop_connection()
        waiting = asyncio.ensure_future(disk.once(cdb.read16(0, 1), read_bytes=512))
        assert (await waiting).failure is Failure.PATH_LOST
        assert all(path.failed for path in paths)
        assert (await disk.once(cdb.read16(0, 1), read_bytes=512)).failure is Failure.PATH_LOST

    play(scenario)


def test_a_path_that_is_closed_hands_its_commands_over() -> None:
    async def scenario(first: FakeTarget, second: FakeTarget) -> None:
        paths, disk = await connect(first, second)
        first.silent = True
        reading = [asyncio.ensure_future(disk.read(lba, 1)) for lba in range(2)]
        await until(lambda: first.visits[0].commands)
        paths[0].abort()
        assert await asyncio.gather(*reading) == [bytes(512)] * 2
        second.silent = True
        late = asyncio.ensure_future(disk.once(cdb.read16(9, 1), read_bytes=512))
        await until(lambda: len(second.visits[0].commands) == 3)
        await disk.close()
        assert (await late).failure is Failure.PATH_LOST

    play(scenario)
