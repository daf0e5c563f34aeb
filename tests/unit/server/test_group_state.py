"""Reservations, resets, mode parameters and sessions are the group's: what is done through one member holds at all."""

import asyncio
import contextlib
import struct
from pathlib import Path

import pytest

from san_target.peer.messages import Done, EndSessions, Message
from tests.unit.server.conftest import run, spec
from tests.unit.server.group_kit import HOST_A, HOST_B, IQN, ISID, OTHER_ISID, Group, group
from tests.unit.server.initiator import Initiator

BLOCK = 512
TARGET_COLD_RESET = 7  # RFC 7143 11.5.1
CONFLICT, BUSY, CHECK = 0x18, 0x08, 0x02
REGISTER, RESERVE, RELEASE, CLEAR, PREEMPT, PREEMPT_AND_ABORT = range(6)
RESERVE_6, RELEASE_6 = bytes([0x16, 0, 0, 0, 0, 0]), bytes([0x17, 0, 0, 0, 0, 0])


async def write(initiator: Initiator, lba: int, byte: int) -> int:
    return (await initiator.command(struct.pack(">BBQIBB", 0x8A, 0, lba, 1, 0, 0), bytes([byte]) * BLOCK))[0]


async def read(initiator: Initiator, lba: int) -> tuple[int, bytes]:
    return await initiator.command(struct.pack(">BBQIBB", 0x88, 0, lba, 1, 0, 0), read=BLOCK)


async def reserve_out(initiator: Initiator, action: int, key: int = 0, service_key: int = 0, kind: int = 1) -> int:
    cdb = struct.pack(">BBB2xIx", 0x5F, action, kind if action in (1, 2, 4, 5) else 0, 24)
    return (await initiator.command(cdb, struct.pack(">QQ8x", key, service_key)))[0]


async def attention(initiator: Initiator) -> tuple[int, int]:
    """(ASC, ASCQ) of the unit attention that is owed."""
    status, sense = await initiator.command(bytes(6))
    assert status == CHECK
    return sense[2 + 12], sense[2 + 13]


def test_what_is_written_through_one_member_is_read_through_the_other(tmp_path: Path) -> None:
    async def body() -> None:
        async with group(tmp_path, "m1", "m2") as made:
            one, two = await made.log_in("m1"), await made.log_in("m2", HOST_B)
            for owner in ("m1", "m2"):
                lba = made.first_lba_of(owner)
                assert await write(one, lba, 7) == 0
                assert await read(two, lba) == (0, bytes([7]) * BLOCK)
                assert await write(two, lba, 8) == 0
                assert await read(one, lba) == (0, bytes([8]) * BLOCK)

    run(body)


def test_a_reservation_taken_through_one_member_is_enforced_by_all(tmp_path: Path) -> None:
    async def body() -> None:
        async with group(tmp_path, "m1", "m2", "m3") as made:
            one, two = await made.log_in("m1"), await made.log_in("m2", HOST_B)
            three = await made.log_in("m3", HOST_B, OTHER_ISID)
            assert await reserve_out(one, REGISTER, service_key=0xA) == 0
            assert await reserve_out(one, RESERVE, key=0xA) == 0
            for initiator in (two, three):
                for owner in ("m1", "m2", "m3"):
                    assert await write(initiator, made.first_lba_of(owner), 1) == CONFLICT
                    assert (await read(initiator, made.first_lba_of(owner)))[0] == 0
            assert await write(one, made.first_lba_of("m2"), 1) == 0
            assert await reserve_out(two, REGISTER, service_key=0xB) == 0
            assert await reserve_out(two, PREEMPT, key=0xB, service_key=0xA) == 0
            assert await attention(one) == (0x2A, 0x05)
            assert await write(one, made.first_lba_of("m1"), 2) == CONFLICT
            assert await write(two, made.first_lba_of("m1"), 2) == 0

    run(body)


def test_two_changes_at_two_members_at_once_do_not_lose_one(tmp_path: Path) -> None:
    async def body() -> None:
        async with group(tmp_path, "m1", "m2") as made:
            hosts = [await made.log_in(f"m{1 + n % 2}", HOST_A, bytes([0, 2, 0x3D, 0, 0, n])) for n in range(6)]
            statuses = await asyncio.gather(
                *(reserve_out(host, REGISTER, service_key=n + 1) for n, host in enumerate(hosts))
            )
            assert statuses == [0] * 6
            for host in hosts:
                status, data = await host.command(bytes([0x5E, 0, 0, 0, 0, 0, 0, 1, 0, 0]), read=256)
                assert status == 0
                assert sorted(struct.unpack(f">{len(data[8:56]) // 8}Q", data[8:56])) == [1, 2, 3, 4, 5, 6]

    run(body)


def test_a_reserve_6_is_seen_by_all_and_ends_with_its_session(tmp_path: Path) -> None:
    async def body() -> None:
        async with group(tmp_path, "m1", "m2") as made:
            one, two = await made.log_in("m1"), await made.log_in("m2", HOST_B)
            assert (await one.command(RESERVE_6))[0] == 0
            assert (await two.command(RESERVE_6))[0] == CONFLICT
            assert await write(two, 0, 1) == CONFLICT
            one.close()
            async with asyncio.timeout(10):
                while await write(two, 0, 1) == CONFLICT:
                    await asyncio.sleep(0.02)
            assert (await two.command(RESERVE_6))[0] == 0

    run(body)


def test_a_reserve_6_is_over_everywhere_when_the_logout_is_answered(tmp_path: Path) -> None:
    async def body() -> None:
        async with group(tmp_path, "m1", "m2") as made:
            two = await made.log_in("m2", HOST_B)
            for number in range(5):
                one = await made.log_in("m1", HOST_A, bytes([0, 2, 0x3D, 0, 0, number]))
                assert (await one.command(RESERVE_6))[0] == 0
                assert await write(two, 0, 1) == CONFLICT
                await one.logout()
                assert await write(two, 0, 1) == 0

    run(body)


def test_a_reserve_6_of_a_port_that_comes_back_elsewhere_is_its_own(tmp_path: Path) -> None:
    """The release of what its old session held must not take what the new one has reserved."""

    async def body() -> None:
        async with group(tmp_path, "m1", "m2") as made:
            other = await made.log_in("m2", HOST_B)
            for at in ("m1", "m2", "m1", "m2"):
                host = await made.log_in(at)
                assert (await host.command(RESERVE_6))[0] == 0
            await asyncio.sleep(0.2)
            assert await write(other, 0, 1) == CONFLICT
            assert await write(host, 0, 1) == 0

    run(body)


def test_a_reserve_6_ends_with_the_life_of_its_member(tmp_path: Path) -> None:
    async def body() -> None:
        async with group(tmp_path, "m1", "m2") as made:
            one, two = await made.log_in("m1"), await made.log_in("m2", HOST_B)
            assert (await one.command(RESERVE_6))[0] == 0
            assert await write(two, made.first_lba_of("m2"), 1) == CONFLICT
            # Its member ends, and nobody there says that the session has ended.
            await made.members["m1"].membership.tell(serving=False)
            await made.members["m1"]._followers.cancel()
            await made.members["m1"]._background.cancel()
            await made.members["m1"].life.peering.stop()
            await made.members["m1"].membership.leave()
            async with asyncio.timeout(20):
                while await write(two, made.first_lba_of("m2"), 1) != 0:
                    await asyncio.sleep(0.05)

    run(body)


def test_a_reset_reaches_every_host(tmp_path: Path) -> None:
    async def body() -> None:
        async with group(tmp_path, "m1", "m2") as made:
            one, two = await made.log_in("m1"), await made.log_in("m2", HOST_B)
            unit = next(iter(made.members["m1"].exports.by_id.values())).target.unit
            assert await unit.reset_everywhere()
            assert await attention(one) == (0x29, 0x03)
            assert await attention(two) == (0x29, 0x03)

    run(body)


def test_a_cold_reset_is_answered_and_ends_every_session(tmp_path: Path) -> None:
    async def body() -> None:
        async with group(tmp_path, "m1", "m2") as made:
            one, beside = await made.log_in("m1"), await made.log_in("m1", HOST_A, OTHER_ISID)
            two = await made.log_in("m2", HOST_B)
            assert await one.reset(TARGET_COLD_RESET) == 0
            assert [await each.ended() for each in (one, beside, two)] == [True, True, True]

    run(body)


def test_mode_parameters_are_the_same_everywhere(tmp_path: Path) -> None:
    async def body() -> None:
        async with group(tmp_path, "m1", "m2") as made:
            one, two = await made.log_in("m1"), await made.log_in("m2", HOST_B)
            page = bytearray((await one.command(bytes([0x1A, 8, 0x0A, 0, 64, 0]), read=64))[1])
            page[0], page[2] = 0, 0
            page[4 + 2] |= 0x04  # D_SENSE
            assert (await one.command(bytes([0x15, 0x10, 0, 0, len(page), 0]), bytes(page)))[0] == 0
            status, sense = await two.command(bytes(6))
            assert (status, sense[2] & 0x7F, sense[2 + 2], sense[2 + 3]) == (CHECK, 0x72, 0x2A, 0x01)
            after = (await two.command(bytes([0x1A, 8, 0x0A, 0, 64, 0]), read=64))[1]
            assert after[4 + 2] & 0x04

    run(body)


# --- sessions ---------------------------------------------------------------------------------------------------------


def test_the_same_initiator_port_ends_its_session_wherever_it_is(tmp_path: Path) -> None:
    async def body() -> None:
        async with group(tmp_path, "m1", "m2") as made:
            old = await made.log_in("m1")
            stays = await made.log_in("m1", HOST_A, OTHER_ISID)
            await made.log_in("m2")
            assert await old.ended()
            assert await write(stays, 0, 1) == 0

    run(body)


def test_two_logins_of_one_port_at_two_members_at_once_end_with_at_most_one_session(tmp_path: Path) -> None:
    async def body() -> None:
        async with group(tmp_path, "m1", "m2") as made:
            for _ in range(5):
                both = [await Initiator.connect(made.members[name].portals.bound[0], ISID) for name in ("m1", "m2")]
                made.initiators += both
                statuses = await asyncio.gather(*(initiator.login(IQN, HOST_A) for initiator in both))
                assert set(statuses) <= {0, 0x0301}
                count = sum(len(each.sessions) for m in made.members.values() for each in m.exports.by_id.values())
                assert count <= 1

    run(body)


async def stop_serving_peers(made: Group, name: str) -> None:
    """A member that can be reached no more, though its lease holds: its peer port is dead, its own links too."""
    peering = made.members[name].life.peering
    await peering.service.stop()
    peering.peers.end()


def test_a_member_that_does_not_answer_is_fenced_before_the_login_completes(tmp_path: Path) -> None:
    async def body() -> None:
        async with group(tmp_path, "m1", "m2", "m3") as made:
            await made.log_in("m1")
            await stop_serving_peers(made, "m1")
            await made.log_in("m2", ready=False)
            for name in ("m2", "m3"):
                assert made.members[name].life.peering.service._ended_incarnations["m1"] == 1

    run(body)


def test_a_fenced_member_begins_a_new_life_without_its_sessions(tmp_path: Path) -> None:
    async def body() -> None:
        async with group(tmp_path, "m1", "m2") as made:
            old = await made.log_in("m1", HOST_B)
            await made.members["m2"].life.peering.fence("m1", 1)
            assert await old.ended()
            async with asyncio.timeout(20):
                while made.members["m1"].membership.incarnation < 2:
                    await asyncio.sleep(0.02)
            await made.linked()
            again = await made.log_in("m1", HOST_B)
            for owner in ("m1", "m2"):
                assert await write(again, made.first_lba_of(owner), 3) == 0

    run(body)


def test_what_a_live_session_has_in_its_hands_is_waited_for(tmp_path: Path) -> None:
    """The initiator comes back with another ISID, as libiscsi does, and the connection that it lost looks alive."""

    async def body() -> None:
        async with group(tmp_path, "m1", "m2", "m3") as made:
            lba = made.first_lba_of("m3")
            (owner,) = made.members["m3"].exports.by_id.values()
            old = await made.log_in("m1")
            held = await owner.local.locks.acquire(lba, 1, True)
            stuck = asyncio.ensure_future(write(old, lba, 1))
            await asyncio.sleep(0.1)
            elsewhere = asyncio.ensure_future(made.log_in("m2", HOST_A, OTHER_ISID))
            here = asyncio.ensure_future(made.log_in("m1", HOST_A, OTHER_ISID[:5] + b"\3"))
            other = await made.log_in("m2", HOST_B)
            assert await write(other, made.first_lba_of("m2"), 1) == 0
            assert not elsewhere.done(), "what was written before can still happen"
            assert not here.done(), "what was written before can still happen"
            owner.local.locks.release(held)
            assert await stuck == 0
            await here
            new = await elsewhere
            assert await write(new, lba, 2) == 0
            await asyncio.sleep(0.1)
            assert await read(new, lba) == (0, bytes([2]) * BLOCK)

    run(body)


def test_what_is_in_nobodys_hands_any_more_does_not_hold_up_a_login(tmp_path: Path) -> None:
    """After OUTDATED_S no owner would begin it."""

    async def body() -> None:
        async with group(tmp_path, "m1", "m2") as made:
            lba = made.first_lba_of("m2")
            (owner,) = made.members["m2"].exports.by_id.values()
            old = await made.log_in("m1")
            held = await owner.local.locks.acquire(lba, 1, True)
            stuck = asyncio.ensure_future(write(old, lba, 1))
            await asyncio.sleep(0.1)
            new = await made.log_in("m2", HOST_A, OTHER_ISID)
            assert not stuck.done()
            owner.local.locks.release(held)
            assert await write(new, lba, 2) == 0
            old.close()
            await asyncio.wait([stuck], timeout=1)
            assert await read(new, lba) == (0, bytes([2]) * BLOCK)
            stuck.cancel()

    run(body)


def test_a_life_that_ends_fences_nobody(tmp_path: Path) -> None:
    """Logins under way find the other members' links gone with it."""

    async def body() -> None:
        async with group(tmp_path, "m1", "m2") as made:
            asked, never = asyncio.Event(), asyncio.Event()

            async def say_nothing(_peer: object, _message: EndSessions) -> Message:
                asked.set()
                await never.wait()
                return Done()

            made.members["m2"].life.peering.answer(EndSessions, say_nothing)
            login = asyncio.ensure_future(made.log_in("m1", HOST_B))
            await asked.wait()
            await made.members["m1"]._begin_anew("a test")
            await asyncio.wait([login])
            assert login.exception() is not None
            assert made.members["m1"].life.peering.service._ended_incarnations.get("m2", 0) == 0
            await made.linked()
            assert made.members["m2"].membership.incarnation == 1

    run(body)


def test_a_member_that_is_fenced_itself_fences_nobody(tmp_path: Path) -> None:
    async def body() -> None:
        async with group(tmp_path, "m1", "m2") as made:
            first = made.members["m1"].life.peering
            await made.members["m2"].life.peering.fence("m1", 1)
            initiator = await Initiator.connect(made.members["m1"].portals.bound[0], ISID)
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                assert await initiator.login(IQN, HOST_A) != 0
            assert first.service._ended_incarnations.get("m2", 0) == 0
            async with asyncio.timeout(20):
                while made.members["m1"].membership.incarnation < 2:
                    await asyncio.sleep(0.02)
            await made.linked()
            assert made.members["m2"].membership.incarnation == 1

    run(body)


def test_a_member_to_be_told_of_a_fence_is_sent_nothing_before(tmp_path: Path) -> None:
    async def body() -> None:
        async with group(tmp_path, "m1", "m2") as made:
            peering = made.members["m1"].life.peering
            assert peering.link("m2") is not None
            peering._notices["m2"] = {"m9": 1}
            assert peering.link("m2") is None
            await peering._deliver("m2")
            assert peering.link("m2") is not None
            assert made.members["m2"].life.peering.service._ended_incarnations["m9"] == 1

    run(body)


def test_a_target_made_through_another_member_is_never_unknown(tmp_path: Path) -> None:
    async def body() -> None:
        async with group(tmp_path, "m1", "m2") as made:
            for number in range(5):
                await made.services["m1"].create_volume(spec(f"new{number}", size_bytes=1 << 20, members=("m1",)))
                initiator = await Initiator.connect(made.members["m2"].portals.bound[0], ISID)
                made.initiators.append(initiator)
                assert await initiator.login(f"iqn.2026-01.io.san-target:new{number}") in (0, 0x0301)
            unknown = await Initiator.connect(made.members["m2"].portals.bound[0], ISID)
            assert await unknown.login("iqn.2026-01.io.san-target:none") == 0x0203

    run(body)


# --- members that cannot be asked -------------------------------------------------------------------------------------


def test_a_change_waits_for_no_dead_member_but_says_busy_for_a_live_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body() -> None:
        async with group(tmp_path, "m1", "m2") as made:
            one = await made.log_in("m1")
            assert await reserve_out(one, REGISTER, service_key=0xA) == 0
            await stop_serving_peers(made, "m2")
            async with asyncio.timeout(20):
                while made.members["m1"].life.peering.peers.link("m2").state == "up":  # type: ignore[union-attr]
                    await asyncio.sleep(0.02)
            assert await reserve_out(one, RESERVE, key=0xA) == BUSY
            await made.members["m2"]._followers.cancel()
            await made.members["m2"].membership.leave()
            # Its lease is gone, but it did not say that it ends: it may still go by it, for as long as a lease lasts.
            life = made.members["m1"].life
            while made.members["m1"].members.view["m2"].alive:
                await asyncio.sleep(0.02)
            assert life.may_live(made.members["m1"].members.view["m2"])
            assert await reserve_out(one, RESERVE, key=0xA) == BUSY
            life._gone["m2"] = 1, life._gone["m2"][1] - made.members["m1"].environment.lease_ttl_s
            async with asyncio.timeout(20):
                while await reserve_out(one, RESERVE, key=0xA) == BUSY:
                    await asyncio.sleep(0.05)

    run(body)


def test_the_first_to_be_kept_out_needs_the_word_of_a_member_without_a_lease(tmp_path: Path) -> None:
    """Such a member may still serve the volume to its own hosts, until it has heard that somebody is kept out [17]."""

    async def body() -> None:
        async with group(tmp_path, "m1", "m2") as made:
            one = await made.log_in("m1")
            await stop_serving_peers(made, "m2")
            await made.members["m2"]._followers.cancel()
            await made.members["m2"].membership.leave()
            async with asyncio.timeout(20):
                while made.members["m1"].members.view["m2"].alive:
                    await asyncio.sleep(0.02)
            assert await reserve_out(one, REGISTER, service_key=0xA) == BUSY
            assert await write(one, made.first_lba_of("m1"), 1) == 0

    run(body)


def test_a_bound_volume_is_not_served_without_a_lease(tmp_path: Path) -> None:
    async def body() -> None:
        async with group(tmp_path, "m1", "m2") as made:
            one, two = await made.log_in("m1"), await made.log_in("m2", HOST_B)
            assert await reserve_out(one, REGISTER, service_key=0xA) == 0
            membership = made.members["m2"].membership
            await made.members["m2"]._followers.cancel()  # nobody renews it
            membership._valid_until_s = 0.0
            made.members["m2"].life.vigilance.look()
            assert await write(two, made.first_lba_of("m2"), 1) == BUSY
            assert (await two.command(bytes(6)))[0] == 0  # TEST UNIT READY stays GOOD
            assert await write(one, made.first_lba_of("m1"), 1) == 0

    run(body)


def test_a_peer_is_told_when_the_same_port_logs_in_here(tmp_path: Path) -> None:
    async def body() -> None:
        async with group(tmp_path, "m1", "m2") as made:
            export = next(iter(made.members["m1"].exports.by_id.values()))
            one = await made.log_in("m1")
            answer = await made.members["m2"].life.peering.peers.ask(
                "m1", EndSessions(export.record.id, HOST_A, ISID, "192.0.2.1:5"), 5
            )
            assert type(answer).__name__ == "Done"
            assert await one.ended()
            assert len(export.sessions) == 0

    run(body)
