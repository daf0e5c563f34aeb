"""Many sessions on one member: logged in at once, and logged in and out again and again, without a leak."""

from __future__ import annotations

import asyncio
import gc
import os
import time
from pathlib import Path

import pytest

from initiator_sim.client import Initiator
from initiator_sim.path import Path as SessionPath
from initiator_sim.personalities import LIBISCSI
from initiator_sim.reactor import Reactor
from tests.support.member import Member
from tests.support.target import Volume, wait_for

SESSIONS = 500
LOGINS = 5000
WARM_UP_LOGINS = 5000
LINGER_S_MAX = 10
LOGINS_AT_ONCE = 50
IDLE_SESSION_BYTES_MAX = 256 << 10
LEAK_BYTES_MAX = 8 << 20


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


@pytest.fixture
def volume(member: Member) -> Volume:
    return member.create_volume("many", 64 << 20)


def host(number: int, reactor: Reactor) -> Initiator:
    return Initiator(f"iqn.2026-01.org.example:host-{number}", LIBISCSI, reactor=reactor)


async def log_in_all(volume: Volume, count: int) -> list[SessionPath]:
    """`count` sessions of as many initiators."""
    reactor = Reactor()
    paths = [host(number, reactor).path(volume.portal, volume.iqn) for number in range(count)]
    await asyncio.gather(*(path.connect() for path in paths))
    return paths


async def log_in_and_out(volume: Volume, count: int) -> None:
    reactor = Reactor()
    numbers = iter(range(count))

    async def one_after_the_other() -> None:
        for number in numbers:
            path = host(number, reactor).path(volume.portal, volume.iqn)
            await path.connect()
            await path.close()

    await asyncio.gather(*(one_after_the_other() for _ in range(LOGINS_AT_ONCE)))
    assert not reactor.connections


@pytest.mark.slow
def test_500_sessions_logged_in_at_once(member: Member, volume: Volume) -> None:
    async def scenario() -> None:
        before = resident_bytes(member.pid)
        started_s = time.perf_counter()
        paths = await log_in_all(volume, SESSIONS)
        took_s = time.perf_counter() - started_s
        each = (resident_bytes(member.pid) - before) / SESSIONS
        print(f"{SESSIONS} logins in {took_s:.2f} s, {SESSIONS / took_s:.0f}/s; {each / 1024:.1f} KiB a session")
        assert len(await asyncio.to_thread(member.json, "session", "list")) == SESSIONS
        assert await asyncio.gather(*(path.ping(b"alive") for path in paths)) == [b"alive"] * SESSIONS
        assert each < IDLE_SESSION_BYTES_MAX
        await asyncio.gather(*(path.close() for path in paths))

    asyncio.run(scenario())
    assert member.json("session", "list") == []


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_5000_logins_and_logouts_leak_nothing(member: Member, volume: Volume) -> None:
    files = descriptors(member.pid)
    asyncio.run(log_in_and_out(volume, WARM_UP_LOGINS))  # caches, arenas and the record of known ports have their size
    wait_for(lambda: descriptors(member.pid) <= files, LINGER_S_MAX, "closed connections are gone")
    memory = resident_bytes(member.pid)
    started_s = time.perf_counter()
    asyncio.run(log_in_and_out(volume, LOGINS))
    rate = LOGINS / (time.perf_counter() - started_s)
    assert member.json("session", "list") == []
    wait_for(lambda: descriptors(member.pid) <= files, LINGER_S_MAX, "closed connections are gone")
    grown = resident_bytes(member.pid) - memory
    print(f"{LOGINS} logins and logouts, {rate:.0f}/s; memory {grown / 1024:+.0f} KiB")
    assert grown < LEAK_BYTES_MAX


def test_a_closed_path_leaves_nothing_in_this_process(member: Member, volume: Volume) -> None:
    async def scenario() -> None:
        await log_in_and_out(volume, 60)
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    before = descriptors(os.getpid())
    asyncio.run(scenario())
    gc.collect()
    assert descriptors(os.getpid()) == before
