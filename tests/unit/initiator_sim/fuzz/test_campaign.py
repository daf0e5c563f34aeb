"""A campaign against targets that break in all the ways it is there to find, and against one that does not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from initiator_sim.client import Initiator
from initiator_sim.fuzz.attacker import Attacker, Progress, Who
from initiator_sim.fuzz.campaign import Assignment, Campaign
from initiator_sim.fuzz.craft import Ground
from initiator_sim.fuzz.kinds import make_case
from initiator_sim.fuzz.report import CounterLine, hex_dump, show_report
from initiator_sim.fuzz.script import Ending
from tests.unit.initiator_sim.fake_target import FakeTarget
from tests.unit.initiator_sim.fuzz.fragile_target import BLOCK, BLOCKS, Fault, FragileTarget

IQN = "iqn.2026-01.org.example:fragile"
NAME = "iqn.2026-01.org.example:host"


def fuzz(
    fault: Fault,
    iqn: str | None = IQN,
    kinds: Sequence[str] = ("opcodes",),
    numbers: tuple[int, ...] = (),
    seconds: float = 20.0,
    patience_s: float = 3.0,
) -> dict[str, Any]:
    """The report of a campaign, which a fault ends long before its time."""

    async def work() -> dict[str, Any]:
        async with FragileTarget(fault) as target:
            chosen = Assignment(
                initiator=Initiator(NAME),
                who=Who(target.portal),
                iqn=iqn,
                seed=1,
                seconds=seconds,
                lun=None if iqn is None else 0,
                connections=4,
                kinds=frozenset(kinds),
                numbers=numbers,
                patience_s=patience_s,
            )
            campaign = Campaign(chosen)
            await campaign.run()
            return campaign.report()

    return asyncio.run(work())


def failures(report: dict[str, Any]) -> set[str]:
    return {failure["what"] for failure in report["failures"]}


@pytest.mark.parametrize("iqn", [IQN, None], ids=["target", "portal"])
def test_no_false_alarm(iqn: str | None) -> None:
    report = fuzz(Fault.NONE, iqn, kinds=(), seconds=1.5, patience_s=30.0)
    assert report["ok"], report["failures"]
    assert report["cases"] > 20
    assert sum(report["outcomes"].values()) == report["cases"]
    assert report["witness"]["operations"] > 10
    assert report["fresh_logins"]


@pytest.mark.parametrize("iqn", [IQN, None], ids=["target", "portal"])
@pytest.mark.parametrize(
    ("fault", "found"),
    [
        (Fault.CRASH, {"crash"}),
        pytest.param(Fault.HANG, {"hang", "witness", "fresh login"}, marks=pytest.mark.slow),
        (Fault.DROPS_OTHERS, {"witness", "wrong answer"}),
        (Fault.GARBAGE, {"wrong answer"}),
    ],
    ids=lambda value: value.name if isinstance(value, Fault) else "",
)
def test_a_broken_target_is_found(fault: Fault, found: set[str], iqn: str | None) -> None:
    report = fuzz(fault, iqn, patience_s=1.0 if fault is Fault.HANG else 3.0)
    assert not report["ok"]
    assert failures(report) <= found, report["failures"]
    assert report["seconds"] < 20
    first = report["failures"][0]
    assert first["kind"] == "opcodes"
    assert f"--seed 1 --case {first['cases'][-1]}" in first["repeat"]
    assert first["sent"] or fault in (Fault.HANG, Fault.DROPS_OTHERS)  # maybe a case that only began


def test_a_target_that_refuses_fresh_logins_is_found() -> None:
    """Cases that begin with a refusal for want of resources may do so; a well-behaved login may not."""
    report = fuzz(Fault.REFUSES)
    assert failures(report) == {"fresh login"}
    assert "0x0300" in report["failures"][0]["message"]


def test_changed_data_is_found() -> None:
    report = fuzz(Fault.CHANGES_DATA)
    assert failures(report) == {"witness"}
    assert "have changed" in report["failures"][0]["message"]


def test_sessions_follow_a_redirection() -> None:
    async def work() -> tuple[dict[str, Any], int]:
        async with FragileTarget(Fault.NONE) as target, FakeTarget() as portal:
            portal.redirect = target.portal
            chosen = Assignment(
                initiator=Initiator(NAME),
                who=Who(portal.portal),
                iqn=IQN,
                seed=1,
                seconds=1.0,
                lun=0,
                kinds=frozenset({"order"}),
                patience_s=30.0,
            )
            campaign = Campaign(chosen)
            await campaign.run()
            return campaign.report(), len(target.received)

    report, visits = asyncio.run(work())
    assert report["ok"], report["failures"]
    assert visits > report["cases"] > 0


def test_a_case_that_broke_a_target_does_so_again() -> None:
    first = fuzz(Fault.GARBAGE)["failures"][0]
    again = fuzz(Fault.GARBAGE, numbers=tuple(first["cases"]))
    assert again["cases"] == 1
    assert again["failures"][0]["cases"] == first["cases"]
    assert again["failures"][0]["sent"][-1]["hex"] == first["sent"][-1]["hex"]


def test_the_same_cases_send_the_same_bytes() -> None:
    """Over sockets too, as long as the target says the same."""

    async def work() -> list[bytes]:
        ground = Ground(IQN, NAME, 0, BLOCK, BLOCKS)
        async with FragileTarget(Fault.NONE) as target:
            attacker = Attacker(Who(target.portal), ground, seed=3, patience_s=30.0)
            for number in range(25):
                case = make_case(3, number, ground)
                # (A reset may overtake what was sent before it.)
                if case.script.connections == 1 and case.script.ending in (Ending.PROBE, Ending.CLOSE):
                    await attacker.run(Progress(case))
            await attacker.close()
            return [bytes(stream) for stream in target.received]

    first, second = (asyncio.run(work()) for _ in range(2))
    assert len(first) > 15
    assert first == second


def test_a_target_that_is_not_there_is_no_failure_of_it() -> None:
    async def work() -> None:
        async with FragileTarget(Fault.NONE) as target:
            portal = target.portal
        await Campaign(Assignment(Initiator(NAME), Who(portal), None, seed=1, seconds=5.0)).run()

    with pytest.raises(ConnectionRefusedError):
        asyncio.run(work())


def test_the_report_says_what_to_repeat(capsys: pytest.CaptureFixture[str]) -> None:
    report = fuzz(Fault.GARBAGE)
    json.dumps(report)
    show_report(report, Console(width=100))
    shown = capsys.readouterr().out
    assert "FAILED" in shown
    assert report["failures"][0]["repeat"] in shown
    assert "malformed answer" in shown


def test_the_line_of_counters_shows_the_account() -> None:
    async def work() -> str:
        shown = Console(file=StringIO(), force_terminal=True, width=200)
        async with FragileTarget(Fault.GARBAGE) as target:
            campaign = Campaign(Assignment(Initiator(NAME), Who(target.portal), None, seed=1, seconds=1.0))
            with CounterLine(campaign, shown) as line:
                await campaign.run(line.tick)
                line.tick()
        assert isinstance(shown.file, StringIO)
        return shown.file.getvalue()

    shown = asyncio.run(work())
    assert "of 1 s" in shown
    assert "discoveries" in shown
    assert "failures 0" in shown[: len(shown) // 2]
    assert "failures 0" not in shown[shown.rindex("of 1 s") :]


def test_a_hex_dump_has_offsets_bytes_and_characters() -> None:
    assert hex_dump(b"0123456789abcdef\x00~") == [
        "0000  30 31 32 33 34 35 36 37 38 39 61 62 63 64 65 66  0123456789abcdef",
        "0010  00 7e                                            .~",
    ]
    zeros = "00 " * 16
    assert hex_dump(bytes(80) + b"~") == [f"0000  {zeros} ................", "*", f"0050  {'7e':<48} ~"]
