"""The facts about real initiators: as the tables have them, as paths act on them, as the documentation tells them."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path as File

import pytest

from initiator_sim import task as scsi
from initiator_sim.client import Initiator, ScsiError
from initiator_sim.nexus import Kind
from initiator_sim.personalities import LIBISCSI, OPEN_ISCSI, PERSONALITIES, Personality
from san_target.wire import opcodes
from tests.unit.initiator_sim.fake_target import FakeTarget
from tests.unit.initiator_sim.test_path import IQN, connect, kinds, play, until

DOCUMENT = File(__file__).resolve().parents[3] / "docs" / "initiator-sim.md"
ROW = re.compile(r"^\| (?P<name>[^|]+) \|(?P<cells>.*)\|$", re.MULTILINE)
OTHER_LUNS = bytes((0x70, 0, 0x06, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x3F, 0x0E, 0, 0, 0, 0))
POWER_ON = bytes((0x70, 0, 0x06, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x29, 0x00, 0, 0, 0, 0))


def test_open_iscsi_as_it_was_seen() -> None:
    keys = dict(OPEN_ISCSI.keys)
    assert (keys["FirstBurstLength"], keys["MaxBurstLength"]) == ("262144", "16776192")
    assert (keys["InitialR2T"], keys["ImmediateData"], keys["DefaultTime2Wait"]) == ("No", "Yes", "2")
    assert OPEN_ISCSI.chap_algorithms == (5, 6, 7, 8)
    assert (OPEN_ISCSI.login_timeout_s, OPEN_ISCSI.login_retries, OPEN_ISCSI.logout_timeout_s) == (15, 8, 15)
    assert (OPEN_ISCSI.nop_interval_s, OPEN_ISCSI.nop_timeout_s) == (5, 5)
    assert (OPEN_ISCSI.abort_timeout_s, OPEN_ISCSI.reset_timeout_s, OPEN_ISCSI.replacement_timeout_s) == (15, 30, 120)
    assert [OPEN_ISCSI.wait_after_failure_s(failures) for failures in (1, 2, 9)] == [3, 3, 3]


def test_libiscsi_and_qemu_as_they_were_seen() -> None:
    keys = dict(LIBISCSI.keys)
    assert (keys["MaxConnections"], keys["ErrorRecoveryLevel"]) == ("1", "0")
    assert LIBISCSI.chap_algorithms == (5,)
    assert LIBISCSI.reconnect_gap_s == 3
    assert [LIBISCSI.wait_after_failure_s(failures) for failures in (1, 2, 50)] == [1, 2, 30]
    assert LIBISCSI.nop_timeout_s == 3 * LIBISCSI.nop_interval_s
    waits = [LIBISCSI.wait_after_busy_s(refusals) for refusals in range(1, 9)]
    assert (waits[0], waits[6], waits[7]) == (0.008, 32.768, None)


@pytest.mark.parametrize(
    ("personality", "sense", "rescans"),
    [
        (OPEN_ISCSI, OTHER_LUNS, True),
        (OPEN_ISCSI, POWER_ON, False),
        (OPEN_ISCSI, b"", False),
        (LIBISCSI, OTHER_LUNS, False),
    ],
)
def test_an_event_of_the_unit_means_a_rescan_only_when_the_luns_changed(
    personality: Personality, sense: bytes, rescans: bool
) -> None:
    async def scenario(first: FakeTarget, second: FakeTarget) -> None:
        path, disk = await connect(first, personality)
        first.visits[0].ask(opcodes.ASYNC_SCSI, sense=sense)
        await disk.read(0, 1)
        assert (Kind.RESCAN in kinds(path)) == rescans
        assert path.logins == 1
        await path.close()

    play(scenario)


def test_libiscsi_waits_between_two_logins() -> None:
    async def scenario(first: FakeTarget, second: FakeTarget) -> None:
        path, _ = await connect(first, replace(LIBISCSI, reconnect_gap_s=0.5))
        began_s = time.monotonic()
        path.drop_connection()
        await first.next_visit()
        assert time.monotonic() - began_s > 0.3
        path.abort()

    play(scenario)


def test_an_announced_time_to_wait_counts_instead_of_that_gap() -> None:
    async def scenario(first: FakeTarget, second: FakeTarget) -> None:
        path, _ = await connect(first, replace(LIBISCSI, reconnect_gap_s=3600.0))
        first.redirect = second.portal
        first.visits[0].ask(opcodes.ASYNC_SESSION_DROP, 0)
        first.visits[0].drop()
        await second.next_visit()
        path.abort()

    play(scenario)


def test_an_announced_time_to_wait_counts_after_a_logout_too() -> None:
    async def scenario(first: FakeTarget, second: FakeTarget) -> None:
        first.time2wait_s = 3600
        path, _ = await connect(first, replace(OPEN_ISCSI, login_timeout_s=5.0))
        first.redirect = second.portal
        first.visits[0].ask(opcodes.ASYNC_SESSION_DROP, 0)
        first.visits[0].ask(opcodes.ASYNC_LOGOUT_REQUEST)
        await second.next_visit()
        assert first.visits[0].logged_out
        path.abort()

    play(scenario)


@pytest.mark.parametrize("personality", PERSONALITIES)
def test_after_a_loss_all_go_back_to_the_portal_they_were_told(personality: str) -> None:
    async def scenario(first: FakeTarget, second: FakeTarget) -> None:
        kind = replace(PERSONALITIES[personality], obeys_time2wait=False, reconnect_gap_s=0.0)
        first.redirect = second.portal
        path = Initiator(personality=kind).path(first.portal, IQN)
        await path.connect()
        assert path.address == second.portal
        first.redirect = None
        path.drop_connection()
        await until(lambda: path.moves == 1)
        assert path.address == first.portal
        path.abort()

    play(scenario)


def test_busy_is_tried_again_until_the_personality_s_patience_ends() -> None:
    async def scenario(first: FakeTarget, second: FakeTarget) -> None:
        qemu = replace(LIBISCSI, busy_retry_s=(0.01, 0.02, 0.04))
        path, disk = await connect(first, qemu)
        first.statuses = [scsi.BUSY] * 3
        assert await disk.read(0, 1) == bytes(512)
        first.statuses = [scsi.BUSY] * 4
        with pytest.raises(ScsiError, match="BUSY"):
            await disk.read(0, 1)
        await path.close()

    play(scenario)


def test_linux_tries_again_after_busy_for_ever() -> None:
    assert {OPEN_ISCSI.wait_after_busy_s(refusals) for refusals in (1, 100)} == {0.1}


# --- the documentation ------------------------------------------------------------------------------------------------

FACTS: dict[str, Callable[[Personality], str]] = {
    "status 0x0102": lambda one: "obeyed" if one.follows_permanent else "an error",
    "ISID begins with": lambda one: one.isid_prefix.hex(" "),
    "begins with authentication": lambda one: "always" if one.security_first else "only with CHAP",
    "new ISID at each login": lambda one: "yes" if one.new_isid_each_login else "no",
    "CHAP algorithms": lambda one: ", ".join(map(str, one.chap_algorithms)),
    "HeaderDigest, DataDigest": lambda one: f"{dict(one.keys)['HeaderDigest']}; {dict(one.keys)['DataDigest']}",
    "FirstBurstLength": lambda one: dict(one.keys)["FirstBurstLength"],
    "MaxBurstLength": lambda one: dict(one.keys)["MaxBurstLength"],
    "MaxRecvDataSegmentLength": lambda one: dict(one.keys)["MaxRecvDataSegmentLength"],
    "MaxOutstandingR2T": lambda one: dict(one.keys)["MaxOutstandingR2T"],
    "DefaultTime2Wait, Retain": lambda one: (
        f"{dict(one.keys)['DefaultTime2Wait']}, {dict(one.keys)['DefaultTime2Retain']}"
    ),
    "waits DefaultTime2Wait": lambda one: "yes" if one.obeys_time2wait else "no",
    "between two logins at least": lambda one: seconds(one.reconnect_gap_s),
    "login: time, tries again": lambda one: f"{seconds(one.login_timeout_s)}, {one.login_retries}",
    "after a failed login": lambda one: (
        seconds(one.login_retry_s)
        + (f", each time more, to {seconds(one.login_retry_max_s)}" if one.login_retry_more_s else "")
    ),
    "NOP-Out after, patience": lambda one: f"{seconds(one.nop_interval_s)}, {seconds(one.nop_timeout_s)}",
    "command, abort, reset": lambda one: ", ".join(
        map(seconds, (one.command_timeout_s, one.abort_timeout_s, one.reset_timeout_s))
    ),
    "gives up a lost session": lambda one: seconds(one.replacement_timeout_s),
    "tries again after BUSY": lambda one: (
        f"{len(one.busy_retry_s)} times, after {seconds(one.busy_retry_s[0])} to {one.busy_retry_s[-1]} s"
        if one.busy_retry_s
        else "after 0.1 s"
    ),
    "commands in flight": lambda one: str(one.queue_depth),
}


def seconds(value: float) -> str:
    return f"{value:g} s" if value else "-"


@pytest.mark.parametrize("fact", FACTS)
def test_the_documentation_has_the_tables_facts(fact: str) -> None:
    rows = {
        row["name"].strip(): [cell.strip() for cell in row["cells"].split("|")]
        for row in ROW.finditer(DOCUMENT.read_text())
    }
    assert rows[fact] == [FACTS[fact](PERSONALITIES[name]) for name in ("open-iscsi", "libiscsi", "esxi", "windows")]
