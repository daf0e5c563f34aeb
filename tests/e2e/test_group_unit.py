"""The unit is the group's: what is reserved, reset or begun through one member holds at all, also when members die."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.group import Group, GroupMember
from tests.support.raw_initiator import (
    BUSY,
    GOOD,
    RESERVATION_CONFLICT,
    Ended,
    RawInitiator,
    read16,
    write16,
)
from tests.support.target import Volume, wait_for

pytestmark = pytest.mark.slow

MIB = 1 << 20
BLOCK = 512
HOST_A, HOST_B = (f"iqn.1993-08.org.debian:01:{name}" for name in "ab")
ISID = bytes.fromhex("00023d000001")
OTHER_ISID = bytes.fromhex("00023d000002")
RESERVE_6 = bytes((0x16, 0, 0, 0, 0, 0))
REGISTER, RESERVE, PREEMPT_AND_ABORT = 0, 1, 5
WRITE_EXCLUSIVE = 1
LEASE_S = 30  # by then a dead member is known to be dead, and what was its sessions' has been given up


def log_in(member: GroupMember, volume: Volume, name: str = HOST_A, isid: bytes = ISID) -> RawInitiator:
    initiator = RawInitiator(member.portal)
    assert initiator.login(volume.iqn, name, isid) == 0
    return initiator.ready()


def reserve_out(initiator: RawInitiator, action: int, key: int = 0, service_key: int = 0, aptpl: bool = False) -> int:
    kind = WRITE_EXCLUSIVE if action != REGISTER else 0
    cdb = bytes((0x5F, action, kind, 0, 0, 0, 0, 0, 24, 0))
    parameters = key.to_bytes(8, "big") + service_key.to_bytes(8, "big") + bytes((0, 0, 0, 0, aptpl, 0, 0, 0))
    return initiator.command(cdb, parameters).status


def keys(initiator: RawInitiator) -> list[int]:
    data = initiator.good(bytes((0x5E, 0, 0, 0, 0, 0, 0, 1, 0, 0)), read_bytes=256)
    return [int.from_bytes(data[at : at + 8], "big") for at in range(8, 8 + int.from_bytes(data[4:8], "big"), 8)]


def first_block_of(group: Group, volume: Volume, member: GroupMember) -> int:
    return group.owners(volume)[member.member_name][0].start


def write(initiator: RawInitiator, lba: int, byte: int = 1) -> int:
    return initiator.command(write16(lba, 1), bytes([byte]) * BLOCK).status


@pytest.fixture
def new_group(tmp_path: Path) -> Iterator[Callable[[], Group]]:
    """A group of the test's own, whose members it may kill."""
    groups: list[Group] = []

    def make() -> Group:
        groups.append(Group(tmp_path / f"group-{len(groups)}"))
        groups[-1].start()
        groups[-1].wait_until_active()
        return groups[-1]

    yield make
    for group in groups:
        group.kill()


def test_a_reservation_through_one_member_keeps_others_out_at_all(group: Group) -> None:
    volume = group.create_volume("reserved", 3 * MIB)
    holder = log_in(group[0], volume)
    others = [log_in(member, volume, HOST_B, bytes((0x80, 0, 0, 0, 0, index))) for index, member in enumerate(group)]
    assert reserve_out(holder, REGISTER, service_key=0xA) == GOOD
    assert reserve_out(holder, RESERVE, key=0xA) == GOOD
    for lba in (first_block_of(group, volume, owner) for owner in group):
        assert write(holder, lba) == GOOD
        assert [write(other, lba) for other in others] == [RESERVATION_CONFLICT] * 3
        assert [other.command(read16(lba, 1), read_bytes=BLOCK).status for other in others] == [GOOD] * 3
    preemptor = others[2]
    assert reserve_out(preemptor, REGISTER, service_key=0xB) == GOOD
    assert reserve_out(preemptor, PREEMPT_AND_ABORT, key=0xB, service_key=0xA) == GOOD
    assert keys(others[1]) == [0xB]
    assert holder.command(bytes(6)).condition == (0x6, 0x2A, 0x05)  # REGISTRATIONS PREEMPTED
    assert write(holder, 0) == RESERVATION_CONFLICT
    assert write(preemptor, 0) == GOOD


def test_a_port_that_logs_in_elsewhere_leaves_nothing_behind(group: Group) -> None:
    """The same name and ISID ends the session at the other member, with all that it had under way; another ISID is
    another session."""
    volume = group.create_volume("moving", 3 * MIB)
    stays = log_in(group[1], volume, isid=OTHER_ISID)
    last = bytes(BLOCK)
    for step in range(12):
        here, there = group[step % 3], group[(step + 1) % 3]
        old = log_in(here, volume)
        lba = first_block_of(group, volume, group[(step + 2) % 3])  # neither here nor there
        stale = [old.submit(write16(lba, 1), bytes([100 + step]) * BLOCK) for _ in range(16)]
        new = log_in(there, volume)
        last = bytes([step + 1]) * BLOCK
        new.good(write16(lba, 1), last)
        old.outcomes(stale)
        with pytest.raises(Ended):
            old.good(bytes(6))
        assert stays.good(read16(lba, 1), read_bytes=BLOCK) == last
        new.logout()
    assert write(stays, 0) == GOOD


@pytest.mark.timeout(180)
def test_reservations_when_members_die(new_group: Callable[[], Group]) -> None:
    """A registration outlives any member, without APTPL as long as another one runs; RESERVE(6) ends with its session,
    which ends with its member."""
    group = new_group()
    volume, legacy = group.create_volume("registered", 3 * MIB), group.create_volume("legacy", 3 * MIB)
    holder, other = log_in(group[0], volume), log_in(group[1], volume, HOST_B)
    assert reserve_out(holder, REGISTER, service_key=0xA) == GOOD
    assert reserve_out(holder, RESERVE, key=0xA) == GOOD
    waiting = log_in(group[1], legacy, HOST_B)
    assert log_in(group[0], legacy).command(RESERVE_6).status == GOOD
    assert waiting.command(RESERVE_6).status == RESERVATION_CONFLICT

    group[0].kill()
    lba = first_block_of(group, volume, group[1])
    assert write(other, lba) == RESERVATION_CONFLICT
    unreserved = first_block_of(group, legacy, group[1])
    wait_for(lambda: write(waiting, unreserved) == GOOD, LEASE_S, "the RESERVE(6) of a dead session ends")
    assert write(other, lba) == RESERVATION_CONFLICT
    # Who has not heard of it might still serve somebody whom a new reservation keeps out.
    assert waiting.command(RESERVE_6).status == BUSY
    group[0].start()
    wait_for(lambda: waiting.command(RESERVE_6).status == GOOD, LEASE_S, "everybody can be told of a reservation")
    holder = log_in(group[0], volume)
    assert write(holder, lba) == GOOD
    assert keys(other) == [0xA]

    # None of them runs: without APTPL that is the end of a registration (SPC-4 5.13.6).
    assert [member.stop() for member in group] == [0, 0, 0]
    group.start()
    other = log_in(group[2], volume, HOST_B)
    assert keys(other) == []
    assert write(other, lba) == GOOD
    assert reserve_out(other, REGISTER, service_key=0xB, aptpl=True) == GOOD
    assert reserve_out(other, RESERVE, key=0xB) == GOOD
    group.kill()
    group.start()
    for member in group:
        host = log_in(member, volume)
        assert keys(host) == [0xB]
        assert write(host, lba) == RESERVATION_CONFLICT


@pytest.mark.timeout(180)
def test_what_a_preempted_host_gave_to_a_member_that_stood_still_is_never_done(new_group: Callable[[], Group]) -> None:
    """The member slept through the preemption, and holds blocks itself: its own are as unwritten as the others'."""
    group = new_group()
    volume = group.create_volume("preempted", 3 * MIB)
    lbas = [first_block_of(group, volume, owner) for owner in group]
    holder, other = log_in(group[0], volume), log_in(group[1], volume, HOST_B)
    assert reserve_out(holder, REGISTER, service_key=0xA) == GOOD
    assert reserve_out(holder, RESERVE, key=0xA) == GOOD
    assert reserve_out(other, REGISTER, service_key=0xB) == GOOD
    for lba in lbas:
        holder.good(write16(lba, 1), b"a" * BLOCK)

    group[0].pause()
    for lba in lbas:
        holder.submit(write16(lba, 1), b"x" * BLOCK)  # into a socket that nobody reads now
    wait_for(
        lambda: reserve_out(other, PREEMPT_AND_ABORT, key=0xB, service_key=0xA) == GOOD, LEASE_S, "it has no lease now"
    )
    other.good(write16(lbas[1], 1), b"b" * BLOCK)
    group[0].resume()
    reader = log_in(group[2], volume, HOST_B, OTHER_ISID)
    wait_for(
        lambda: reader.command(read16(lbas[0], 1), read_bytes=BLOCK).status == GOOD, LEASE_S, "its blocks are served"
    )
    assert [reader.good(read16(lba, 1), read_bytes=BLOCK)[:1] for lba in lbas] == [b"a", b"b", b"a"]
    with pytest.raises(Ended):
        holder.good(bytes(6))
    again = log_in(group[0], volume)
    assert [write(again, lba) for lba in lbas] == [RESERVATION_CONFLICT] * 3
    assert [reader.good(read16(lba, 1), read_bytes=BLOCK)[:1] for lba in lbas] == [b"a", b"b", b"a"]


def test_a_new_member_sees_what_is_reserved(new_group: Callable[[], Group], tmp_path: Path) -> None:
    group = new_group()
    volume = group.create_volume("reserved", 3 * MIB)
    holder = log_in(group[0], volume)
    assert reserve_out(holder, REGISTER, service_key=0xA) == GOOD
    assert reserve_out(holder, RESERVE, key=0xA) == GOOD
    newcomer = GroupMember(tmp_path / "m4", "m4", group.store_url)
    try:
        newcomer.start()
        host = log_in(newcomer, volume, HOST_B)
        assert keys(host) == [0xA]
        assert write(host, 0) == RESERVATION_CONFLICT
        assert write(holder, 0) == GOOD
        assert newcomer.stop() == 0
    finally:
        newcomer.kill()
