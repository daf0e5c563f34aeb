"""The short run: every kind of hostile case, and whatever else hypothesis thinks of, against a connection."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from san_target.scsi.logical_unit import LogicalUnit
from san_target.wire import hot, opcodes
from tests.hostile import documented
from tests.hostile.attack import AnswerR2T, Device, LogIn, Pass, Raw, Send, Step, Wait
from tests.hostile.battlefield import LIMITS
from tests.hostile.campaign import KINDS, Case, Kind, Result, fight_all, run, shrink

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "hostile-input.md"
SEED = 20260117
EACH_KIND = 80


def assert_no_failures(result: Result) -> None:
    assert not result.failures, "\n" + "\n".join(map(str, result.failures))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_outcome_is_documented(kind: Kind) -> None:
    assert_no_failures(run(SEED, EACH_KIND, [kind]))


def test_kinds_mix() -> None:
    assert_no_failures(run(SEED, 800))


# --- hypothesis: no kinds, any step with any values, in any order -----------------------------------------------------

WORD = st.one_of(
    st.integers(0, 4), st.sampled_from([0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF]), st.integers(0, 2**32 - 1)
)
SENDS: st.SearchStrategy[Step] = st.builds(
    Send,
    opcode=st.one_of(st.sampled_from(sorted(range(7))), st.integers(0, 63)),
    flags=st.one_of(st.sampled_from([0x80, 0x81, 0xC1, 0xA1, 0x21, 0x87, 0x04, 0x40]), st.integers(0, 255)),
    tag=st.one_of(st.none(), st.integers(1, 3), WORD),
    word20=WORD,
    tail=st.one_of(
        st.binary(max_size=16), st.sampled_from([b"\x2a" + bytes(7) + b"\x01", b"\x28" + bytes(7) + b"\x08"])
    ),
    data=st.one_of(st.binary(max_size=64), st.sampled_from([bytes(512), bytes(8192), b"SendTargets=All\0"])),
    immediate=st.booleans(),
    cmd_sn=st.one_of(st.just(0), st.integers(-3, LIMITS.command_window + 1), st.integers(-(2**31), 2**31)),
    lun=st.one_of(st.just(0), st.integers(0, 2**64 - 1)),
    bytes2=st.integers(0, 0xFFFF),
    exp_stat_sn=WORD,
    ahs=st.one_of(
        st.just(b""), st.integers(1, 255).flatmap(lambda words: st.binary(min_size=4 * words, max_size=4 * words))
    ),
    ahs_words=st.one_of(st.none(), st.integers(0, 255)),
    data_length=st.one_of(st.none(), st.none(), st.integers(0, 70000), st.integers(0, 2**24 - 1)),
    header_digest=st.one_of(st.just(0), WORD),
    data_digest=st.one_of(st.just(0), WORD),
    part=st.one_of(st.none(), st.none(), st.tuples(st.integers(0, 60), st.integers(0, 600))),
)
OTHERS: st.SearchStrategy[Step] = st.one_of(
    st.builds(AnswerR2T, *[st.integers(-1, 3)] * 5, pieces=st.integers(1, 4), final=st.booleans()),
    st.builds(Raw, st.binary(max_size=200), st.sampled_from([0, 1, 47])),
    st.builds(Pass, st.integers(0, 40)),
    st.builds(Device, st.booleans(), st.booleans()),
    st.builds(Wait),
)
STAGES = st.builds(
    LogIn,
    st.sampled_from([None, "security", "operational", "discovery", "full", "full", "full"]),
    st.booleans(),
    st.booleans(),
)
ANY = Kind("hypothesis", lambda random: [], by_right=True)


def fight(steps: list[Step]) -> None:
    asyncio.run(fight_all([Case(ANY, steps)], lambda *_: None))


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(STAGES, st.lists(st.one_of(SENDS, SENDS, SENDS, OTHERS), max_size=12))
def test_any_steps_in_any_order(stage: LogIn, steps: list[Step]) -> None:
    fight([stage, *steps])


@settings(max_examples=100)
@given(STAGES, st.binary(max_size=1000), st.sampled_from([0, 1, 5, 48]))
def test_any_bytes(stage: LogIn, data: bytes, piece: int) -> None:
    fight([stage, Raw(data, piece)])


@settings(max_examples=100)
@given(st.sampled_from(KINDS), st.randoms(use_true_random=False))
def test_any_case_of_any_kind(kind: Kind, random: Random) -> None:
    asyncio.run(fight_all([Case(kind, kind.make(random))], lambda *_: None))


# --- that the checks can fail -----------------------------------------------------------------------------------------


def test_a_defect_is_found_and_cut_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a target that counts a number of NOP-In wrongly, little but the ping is left of a long case."""

    def with_wrong_number(*fields: int) -> bytes:
        return packed(*fields[:4], fields[4] + 1, *fields[5:])

    packed: Callable[..., bytes] = hot.pack_nop_in
    monkeypatch.setattr(hot, "pack_nop_in", with_wrong_number)
    ping = Send(opcodes.NOP_OUT, immediate=True)
    steps: list[Step] = [LogIn(), Wait(), Send(opcodes.SNACK_REQUEST), Wait(), ping, Wait(), Raw(bytes(3))]
    cases, text = asyncio.run(shrink([Case(ANY, [LogIn(), Wait()]), Case(ANY, steps)]))
    assert sum(len(case.steps) for case in cases) <= 4
    assert ping in cases[-1].steps
    assert "StatSN" in text


def test_an_exception_in_a_command_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(unit: LogicalUnit, cdb: bytes) -> object:
        if cdb[0] == 0xEE:
            raise ZeroDivisionError
        return find(unit, cdb)

    find = LogicalUnit._find
    steps: list[Step] = [LogIn(), Send(opcodes.SCSI_COMMAND, 0x81, tail=b"\xee")]
    fight(steps)
    monkeypatch.setattr(LogicalUnit, "_find", broken)
    cases, text = asyncio.run(shrink([Case(ANY, [*steps, Wait()])]))
    assert [len(case.steps) for case in cases] == [2]
    assert "ZeroDivisionError" in text


# --- the document -----------------------------------------------------------------------------------------------------


def test_the_document_has_every_outcome() -> None:
    text = DOCUMENT.read_text()
    missing = [f"0x{reason:02x}" for reason in documented.REJECT_REASONS if f"`0x{reason:02x}`" not in text]
    missing += [f"0x{status:04x}" for status in documented.LOGIN_STATUSES if f"`0x{status:04x}`" not in text]
    missing += [f"{k:x}/{a:02x}/{q:02x}" for k, a, q in documented.SENSE if f"`{k:x}/{a:02x}/{q:02x}`" not in text]
    missing += [name for name in documented.STATUSES.values() if name not in text]
    missing += [name for name in documented.CLOSE_REASONS.values() if name not in text]
    missing += [name for name in documented.SILENT if name not in text]
    missing += [name for name in documented.TASK_MANAGEMENT_RESPONSES.values() if name not in text]
    assert not missing, f"{DOCUMENT.name} says nothing of {missing}"
