"""SANITIZE: what it leaves on the medium, what it refuses, how it shows progress, and that nothing stops it."""

import asyncio
import struct

import pytest

from san_target.scsi.command import GOOD, RESERVATION_CONFLICT, TASK_ABORTED, Command, Outcome
from san_target.scsi.logical_unit import LogicalUnit
from san_target.scsi.nexus import Nexus
from san_target.volume.device import MediumError
from tests.unit.scsi.state_support import HOST_A, HOST_B, Surroundings, login, make_unit, memory_of, run, sense_of

OVERWRITE, BLOCK_ERASE, CRYPTOGRAPHIC_ERASE, EXIT_FAILURE_MODE = 0x01, 0x02, 0x03, 0x1F
IMMED, ZNR, AUSE = 0x80, 0x40, 0x20
TEST_UNIT_READY, REQUEST_SENSE = bytes(6), b"\x03\0\0\0\xfc\0"
READ_10 = b"\x28\0\0\0\0\0\0\0\x01\0"
IN_PROGRESS, FAILED = (2, 0x04, 0x1B), (3, 0x31, 0x03)


def sanitize_cdb(action: int, flags: int = 0, length: int = 0) -> bytes:
    return struct.pack(">BB5xHx", 0x48, flags | action, length)


def overwrite_data(pattern: bytes = b"\xaa", passes: int = 1, flags: int = 0, length: int | None = None) -> bytes:
    return struct.pack(">BxH", flags | passes, len(pattern) if length is None else length) + pattern


async def sanitize(unit: LogicalUnit, nexus: Nexus, action: int, flags: int = 0, data: bytes = b"") -> Outcome:
    return await run(unit, nexus, sanitize_cdb(action, flags, len(data)), data)


async def settle(surroundings: Surroundings) -> None:
    await asyncio.gather(*surroundings.spawned)


class Paused:
    """Holds every sanitizing write of a unit until `gate` is set."""

    def __init__(self, unit: LogicalUnit) -> None:
        self.gate = asyncio.Event()
        self.reached = 0
        write = memory_of(unit).sanitize_overwrite

        async def wait(lba: int, pattern: bytes, blocks: int) -> None:
            self.reached += 1
            await self.gate.wait()
            await write(lba, pattern, blocks)

        memory_of(unit).sanitize_overwrite = wait  # type: ignore[method-assign,assignment]


@pytest.mark.parametrize("flags", [0, IMMED])
@pytest.mark.parametrize("pattern", [b"\xaa", b"abc", bytes(range(256)) * 2])
def test_overwrite(flags: int, pattern: bytes) -> None:
    async def scenario() -> None:
        surroundings = Surroundings()
        unit = make_unit(surroundings, blocks=40)
        nexus = login(unit, HOST_A)
        assert (await sanitize(unit, nexus, OVERWRITE, flags, overwrite_data(pattern))).status == GOOD
        await settle(surroundings)
        assert memory_of(unit).content(0, 40) == (pattern * 512)[:512] * 40
        assert memory_of(unit).durable == set(range(40))
        assert unit.sanitizing is None
        assert nexus.may_write

    asyncio.run(scenario())


@pytest.mark.parametrize(("passes", "flags", "last"), [(1, 0x80, 0x0F), (2, 0x80, 0xF0), (3, 0x80, 0x0F), (4, 0, 0x0F)])
def test_passes_and_invert(passes: int, flags: int, last: int) -> None:
    async def scenario() -> None:
        unit = make_unit(Surroundings(), blocks=8)
        data = overwrite_data(b"\x0f", passes, flags)
        assert (await sanitize(unit, login(unit, HOST_A), OVERWRITE, data=data)).status == GOOD
        assert memory_of(unit).content(0, 8) == bytes([last]) * 8 * 512
        assert memory_of(unit).names_called() == ["sanitize_overwrite"] * passes

    asyncio.run(scenario())


def test_block_erase() -> None:
    async def scenario() -> None:
        unit = make_unit(Surroundings(), blocks=8)
        memory_of(unit).written = {1: b"x" * 512}
        assert (await sanitize(unit, login(unit, HOST_A), BLOCK_ERASE)).status == GOOD
        assert memory_of(unit).written == {}

    asyncio.run(scenario())


INVALID_CDB, INVALID_LIST = (5, 0x24, 0), (5, 0x26, 0)


@pytest.mark.parametrize(
    ("cdb", "data", "expected"),
    [
        *((sanitize_cdb(OVERWRITE, length=length), bytes(length), INVALID_CDB) for length in range(5)),
        (sanitize_cdb(OVERWRITE, length=517), overwrite_data(bytes(513)), INVALID_CDB),
        (sanitize_cdb(OVERWRITE, length=10), overwrite_data()[:5], (5, 0x1A, 0)),
        (sanitize_cdb(OVERWRITE, length=5), overwrite_data(passes=0), INVALID_LIST),
        (sanitize_cdb(OVERWRITE, length=5), overwrite_data(length=0), INVALID_LIST),
        (sanitize_cdb(OVERWRITE, length=5), overwrite_data(length=2), INVALID_LIST),
        (sanitize_cdb(OVERWRITE, length=5), overwrite_data(flags=0x20), INVALID_LIST),
        (sanitize_cdb(OVERWRITE, ZNR, 5), overwrite_data(), INVALID_CDB),
        *(
            (sanitize_cdb(BLOCK_ERASE)[:byte] + b"\1" + sanitize_cdb(BLOCK_ERASE)[byte + 1 :], b"", INVALID_CDB)
            for byte in range(2, 9)
        ),
        (sanitize_cdb(EXIT_FAILURE_MODE, length=8), bytes(8), INVALID_CDB),
        *((sanitize_cdb(action), b"", INVALID_CDB) for action in range(32) if action not in (1, 2, 0x1F)),
    ],
)
def test_refusals_leave_the_medium_alone(cdb: bytes, data: bytes, expected: tuple[int, int, int]) -> None:
    async def scenario() -> None:
        unit = make_unit(Surroundings())
        memory_of(unit).written = {1: b"x" * 512}
        assert sense_of(await run(unit, login(unit, HOST_A), cdb, data)) == expected
        assert memory_of(unit).written == {1: b"x" * 512}
        assert unit.sanitizing is None

    asyncio.run(scenario())


@pytest.mark.parametrize("action", [OVERWRITE, BLOCK_ERASE])
def test_write_protection_and_reservations(action: int) -> None:
    async def scenario() -> None:
        data = overwrite_data() if action == OVERWRITE else b""
        protected = make_unit(Surroundings(), read_only=True)
        assert sense_of(await sanitize(protected, login(protected, HOST_A), action, data=data)) == (7, 0x27, 0)
        reserved = make_unit(Surroundings())
        await reserved.reservations.reserve_6(login(reserved, HOST_B))
        outcome = await sanitize(reserved, login(reserved, HOST_A), action, data=data)
        assert outcome.status == RESERVATION_CONFLICT

    asyncio.run(scenario())


def test_while_it_runs() -> None:
    async def scenario() -> None:
        surroundings = Surroundings()
        unit = make_unit(surroundings, blocks=20000)
        first, second = login(unit, HOST_A), login(unit, HOST_B)
        paused = Paused(unit)
        assert (await sanitize(unit, first, OVERWRITE, IMMED, overwrite_data())).status == GOOD
        for nexus in (first, second):
            assert not nexus.may_read
            assert sense_of(await run(unit, nexus, TEST_UNIT_READY)) == IN_PROGRESS
            assert sense_of(await run(unit, nexus, READ_10)) == IN_PROGRESS
            assert (await run(unit, nexus, b"\x12\0\0\0\xff\0")).status == GOOD
            told = bytes((await run(unit, nexus, REQUEST_SENSE)).data_in)
            assert (told[2] & 0x0F, told[12], told[13], told[15]) == (*IN_PROGRESS, 0x80)
        for action, data in ((OVERWRITE, overwrite_data()), (BLOCK_ERASE, b""), (EXIT_FAILURE_MODE, b"")):
            assert sense_of(await sanitize(unit, second, action, data=data)) == IN_PROGRESS
        unit.reset()
        unit.detach(first)
        assert unit.sanitizing is not None
        paused.gate.set()
        await settle(surroundings)
        second.attentions.clear()
        assert (await run(unit, second, TEST_UNIT_READY)).status == GOOD
        assert memory_of(unit).content(19999) == b"\xaa" * 512

    asyncio.run(scenario())


def test_progress_only_grows() -> None:
    async def scenario() -> None:
        surroundings = Surroundings()
        unit = make_unit(surroundings, blocks=50000)
        nexus = login(unit, HOST_A)
        seen: list[float] = []
        write = memory_of(unit).sanitize_overwrite

        async def watched(lba: int, pattern: bytes, blocks: int) -> None:
            assert unit.sanitizing is not None
            seen.append(unit.sanitizing.progress)
            assert sense_of(await run(unit, nexus, TEST_UNIT_READY)) == IN_PROGRESS
            await write(lba, pattern, blocks)

        memory_of(unit).sanitize_overwrite = watched  # type: ignore[method-assign,assignment]
        assert (await sanitize(unit, nexus, OVERWRITE, data=overwrite_data(passes=2))).status == GOOD
        assert len(seen) > 10
        assert seen == sorted(set(seen))
        assert seen[0] == 0.0
        assert seen[-1] < 1.0

    asyncio.run(scenario())


def test_it_takes_its_time() -> None:
    async def scenario() -> None:
        surroundings = Surroundings()
        unit = make_unit(surroundings, blocks=40960, sanitize_bytes_per_s=1 << 20)
        await sanitize(unit, login(unit, HOST_A), OVERWRITE, IMMED, overwrite_data())
        await settle(surroundings)
        assert surroundings.time_s == pytest.approx(20.0, abs=0.1)

    asyncio.run(scenario())


def test_aborting_the_command_does_not_stop_it() -> None:
    async def scenario() -> None:
        surroundings = Surroundings()
        unit = make_unit(surroundings, blocks=8)
        paused = Paused(unit)
        data = overwrite_data()
        command = Command(login(unit, HOST_A), sanitize_cdb(OVERWRITE, 0, len(data)).ljust(16, b"\0"), data)
        waiting = asyncio.create_task(unit.execute(command))
        for _ in range(5):
            await asyncio.sleep(0)
        assert not waiting.done()
        command.aborted = True
        assert (await waiting).status == TASK_ABORTED
        assert unit.sanitizing is not None
        paused.gate.set()
        await settle(surroundings)
        assert memory_of(unit).content(0, 8) == b"\xaa" * 8 * 512

    asyncio.run(scenario())


async def failed_unit(surroundings: Surroundings, flags: int) -> tuple[LogicalUnit, Nexus]:
    unit = make_unit(surroundings, blocks=8)
    nexus = login(unit, HOST_A)
    memory_of(unit).failures.append(MediumError(3, "lost", writing=True))
    assert sense_of(await sanitize(unit, nexus, OVERWRITE, flags, overwrite_data())) == FAILED
    return unit, nexus


@pytest.mark.parametrize("flags", [0, AUSE])
def test_failure_mode(flags: int) -> None:
    async def scenario() -> None:
        unit, nexus = await failed_unit(Surroundings(), flags)
        assert sense_of(await run(unit, nexus, TEST_UNIT_READY)) == FAILED
        assert sense_of(await run(unit, nexus, READ_10)) == FAILED
        assert not nexus.may_read
        leaving = await sanitize(unit, nexus, EXIT_FAILURE_MODE)
        if flags == AUSE:
            assert leaving.status == GOOD
            assert (await run(unit, nexus, READ_10)).status == GOOD
            assert nexus.may_read
            return
        assert sense_of(leaving) == INVALID_CDB
        # asking again with AUSE does not loosen what the first attempt tied down
        memory_of(unit).failures.append(MediumError(3, "lost", writing=True))
        assert sense_of(await sanitize(unit, nexus, BLOCK_ERASE, AUSE)) == FAILED
        assert sense_of(await sanitize(unit, nexus, EXIT_FAILURE_MODE)) == INVALID_CDB
        assert (await sanitize(unit, nexus, BLOCK_ERASE)).status == GOOD
        assert (await run(unit, nexus, READ_10)).status == GOOD

    asyncio.run(scenario())


def test_exit_failure_mode_where_nothing_failed() -> None:
    async def scenario() -> None:
        unit = make_unit(Surroundings())
        assert (await sanitize(unit, login(unit, HOST_A), EXIT_FAILURE_MODE)).status == GOOD

    asyncio.run(scenario())


def test_a_job_that_is_cancelled_has_failed() -> None:
    async def scenario() -> None:
        surroundings = Surroundings()
        unit = make_unit(surroundings, blocks=8)
        nexus = login(unit, HOST_A)
        Paused(unit)
        await sanitize(unit, nexus, OVERWRITE, IMMED, overwrite_data())
        await asyncio.sleep(0)
        surroundings.spawned[-1].cancel()
        await asyncio.gather(*surroundings.spawned, return_exceptions=True)
        assert sense_of(await run(unit, nexus, TEST_UNIT_READY)) == FAILED

    asyncio.run(scenario())


def test_a_shrink_meanwhile_leaves_less_to_do() -> None:
    async def scenario() -> None:
        unit = make_unit(Surroundings(), blocks=50000)
        write = memory_of(unit).sanitize_overwrite

        async def shrinking(lba: int, pattern: bytes, blocks: int) -> None:
            await write(lba, pattern, blocks)
            memory_of(unit).resize(10000)

        memory_of(unit).sanitize_overwrite = shrinking  # type: ignore[method-assign,assignment]
        outcome = await sanitize(unit, login(unit, HOST_A), OVERWRITE, data=overwrite_data(passes=2))
        assert outcome.status == GOOD
        assert unit.sanitizing is None
        assert memory_of(unit).content(0, 10000) == b"\xaa" * 10000 * 512

    asyncio.run(scenario())
