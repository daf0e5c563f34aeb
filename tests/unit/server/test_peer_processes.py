"""Peer links between processes that are killed and stopped."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import uvloop

from san_target.peer.frames import Status
from san_target.peer.link import PeerLink
from san_target.peer.peers import Peers
from san_target.peer.service import PeerService
from san_target.server.environment import Environment
from tests.unit.peer.kit import Address, Calls, Owner, own, read, write


@asynccontextmanager
async def process(role: str, incarnation: int, address: str) -> AsyncIterator[tuple[subprocess.Popen[str], str]]:
    """(the process, the rest of its `ready` line)"""
    command = [sys.executable, "-m", "tests.support.peer_process", role, str(incarnation), address]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        line = await asyncio.to_thread(ready_line, child)
        assert line, "it ended before it was ready"
        yield child, line.removeprefix("ready").strip()
    finally:
        child.kill()
        child.wait()


def ready_line(child: subprocess.Popen[str]) -> str:
    """(Its log goes to stdout too, as nothing configures it.)"""
    assert child.stdout is not None
    return next((line for line in child.stdout if line.startswith("ready")), "")


async def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


class Caller:
    """Member a in this process."""

    def __init__(self, address: str, incarnation: int = 1) -> None:
        self.environment = Environment()
        self.peers = Peers(self.environment)
        self.peers.begin(own("a", incarnation))
        self.peers.follow([Address("b", 1, address)])

    @property
    def link(self) -> PeerLink:
        link = self.peers.link("b")
        assert link is not None
        return link

    async def up(self) -> None:
        await self.link.settled(self.environment.now_s() + 30)


def test_an_owner_that_is_killed_and_comes_back() -> None:
    async def scenario() -> None:
        async with process("owner", 1, "127.0.0.1:0") as (child, address):
            caller = Caller(address)
            await caller.up()
            calls = Calls()
            os.kill(child.pid, signal.SIGSTOP)  # so that all are under way
            for lba in range(100):
                assert caller.link.try_send(write(lba), calls)
            await asyncio.sleep(0.05)
            child.kill()
            await until(lambda: len(calls.answers) == 100)
            assert set(calls.statuses) == {Status.LOST}
        async with process("owner", 2, address):
            caller.peers.follow([Address("b", 2, address)])
            await caller.up()
            answer = await caller.link.request(write(1, b"again"), caller.environment.now_s() + 30)
            assert answer.status == Status.GOOD
            answer = await caller.link.request(read(1, 5), caller.environment.now_s() + 30)
            assert answer.payload == b"again"
        caller.peers.end()

    uvloop.run(scenario())


def test_what_a_killed_caller_had_sent_has_ended_before_its_next_life_is_let_in() -> None:
    async def scenario() -> None:
        environment, owner = Environment(), Owner()
        service = owner.service = PeerService(environment, owner)
        address = await service.listen("127.0.0.1:0")
        service.begin(own("b"), {"a": 1}.get)
        async with process("caller", 1, address) as (child, _):
            await until(lambda: len(owner.executed) > 1000)
            owner.hold = True
            await until(lambda: len(owner.held) == 32)
            child.kill()
            await until(lambda: bool(owner.lost_peers))
        caller = Caller(address, incarnation=2)
        await asyncio.sleep(0.3)
        assert caller.link.state == "connecting"
        executed = len(owner.executed)
        owner.release()
        await caller.up()
        assert len(owner.executed) == executed, "nothing of the dead one was begun"
        assert [peer.incarnation for peer in service.peers()] == [2]
        answer = await caller.link.request(write(1), environment.now_s() + 30)
        assert answer.status == Status.GOOD
        caller.peers.end()
        await service.stop()

    uvloop.run(scenario())


@pytest.mark.slow
def test_an_owner_that_is_stopped_and_goes_on() -> None:
    async def scenario() -> None:
        async with process("owner", 1, "127.0.0.1:0") as (child, address):
            caller = Caller(address)
            await caller.up()
            os.kill(child.pid, signal.SIGSTOP)
            calls = Calls()
            assert caller.link.try_send(write(1), calls)
            await until(lambda: bool(calls.answers))
            assert calls.statuses == [Status.LOST]
            assert "no sign of life" in caller.link.reason
            tick = caller.link.tick
            os.kill(child.pid, signal.SIGCONT)
            await caller.up()
            await until(lambda: caller.link.tick > tick + 4)
            answer = await caller.link.request(read(2), caller.environment.now_s() + 30)
            assert answer.status == Status.GOOD
            caller.peers.end()

    uvloop.run(scenario())
