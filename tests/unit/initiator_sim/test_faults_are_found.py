"""A verified load on a target with a fault finds it, whatever the fault, soon; on one without, nothing."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from typing import Any

import pytest

from initiator_sim.fleet import Assignment, Fleet
from initiator_sim.personalities import ESXI
from initiator_sim.workload import Plan
from san_target.storage.faulty import Fault, Rule, Script
from tests.support.faulty_target import FaultyTarget, faulty_target

IO_BYTES = 4096
PIECES = 128  # so few that each is read and written many times
SIZE_BYTES = PIECES * IO_BYTES
# The load alone goes on until something is found: this many commands are enough to write and read each piece 20 times.
COMMANDS_MAX = 40 * PIECES
SECONDS_MAX = 100.0
PATIENT = replace(ESXI, login_retry_s=0.05, reconnect_gap_s=0.0)
SILENT_FAULTS = {
    "lost write": Rule("write", Fault.LOST),
    "torn write": Rule("write", Fault.CUT),
    "write to a wrong block": Rule("write", Fault.MISPLACED),
    "stale read": Rule("read", Fault.STALE),
    "read of a wrong block": Rule("read", Fault.MISPLACED),
}


def assignment(target: FaultyTarget, plan: Plan, **options: Any) -> Assignment:
    usual: dict[str, Any] = {
        "personality": PATIENT,
        "seconds": SECONDS_MAX,
        "verify": True,
        "strict": True,
        "sessions": 2,
    }
    return Assignment((target.portal,), target.iqn, plan, **(usual | options))


def commands(fleet: Fleet) -> int:
    meter = fleet.meter
    return meter.number + len(meter.reads_s) + len(meter.writes_s)


async def run(fleet: Fleet, commands_max: int) -> dict[str, Any]:
    """Run until something is wrong or so many commands have ended; the report."""
    running = asyncio.ensure_future(fleet.run())
    while not running.done() and commands(fleet) < commands_max:
        await asyncio.sleep(0.01)
    for stream in fleet.streams:
        stream.stop()
    fleet.finish()
    await running
    return fleet.report()


def play(rules: list[Rule], block_bytes: int, commands_max: int = COMMANDS_MAX) -> tuple[dict[str, Any], Script]:
    script = Script(rules)

    async def scenario() -> dict[str, Any]:
        async with faulty_target(script, SIZE_BYTES // block_bytes, block_bytes) as target:
            plan = Plan("randrw", read_share=0.5, depth=4, block_bytes=IO_BYTES, seed=3)
            return await run(Fleet(assignment(target, plan)), commands_max)

    return asyncio.run(scenario()), script


@pytest.mark.parametrize("block_bytes", [512, 4096])
def test_a_good_target_is_not_suspected(block_bytes: int) -> None:
    report, _ = play([], block_bytes)
    assert report["ok"], report
    assert report["reads"] + report["writes"] >= COMMANDS_MAX
    assert report["verify"]["reads_checked"] > COMMANDS_MAX / 3


@pytest.mark.parametrize("block_bytes", [512, 4096])
@pytest.mark.parametrize("fault", SILENT_FAULTS)
def test_a_silent_fault_is_found(fault: str, block_bytes: int) -> None:
    rule = SILENT_FAULTS[fault]
    often = [replace(rule, after=4 * PIECES + 40 * number) for number in range(COMMANDS_MAX // 40)]
    report, script = play(often, block_bytes)
    assert script.struck
    assert report["verify"]["violations"], report
    assert not report["ok"]
    assert report["reads"] + report["writes"] < COMMANDS_MAX, "found only by the last look"
    assert not report["errors"]


@pytest.mark.parametrize("fault", [fault for fault in SILENT_FAULTS if "read" not in fault])
def test_a_fault_that_struck_once_is_found_at_the_latest_by_the_last_look(fault: str) -> None:
    async def scenario() -> dict[str, Any]:
        blocks = 1 << 20  # sequential writes never come back to a place on so large a disk
        async with faulty_target(Script([replace(SILENT_FAULTS[fault], after=5)]), blocks, 512) as target:
            plan = Plan("write", depth=4, block_bytes=IO_BYTES)
            return await run(Fleet(assignment(target, plan, sessions=1)), PIECES // 2)

    report = asyncio.run(scenario())
    assert len(report["verify"]["violations"]) in (1, 2)  # what was to be written, and maybe what was overwritten


def test_errors_are_told_as_errors() -> None:
    report, _ = play([Rule("write", Fault.ERROR, after=100), Rule("write", Fault.TORN, after=100)], 512, PIECES * 10)
    assert report["errors"] == 2
    assert not report["verify"]["violations"]


@pytest.mark.parametrize("honest", [True, False])
def test_what_was_flushed_before_a_power_failure_must_be_there(honest: bool) -> None:
    """A disk that only says that it flushes is found out by its power failures; an honest one is not suspected."""
    chance = random.Random(4)
    script = Script([] if honest else [Rule("flush", Fault.LOST, times=-1)])

    async def scenario() -> dict[str, Any]:
        async with faulty_target(script, SIZE_BYTES // 512, 512) as target:
            plan = Plan("randrw", read_share=0.3, depth=4, block_bytes=IO_BYTES, flush_every=10)
            fleet = Fleet(assignment(target, plan, crashes=True))
            running = asyncio.ensure_future(run(fleet, 20 * COMMANDS_MAX))
            for number in range(1, 6):
                while not running.done() and commands(fleet) < number * COMMANDS_MAX // 2:
                    await asyncio.sleep(0.005)
                await target.lose_power(chance)
                fleet.target_crashed()
                await target.start()
            while not running.done() and commands(fleet) < 3 * COMMANDS_MAX:
                await asyncio.sleep(0.005)
            fleet.finish()
            return await running

    report = asyncio.run(scenario())
    assert report["logins"] > 2
    assert (not report["verify"]["violations"]) == honest, report
    assert all("crash" in text for text in report["verify"]["violations"])


def test_discards_cannot_be_verified_across_crashes() -> None:
    async def scenario() -> None:
        async with faulty_target(Script(), SIZE_BYTES // 512, 512) as target:
            plan = Plan("randrw", discard_share=0.1)
            with pytest.raises(ValueError, match="across crashes"):
                await Fleet(assignment(target, plan, crashes=True)).run()

    asyncio.run(scenario())
