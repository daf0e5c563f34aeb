"""The engine of the checks: every end of a check becomes a result, in bounded time, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from click.testing import CliRunner

from initiator_sim.cli import main
from initiator_sim.conformance import CHECKS
from initiator_sim.conformance.bench import SCRATCH_BLOCKS, Bench, Setting
from initiator_sim.conformance.check import Check, Failed, NotApplicable, Result, Verdict, expect
from initiator_sim.conformance.engine import report, run_check, run_checks
from initiator_sim.conformance.hooks import Hooks, Victim
from tests.support.target import free_port
from tests.unit.initiator_sim.fake_target import FakeTarget
from tests.unit.initiator_sim.lying_target import BLOCKS, LyingTarget

IQN = "iqn.2026-01.org.example:disk"
VICTIM = Victim("127.0.0.1:3260", IQN, "iqn.2026-01.org.example:host", b"\x80\0\0\0\0\1", 7)

Run = Callable[[Bench], Awaitable[str | None]]


def a_check(run: Run, **fields: Any) -> Check:
    return Check("a-check", "RFC 7143 1", "What is wanted", run, **fields)


def fake_setting(portal: str, **fields: Any) -> Setting:
    usual = {"portals": (portal,), "iqn": IQN, "name": "iqn.2026-01.org.example:me", "lun": 0}
    return Setting(**(usual | {"block_bytes": 512, "blocks": 4096, "patience_s": 0.2} | fields))


def outcome_of(run: Run, prepare: Callable[[FakeTarget], None] = lambda target: None, **fields: Any) -> Result:
    """What comes of a check on a target on a real socket that does what the test tells it."""

    async def scenario() -> Result:
        async with FakeTarget() as target:
            prepare(target)
            return await run_check(fake_setting(target.portal), a_check(run, **fields))

    return asyncio.run(scenario())


async def passes(bench: Bench) -> str:
    session = await bench.login()
    await session.ping(b"hello")
    return "what it saw"


async def fails(bench: Bench) -> None:
    expect(False, "what it did", "what it should do")


async def hangs(bench: Bench) -> None:
    await asyncio.sleep(60)


async def does_not_apply(bench: Bench) -> None:
    raise NotApplicable("why not")


@pytest.mark.parametrize(
    ("run", "verdict", "seen", "wanted"),
    [
        (passes, Verdict.PASSED, "what it saw", ""),
        (fails, Verdict.FAILED, "what it did", "what it should do"),
        (hangs, Verdict.FAILED, "no end after 0.3 s", "What is wanted"),
        (does_not_apply, Verdict.NOT_APPLICABLE, "why not", ""),
    ],
)
def test_each_end_of_a_check(run: Run, verdict: Verdict, seen: str, wanted: str) -> None:
    result = outcome_of(run, limit_s=0.3 if run is hangs else 10.0)
    assert (result.verdict, result.seen, result.wanted) == (verdict, seen, wanted)


def test_a_target_that_falls_silent_fails_and_does_not_hang() -> None:
    def silence(target: FakeTarget) -> None:
        target.silent = True

    result = outcome_of(passes, silence)
    assert (result.verdict, result.seen) == (Verdict.FAILED, "no answer: nothing came within 0.2 s")


def test_a_target_that_is_not_ready_fails() -> None:
    def refuse(target: FakeTarget) -> None:
        target.refusals = [0x0301]

    result = outcome_of(passes, refuse)
    assert result.verdict is Verdict.FAILED
    assert "service unavailable" in result.seen


def test_a_redirection_to_nowhere_is_a_failure_and_no_crash() -> None:
    def mislead(target: FakeTarget) -> None:
        target.redirect = "no portal at all:x"

    result = outcome_of(passes, mislead)
    assert result.verdict is Verdict.FAILED
    assert "no portal at all" in result.seen


def test_nobody_listens() -> None:
    result = asyncio.run(run_check(fake_setting(f"127.0.0.1:{free_port()}"), a_check(passes)))
    assert result.verdict is Verdict.FAILED
    assert result.seen.startswith("no connection: 127.0.0.1:")


def test_a_target_that_is_gone_is_not_tried_for_ever() -> None:
    checks = [a_check(passes)] * 6
    results = asyncio.run(run_checks(fake_setting(f"127.0.0.1:{free_port()}"), checks))
    assert [result.verdict for result in results] == [Verdict.FAILED] * 3 + [Verdict.NOT_APPLICABLE] * 3
    assert results[-1].seen == "the target is not there any more"


def test_one_check_does_not_stop_the_next() -> None:
    async def scenario() -> list[Result]:
        async with FakeTarget() as target:
            told: list[Result] = []
            checks = [a_check(run, limit_s=0.3) for run in (hangs, fails, passes)]
            results = await run_checks(fake_setting(target.portal), checks, told.append)
            assert told == results
            return results

    verdicts = [result.verdict for result in asyncio.run(scenario())]
    assert verdicts == [Verdict.FAILED, Verdict.FAILED, Verdict.PASSED]


# --- what a check leaves behind ---------------------------------------------------------------------------------------


def scratch(target: LyingTarget) -> dict[int, bytes]:
    first = BLOCKS - SCRATCH_BLOCKS
    return {lba: data for lba, data in target.device.written.items() if lba >= first}


@pytest.mark.parametrize("way", ["passes", "fails", "hangs"])
def test_the_scratch_blocks_are_put_back(way: str) -> None:
    async def scribble(bench: Bench) -> None:
        session = await bench.ready()
        await bench.write(session, bench.scratch_lba, bench.pattern(3, SCRATCH_BLOCKS))
        if way == "fails":
            raise Failed("on purpose")
        if way == "hangs":
            await asyncio.sleep(60)

    async def scenario() -> None:
        async with LyingTarget() as target:
            for lba in range(BLOCKS - SCRATCH_BLOCKS, BLOCKS):
                target.device.written[lba] = bytes([lba & 0xFF]) * 512
            before = scratch(target)
            result = await run_check(target.setting(), a_check(scribble, writes=True, limit_s=1.0))
            assert result.verdict is (Verdict.PASSED if way == "passes" else Verdict.FAILED)
            assert scratch(target) == before

    asyncio.run(scenario())


@pytest.mark.parametrize("run", [passes, fails, hangs, does_not_apply])
def test_what_is_to_be_undone_is_undone(run: Run) -> None:
    undone = []

    async def asks(bench: Bench) -> None:
        async def undo() -> None:
            undone.append(run)

        bench.at_end(undo)
        await run(bench)

    outcome_of(asks, limit_s=0.3)
    assert undone == [run]


def test_what_cannot_be_undone_is_told() -> None:
    async def asks(bench: Bench) -> None:
        async def undo() -> None:
            raise Failed("still reserved")

        bench.at_end(undo)

    result = outcome_of(asks)
    assert result.verdict is Verdict.FAILED
    assert result.seen == "cleaning up failed: still reserved"


def test_a_disk_that_is_too_small_or_write_protected_is_not_written() -> None:
    async def scenario(setting_fields: dict[str, Any], protect: bool) -> Result:
        async with LyingTarget() as target:
            if protect:
                sense = bytes.fromhex("0012 7000 0700 0000 000a 0000 0000 2702 0000 0000")

                def says(connection: object, pdu: Any) -> Any:
                    if pdu.opcode == 0x21 and pdu.residual_count == 0 and not pdu.data:
                        pdu.status, pdu.data = (2, sense) if protect_now[0] else (pdu.status, pdu.data)
                    return pdu

                def hears(connection: object, pdu: Any) -> bool:
                    protect_now[0] = pdu.bhs[32] == 0x8A
                    return True

                protect_now = [False]
                target.says, target.hears = says, hears
            return await run_check(target.setting(**setting_fields), a_check(passes, writes=True))

    small = asyncio.run(scenario({"blocks": 100}, False))
    assert (small.verdict, small.seen) == (Verdict.NOT_APPLICABLE, "the disk has fewer than 256 blocks")
    protected = asyncio.run(scenario({}, True))
    assert (protected.verdict, protected.seen) == (Verdict.NOT_APPLICABLE, "the disk is write protected")


# --- hooks ------------------------------------------------------------------------------------------------------------


def send_away(**hooks: Any) -> str:
    return asyncio.run(Hooks(**hooks).send_away(VICTIM))


def test_without_a_hook_nothing_can_be_made_to_happen() -> None:
    with pytest.raises(NotApplicable, match="--trigger"):
        send_away()


def test_a_trigger_knows_the_session() -> None:
    program = "import os; names = ['ISCSI_' + n for n in ('PORTAL', 'TARGET', 'INITIATOR', 'ISID', 'TSIH')]"
    wanted = [VICTIM.portal, VICTIM.iqn, VICTIM.initiator, "800000000001", "7"]
    program += f"; assert [os.environ[n] for n in names] == {wanted}"
    assert send_away(trigger=f'{sys.executable} -c "{program}"') == "by the trigger"


def test_a_trigger_that_fails_says_why() -> None:
    with pytest.raises(NotApplicable, match="status 3: no such session"):
        send_away(trigger="echo no such session >&2; exit 3")


def test_a_trigger_that_does_not_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("initiator_sim.conformance.hooks.COMMAND_S", 0.2)
    with pytest.raises(NotApplicable, match="did not end"):
        send_away(trigger="sleep 60; true")


def test_an_api_that_is_not_there_is_no_reason_to_fail() -> None:
    with pytest.raises(NotApplicable, match="the API at"):
        send_away(api=f"http://127.0.0.1:{free_port()}")


# --- the table, the report, the command -------------------------------------------------------------------------------


def test_every_check_says_what_it_is_about() -> None:
    assert len({check.name for check in CHECKS}) == len(CHECKS) >= 40
    for check in CHECKS:
        assert check.section.startswith(("RFC 7143 ", "RFC 7144 ", "SPC-4 ", "SAM-5 ")), check
        assert check.title[0].isupper()
        assert not check.title.endswith(".")
        assert check.limit_s <= 120


def test_the_report_counts_and_keeps_the_order() -> None:
    checks = [a_check(run) for run in (passes, fails, does_not_apply)]
    results = [
        Result(checks[0], Verdict.PASSED, "saw", "", 0.5),
        Result(checks[1], Verdict.FAILED, "did", "should"),
        Result(checks[2], Verdict.NOT_APPLICABLE, "why"),
    ]
    found = report(fake_setting("127.0.0.1:3260"), results)
    assert (found["passed"], found["failed"], found["not_applicable"]) == (1, 1, 1)
    assert found["portals"] == ["127.0.0.1:3260"]
    assert found["checks"][1] == {
        "name": "a-check",
        "section": "RFC 7143 1",
        "title": "What is wanted",
        "verdict": "failed",
        "seen": "did",
        "wanted": "should",
        "seconds": 0.0,
    }


def test_the_command_lists_the_checks() -> None:
    result = CliRunner().invoke(main, ["conformance", "--list"])
    assert result.exit_code == 0
    assert all(check.name in result.output for check in CHECKS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["conformance"], "PORTAL and IQN are needed"),
        (["conformance", "127.0.0.1:1", IQN, "--check", "none-such"], "there is no check 'none-such'"),
        (["conformance", "127.0.0.1:1", IQN], "nobody listens"),
    ],
)
def test_the_command_says_what_is_wrong(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(main, arguments, standalone_mode=False)
    assert message in str(result.exception)
