"""SIGTERM under load and with an initiator that reads nothing; second members where one is running."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable

import pytest

from tests.support.member import Member
from tests.support.raw_initiator import Ended, RawInitiator, read16, write16
from tests.support.stamps import stamps, versions_of
from tests.support.target import PLAIN, Volume

MIB = 1 << 20
VOLUME_BYTES = 64 * MIB
BLOCK = 512
SLOT_BLOCKS = 8
SLOTS = 1000
DEPTH = 8
ASYNC_SESSION_DROP = 3


@pytest.fixture
def member(new_member: Callable[..., Member]) -> Member:
    member = new_member()
    member.start()
    return member


@pytest.fixture
def volume(member: Member) -> Volume:
    made = member.ask("POST", "/volumes", {"name": "disk", "size_bytes": VOLUME_BYTES})
    return Volume("disk", made["iqn"], 0, member.portal, VOLUME_BYTES, PLAIN)


class Writer(threading.Thread):
    """A session that writes stamped slots of its own, DEPTH at once, until the target ends it."""

    def __init__(self, volume: Volume, number: int) -> None:
        super().__init__(daemon=True)
        self.first_lba = number * SLOTS * SLOT_BLOCKS
        self.acknowledged = [0] * SLOTS
        self.under_way: dict[int, int] = {}
        self.initiator = RawInitiator(volume.portal)
        assert self.initiator.login(volume.iqn, isid=bytes((0x80, 0, 0, 0, 0, number))) == 0
        self.initiator.ready()

    def lba(self, slot: int) -> int:
        return self.first_lba + slot * SLOT_BLOCKS

    def run(self) -> None:
        try:
            for first in itertools.count(1, DEPTH):
                self.write(range(first, first + DEPTH))
        except Ended:
            self.initiator.read_to_the_end()

    def write(self, versions: range) -> None:
        tags = {}
        for version in versions:
            self.under_way[version % SLOTS] = version
            lba = self.lba(version % SLOTS)
            data = stamps(lba, SLOT_BLOCKS, version, BLOCK)
            tags[self.initiator.submit(write16(lba, SLOT_BLOCKS), data)] = version
        for tag, version in tags.items():
            assert self.initiator.wait(tag).status == 0
            self.acknowledged[version % SLOTS] = version
            del self.under_way[version % SLOTS]

    def check(self, reader: RawInitiator) -> None:
        """What was acknowledged is there; what was under way may be."""
        for slot, version in enumerate(self.acknowledged):
            lba = self.lba(slot)
            found = versions_of(reader.good(read16(lba, SLOT_BLOCKS), read_bytes=SLOT_BLOCKS * BLOCK), lba, BLOCK)
            assert set(found) <= {version, self.under_way.get(slot, version)}, f"slot {slot}: {found}"


def test_sigterm_under_load_ends_sessions_in_order_and_loses_nothing(member: Member, volume: Volume) -> None:
    writers = [Writer(volume, number) for number in range(3)]
    idle = RawInitiator(volume.portal)
    assert idle.login(volume.iqn, isid=b"\x80\0\0\0\1\0") == 0
    for writer in writers:
        writer.start()
    time.sleep(0.5)
    assert member.stop() == 0
    idle.read_to_the_end()
    assert idle.events == [ASYNC_SESSION_DROP]
    for writer in writers:
        writer.join(30)
        assert not writer.is_alive()
        assert any(writer.acknowledged)
    assert "level=error" not in member.log
    member.restart()
    reader = RawInitiator(member.portal)
    assert reader.login(volume.iqn) == 0
    reader.ready()
    for writer in writers:
        writer.check(reader)


def test_an_initiator_that_reads_nothing_delays_no_stop(member: Member, volume: Volume) -> None:
    stuck = RawInitiator(member.portal, receive_buffer_bytes=4096)
    assert stuck.login(volume.iqn) == 0
    stuck.ready()
    for _ in range(100):
        stuck.submit(read16(0, 2048), read_bytes=MIB)
    half_sent = RawInitiator(member.portal)
    assert half_sent.login(volume.iqn, isid=b"\x80\0\0\0\0\2") == 0
    half_sent.ready()
    half_sent.submit(write16(0, 8), bytes(8 * BLOCK))
    half_sent.socket.sendall(bytes((0x01, 0xA1)))  # the beginning of a header
    mute = RawInitiator(member.portal)  # never logs in
    time.sleep(0.3)
    assert member.stop() == 0
    for initiator in (stuck, half_sent, mute):
        initiator.close()
    member.restart()


def test_a_second_member_on_the_same_pool_or_ports_says_what_is_in_the_way(
    member: Member, volume: Volume, new_member: Callable[..., Member]
) -> None:
    busy_pool = new_member(pool=member.pool, store=member.store)
    busy_portal, busy_admin, same_name = new_member(), new_member(), new_member(store=member.store)
    busy_portal.portal, busy_admin.admin = member.portal, member.admin
    expected = {
        busy_pool: (f"the pool {member.pool} is in use by process {member.pid}", "stop that member first"),
        busy_portal: (f"the portal {member.portal} cannot be opened", "give another address (--portal)"),
        busy_admin: (f"the admin port {member.admin} cannot be opened", "give another address (--admin)"),
        same_name: ("a member named 'm0' is running with another pool", "give this one another --name"),
    }
    for other, (reason, advice) in expected.items():
        line = other.refusal()
        assert reason in line
        assert advice in line
    initiator = RawInitiator(member.portal)
    assert initiator.login(volume.iqn) == 0
    initiator.ready()
    assert member.ask("GET", "/group")["state"] == "ok"
