"""Sessions go from member to member of a real group in this process: what is kept, what is refused, what is told."""

import asyncio
import struct
from pathlib import Path

import pytest

from san_target.group.errors import Conflict, NotFound
from san_target.server import session_moves
from san_target.wire import opcodes
from tests.unit.server.conftest import run
from tests.unit.server.group_kit import HOST_A, ISID, Group, group
from tests.unit.server.initiator import Initiator

RESERVE_6 = bytes((0x16, 0, 0, 0, 0, 0))


async def session_id(made: Group) -> str:
    (only,) = (await made.services["one"].sessions()).sessions
    return only.id


async def follow(made: Group, initiator: Initiator, to: str, logs_out: bool = True, isid: bytes = ISID) -> Initiator:
    """Do as an initiator does that is asked to go: log out, and go back to its portal; it is sent on from there."""
    events = [await initiator.receive() for _ in range(2)]
    assert [(header.opcode, header.async_event) for header, _ in events] == [
        (opcodes.ASYNC_MESSAGE, opcodes.ASYNC_SESSION_DROP),
        (opcodes.ASYNC_MESSAGE, opcodes.ASYNC_LOGOUT_REQUEST),
    ]
    assert events[0][0].parameter2 == 0
    if logs_out:
        await initiator.logout()
    assert await initiator.ended()
    return await arrive(made, to, isid)


async def arrive(made: Group, to: str, isid: bytes = ISID) -> Initiator:
    """From the portal of member one."""
    back = await Initiator.connect(made.members["one"].portals.bound[0], isid)
    status = await back.login("iqn.2026-01.io.san-target:disk", HOST_A)
    if to == "one":
        assert status == 0
    else:
        assert status == 0x0101
        assert back.login_keys["TargetAddress"] == made.members[to].portals.bound[0]
        back = await Initiator.connect(made.members[to].portals.bound[0], isid)
        assert await back.login("iqn.2026-01.io.san-target:disk", HOST_A) == 0
    made.initiators.append(back)
    return back


def test_a_nexus_that_only_moved_is_owed_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with group(tmp_path, "one", "two", "three") as made:
            initiator = await made.log_in("one")
            for to in ("two", "three", "one", "two"):
                asked = await session_id(made)
                moving = asyncio.create_task(made.services["three"].move_session(asked, to))
                initiator = await follow(made, initiator, to)
                moved = await moving
                assert (moved.id, moved.member, moved.dropped) == (await session_id(made), to, False)
                # TEST UNIT READY: GOOD at once, no unit attention.
                assert (await initiator.command(bytes(6)))[0] == 0
            assert made.services["one"].counters().sessions_moved == 2

    run(scenario)


def random_isid(number: int) -> bytes:
    return bytes((0x80, 0, 0, 0, 0, number))


def test_nor_is_one_that_takes_another_isid_at_each_login(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with group(tmp_path, "one", "two", "three") as made:
            initiator = await made.log_in("one", isid=random_isid(1))
            for number, to in enumerate(("two", "three", "one"), 2):
                moving = asyncio.create_task(made.services["three"].move_session(await session_id(made), to))
                initiator = await follow(made, initiator, to, isid=random_isid(number))
                await moving
                assert (await initiator.command(bytes(6)))[0] == 0
            # One that was not asked to go is a new one.
            await initiator.logout()
            initiator = await made.log_in("one", isid=random_isid(9), ready=False)
            status, data = await initiator.command(bytes(6))
            assert (status, data[2 + 12 : 2 + 14]) == (2, bytes((0x29, 0x00)))

    run(scenario)


def test_what_it_was_owed_is_owed_still(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with group(tmp_path, "one", "two") as made:
            initiator = await made.log_in("one")
            (session,) = made.members["one"].local_sessions.all()
            assert session.target is not None
            session.target.unit.capacity_changed()
            moving = asyncio.create_task(made.services["one"].move_session(await session_id(made), "two"))
            initiator = await follow(made, initiator, "two")
            await moving
            status, data = await initiator.command(bytes(6))
            assert (status, data[2 + 12 : 2 + 14]) == (2, bytes((0x2A, 0x09)))
            assert (await initiator.command(bytes(6)))[0] == 0

    run(scenario)


def test_one_that_does_not_go_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_moves, "OBEY_S", 0.2)

    async def scenario() -> None:
        async with group(tmp_path, "one", "two") as made:
            initiator = await made.log_in("one")
            moving = asyncio.create_task(made.services["one"].move_session(await session_id(made), "two"))
            await follow(made, initiator, "two", logs_out=False)
            assert (await moving).dropped
            assert made.services["one"].counters().sessions_disobeyed == 1

    run(scenario)


def test_who_would_lose_something_is_not_moved(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with group(tmp_path, "one", "two") as made:
            initiator = await made.log_in("one")
            assert (await initiator.command(RESERVE_6))[0] == 0
            with pytest.raises(Conflict, match=r"RESERVE\(6\)"):
                await made.services["two"].move_session(await session_id(made), "two")
            assert (await initiator.command(bytes(6)))[0] == 0  # nothing has changed

    run(scenario)


def test_a_registration_moves_with_its_port_but_not_with_one_that_changes_its_name(tmp_path: Path) -> None:
    register = bytes((0x5F, 0x00, 0, 0, 0, 0, 0, 0, 24, 0))
    data = bytes(8) + struct.pack(">Q", 7) + bytes(8)

    async def scenario() -> None:
        async with group(tmp_path, "one", "two") as made:
            initiator = await made.log_in("one", isid=bytes.fromhex("800000000001"))
            assert (await initiator.command(register, data))[0] == 0
            with pytest.raises(Conflict, match="another ISID at each login"):
                await made.services["one"].move_session(await session_id(made), "two")
            await initiator.logout()
            initiator = await made.log_in("one")
            assert (await initiator.command(register, data))[0] == 0
            moving = asyncio.create_task(made.services["one"].move_session(await session_id(made), "two"))
            initiator = await follow(made, initiator, "two")
            await moving
            assert (await initiator.command(bytes(6)))[0] == 0
            unit = next(iter(made.members["two"].directory.all())).unit
            (nexus,) = unit.nexuses
            assert unit.reservations.holds(nexus)

    run(scenario)


def test_refusals_name_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_moves, "ARRIVE_S", 0.3)

    async def scenario() -> None:
        async with group(tmp_path, "one", "two") as made:
            service = made.services["one"]
            initiator = await made.log_in("one")
            asked = await session_id(made)
            with pytest.raises(NotFound, match="no session"):
                await service.move_session("one-99", "two")
            with pytest.raises(NotFound, match="no member"):
                await service.move_session(asked, "four")
            with pytest.raises(Conflict, match="at member one already"):
                await service.move_session(asked, "one")
            made.members["two"].directory.find("iqn.2026-01.io.san-target:disk").ready = False  # type: ignore[union-attr]
            with pytest.raises(Conflict, match="the target is not served here"):
                await service.move_session(asked, "two")
            assert (await initiator.command(bytes(6)))[0] == 0
            made.members["two"].directory.find("iqn.2026-01.io.san-target:disk").ready = True  # type: ignore[union-attr]
            with pytest.raises(Conflict, match="did not come to member two"):
                await service.move_session(asked, "two")

    run(scenario)


def test_commands_under_way_are_answered_first_or_keep_it_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_moves, "DRAIN_S", 0.3)

    async def scenario() -> None:
        async with group(tmp_path, "one", "two") as made:
            initiator = await made.log_in("one")
            (session,) = made.members["one"].local_sessions.all()
            connection = session.connection
            # A write whose data does not come yet.
            initiator.begin_write(struct.pack(">BBIxHB6x", 0x2A, 0, 0, 8, 0), 4096)
            async with asyncio.timeout(5):
                while not connection.tasks:
                    await asyncio.sleep(0.001)
            with pytest.raises(Conflict, match="have been under way"):
                await made.services["one"].move_session(await session_id(made), "two")
            assert not connection.window_closes
            assert connection.tasks

    run(scenario)
