"""Every check passes on a target that keeps to the rules, and fails on one that breaks just the rule it is about."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from initiator_sim.chap import Credentials
from initiator_sim.conformance import CHECKS
from initiator_sim.conformance.check import Result, Verdict
from initiator_sim.conformance.engine import run_check
from initiator_sim.conformance.hooks import Victim
from initiator_sim.packets import (
    ISCSI_ScsiResponse,
    ISCSI_TextResponse,
)
from san_target.session import sequencing, task_management
from san_target.session import target as targets
from san_target.session.connection import Connection
from san_target.wire import framer, opcodes
from san_target.wire.framer import Pdu
from tests.unit.initiator_sim.lying_target import Hears, LyingConnection, LyingTarget, Says

BY_NAME = {check.name: check for check in CHECKS}
READ_16, INQUIRY, TEST_UNIT_READY, WRITE_16 = 0x88, 0x12, 0x00, 0x8A
PATIENCE_S = 0.6
USER = targets.Credentials("user", b"secretsecret12")


# --- what a target may say wrongly ------------------------------------------------------------------------------------


def sets(opcode: int, when: Callable[[Any], Any] = lambda pdu: True, **changes: Any) -> Says:
    """These fields of such PDUs have other values; a callable makes the value from the PDU."""

    def says(connection: LyingConnection, pdu: Any) -> Any:
        if pdu.opcode == opcode and when(pdu):
            for name, value in changes.items():
                setattr(pdu, name, value(pdu) if callable(value) else value)
        return pdu

    return says


def replaces(opcode: int, layer: Any, when: Callable[[Any], Any] = lambda pdu: True, **fields: Any) -> Says:
    """Another PDU in place of such ones, with the same numbers."""

    def says(connection: LyingConnection, pdu: Any) -> Any:
        if pdu.opcode != opcode or not when(pdu):
            return pdu
        numbers = {name: getattr(pdu, name) for name in ("stat_sn", "exp_cmd_sn", "max_cmd_sn")}
        tag = int.from_bytes(pdu.data[16:20], "big") if opcode == opcodes.REJECT else pdu.initiator_task_tag
        return layer(**({"initiator_task_tag": tag} | numbers | fields))

    return says


def says_nothing(opcode: int, when: Callable[[Any], Any] = lambda pdu: True) -> Says:
    return lambda connection, pdu: None if pdu.opcode == opcode and when(pdu) else pdu


def text(opcode: int, old: bytes, new: bytes) -> Says:
    return sets(opcode, lambda pdu: old in bytes(pdu.data), data=lambda pdu: bytes(pdu.data).replace(old, new))


def login_status(old: int, new: int) -> Says:
    return sets(
        opcodes.LOGIN_RESPONSE,
        lambda pdu: (pdu.status_class << 8 | pdu.status_detail) == old,
        status_class=new >> 8,
        status_detail=new & 0xFF,
    )


def status(old: int, new: int) -> Says:
    return sets(opcodes.SCSI_RESPONSE, lambda pdu: pdu.status == old, status=new, data=b"")


def sense(asc: int) -> Says:
    """A unit attention goes untold."""

    def is_it(pdu: Any) -> bool:
        data = bytes(pdu.data[2:])  # behind SenseLength
        return len(data) > 2 and asc == (data[2] if data[0] == 0x72 else data[12])

    return sets(opcodes.SCSI_RESPONSE, is_it, status=0, data=b"")


def at_the_second_portal(lie: Says) -> Says:
    def says(connection: LyingConnection, pdu: Any) -> Any:
        second = connection.portal is connection.portal.target.portals[1]
        return lie(connection, pdu) if second else pdu

    return says


def unsupported() -> Says:
    """READ ends with 5/25h."""
    data = bytes.fromhex("0012 7000 0500 0000 000a 0000 0000 2500 0000 0000")
    return replaces(opcodes.DATA_IN, ISCSI_ScsiResponse, lambda pdu: len(pdu.data) == 512, status=2, data=data)


def twice(opcode: int) -> Says:
    def says(connection: LyingConnection, pdu: Any) -> Any:
        if pdu.opcode == opcode:
            Connection.send(connection, bytes(pdu)[:48], bytes(pdu.data))
        return pdu

    return says


def grows(name: str, opcode: int) -> Says:
    """A number is one more each time it is told."""
    told = [0]

    def more(pdu: Any) -> int:
        told[0] += 1
        return int(getattr(pdu, name)) - told[0]

    return sets(opcode, **{name: more})


# --- what a target may do with what it hears --------------------------------------------------------------------------


def opcode_of(pdu: Pdu) -> int:
    return pdu.bhs[0] & opcodes.OPCODE_MASK


def overwrites(opcode: int, at: int, value: bytes, when: Callable[[bytes], bool] = lambda bhs: True) -> Hears:
    """Bytes of a header are taken for others."""

    def hears(connection: LyingConnection, pdu: Pdu) -> bool:
        if opcode_of(pdu) == opcode and when(pdu.bhs):
            pdu.bhs = pdu.bhs[:at] + value + pdu.bhs[at + len(value) :]
        return True

    return hears


def mishears(old: bytes, new: bytes) -> Hears:
    def hears(connection: LyingConnection, pdu: Pdu) -> bool:
        if old in bytes(pdu.data):
            pdu.data = memoryview(bytes(pdu.data).replace(old, new))
        return True

    return hears


def any_transfer_tag() -> Hears:
    """Data is taken for that of the last R2T, whatever its tag."""

    def hears(connection: LyingConnection, pdu: Pdu) -> bool:
        task = connection.tasks.get(int.from_bytes(pdu.bhs[16:20], "big"))
        if opcode_of(pdu) == opcodes.DATA_OUT and task is not None and task.transfer is not None:
            tag = task.transfer._sequences[0].ttt
            pdu.bhs = pdu.bhs[:20] + tag.to_bytes(4, "big") + pdu.bhs[24:]
        return True

    return hears


def short_writes_late(delay_s: float) -> Hears:
    """Writes of one block are executed after a while, whatever has become of their session."""

    def hears(connection: LyingConnection, pdu: Pdu) -> bool:
        if opcode_of(pdu) != opcodes.SCSI_COMMAND or pdu.bhs[32] != WRITE_16 or pdu.bhs[45] != 1:
            return True
        unit, data = connection.portal.target.target.unit, bytes(pdu.data)
        lba = int.from_bytes(pdu.bhs[34:42], "big")
        asyncio.get_running_loop().call_later(delay_s, unit.device.try_write, lba, 1, memoryview(data))
        return False

    return hears


def old_acknowledgements_fail() -> Hears:
    def hears(connection: LyingConnection, pdu: Pdu) -> bool:
        if opcode_of(pdu) == opcodes.SCSI_COMMAND and int.from_bytes(pdu.bhs[28:32], "big") + 3 < connection.stat_sn:
            pdu.bhs = pdu.bhs[:32] + b"\xff" + pdu.bhs[33:]  # no such command
        return True

    return hears


def logout_is_only_said() -> Hears:
    """The Logout is answered, and the session goes on."""

    def hears(connection: LyingConnection, pdu: Pdu) -> bool:
        if opcode_of(pdu) != opcodes.LOGOUT_REQUEST:
            return True
        connection.send_status(opcodes.LOGOUT_RESPONSE, initiator_task_tag=int.from_bytes(pdu.bhs[16:20], "big"))
        return False

    return hears


def answers_before_login() -> Hears:
    def hears(connection: LyingConnection, pdu: Pdu) -> bool:
        if opcode_of(pdu) == opcodes.NOP_OUT and connection.session is None:
            connection.send_status(opcodes.NOP_IN, initiator_task_tag=7)
            return False
        return True

    return hears


# --- what may be wrong inside -----------------------------------------------------------------------------------------

Patch = Callable[[pytest.MonkeyPatch], None]


def admits(rule: Callable[[sequencing.Sequencer, Pdu, int], bool]) -> Patch:
    """Another rule of what is executed now: rule(connection, PDU, CmdSN)."""

    def admit(self: sequencing.Sequencer, pdu: Pdu) -> bool:
        cmd_sn = int.from_bytes(pdu.bhs[24:28], "big")
        if not rule(self, pdu, cmd_sn):
            return False
        if not pdu.bhs[0] & opcodes.IMMEDIATE:
            self.exp_cmd_sn = cmd_sn + 1 & 0xFFFFFFFF
        return True

    return lambda monkeypatch: monkeypatch.setattr(sequencing.Sequencer, "admit", admit)


def done_by_nobody(function: int) -> Patch:
    """Task management that is said to be complete, and does nothing."""
    nothing = task_management.Function(lambda connection, request: task_management.Answer(0))
    return lambda monkeypatch: monkeypatch.setitem(task_management.FUNCTIONS, function, nothing)


def old_sessions_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    async def terminate(self: Connection, reason: str) -> None:
        assert self.session is not None
        assert self.session.target is not None
        del self.session.target.sessions[self.session.key]

    monkeypatch.setattr(Connection, "terminate", terminate)


def any_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    class Same:
        def __eq__(self, other: object) -> bool:
            return True

        def __ne__(self, other: object) -> bool:
            return False

    monkeypatch.setattr(framer, "digest", lambda *parts: Same())


def one_session_only(monkeypatch: pytest.MonkeyPatch) -> None:
    class One(dict[Any, Any]):
        def get(self, key: object, default: object = None) -> object:
            return next(iter(self.values()), default)

    plain = targets.Target.__init__

    def make(self: targets.Target, *arguments: Any, **fields: Any) -> None:
        plain(self, *arguments, **fields)
        self.sessions = One()

    monkeypatch.setattr(targets.Target, "__init__", make)


# --- being asked to leave ---------------------------------------------------------------------------------------------


@dataclass
class Away:
    """Sends a session away: `events` in turn, the end after `drops_s` (never: None)."""

    target: LyingTarget
    events: tuple[int, ...] = (opcodes.ASYNC_LOGOUT_REQUEST,)
    drops_s: float | None = 0.3
    within_s: int = 1

    async def send_away(self, victim: Victim) -> str:
        session = self.target.target.sessions[victim.initiator, victim.isid]
        connection = session.connection
        for event in self.events:
            parameters = {"parameter3": self.within_s} if event == opcodes.ASYNC_LOGOUT_REQUEST else {}
            connection.send_async(event, **parameters)
        if self.drops_s is not None:
            asyncio.get_running_loop().call_later(self.drops_s, connection.close, "told to")
        return "by the test"


# --- the lies ---------------------------------------------------------------------------------------------------------


@dataclass
class Lie:
    """What is wrong, and the checks that must find it."""

    finds: str
    says: Says | None = None
    hears: Hears | None = None
    patch: Patch | None = None
    options: dict[str, Any] = field(default_factory=dict)
    away: dict[str, Any] | None = None
    redirects_back: bool = False


LOGIN, NOP_IN, R2T, DATA_IN = opcodes.LOGIN_RESPONSE, opcodes.NOP_IN, opcodes.R2T, opcodes.DATA_IN
TEXT, REJECT, TMF = opcodes.TEXT_RESPONSE, opcodes.REJECT, opcodes.TASK_MANAGEMENT_RESPONSE
RESPONSE, LOGOUT, ASYNC = opcodes.SCSI_RESPONSE, opcodes.LOGOUT_RESPONSE, opcodes.ASYNC_MESSAGE
OPEN = {"stays_open": True}
REDIRECTS = {"redirects": True}
FIRST = dict.fromkeys(("stat_sn", "exp_cmd_sn", "max_cmd_sn"))
last = lambda pdu: pdu.transit and pdu.next_stage == 3  # noqa: E731
MASK = 0xFFFFFFFF

LIES = [
    Lie("login-tsih-at-the-end", sets(LOGIN, last, tsih=0)),
    Lie("login-tsih-not-before", sets(LOGIN, lambda pdu: not last(pdu), tsih=77)),
    Lie("login-unknown-tsih", login_status(0x020A, 0x0203)),
    Lie("login-second-connection", login_status(0x0206, 0x0203)),
    Lie("login-version", login_status(0x0205, 0x0200)),
    Lie("login-version-range", sets(LOGIN, version_active=7)),
    Lie("login-no-initiator-name", login_status(0x0207, 0x0200)),
    Lie("login-no-target-name", login_status(0x0207, 0x0200)),
    Lie("login-unknown-target", login_status(0x0203, 0x0202)),
    Lie("login-refusal-closes", options=OPEN),
    Lie("login-first-pdu", hears=answers_before_login()),
    Lie("login-other-pdu", says_nothing(LOGIN, lambda pdu: pdu.status_detail == 0x0B)),
    Lie(
        "login-stage",
        sets(LOGIN, lambda pdu: pdu.status_class == 2, status_class=0, status_detail=0, transit=1, next_stage=2),
    ),
    Lie("login-unknown-key", text(LOGIN, b"NotUnderstood", b"1")),
    Lie(
        "login-impossible-value",
        sets(LOGIN, lambda pdu: b"MaxBurst" in bytes(pdu.data), data=b"MaxBurstLength=7\0"),
    ),
    Lie("login-text-in-parts", sets(LOGIN, lambda pdu: not pdu.data, status_class=2)),
    Lie("login-portal-group-tag", text(LOGIN, b"TargetPortalGroupTag=1", b"TargetPortalGroupTag=")),
    Lie("login-digests", sets(NOP_IN, data=b"something else")),
    Lie(
        "redirect-before-authentication",
        sets(
            LOGIN,
            lambda pdu: b"CHAP_C" in bytes(pdu.data),
            status_class=1,
            status_detail=1,
            data=lambda pdu: bytes(pdu.data) + b"TargetAddress=127.0.0.1:1\0",
        ),
        options={"chap": USER},
    ),
    Lie("redirect-no-loop", options=REDIRECTS, redirects_back=True),
    Lie(
        "redirect-without-tag",
        sets(LOGIN, lambda pdu: pdu.status_class == 1, data=lambda pdu: bytes(pdu.data)[:-1] + b",1\0"),
        options=REDIRECTS,
    ),
    Lie("redirect-temporarily", login_status(0x0101, 0x0102), options=REDIRECTS),
    Lie(
        "redirect-portal-group",
        at_the_second_portal(text(LOGIN, b"TargetPortalGroupTag=1", b"TargetPortalGroupTag=2")),
        options=REDIRECTS,
    ),
    Lie("redirect-portal-group", at_the_second_portal(text(LOGIN, b"PortalGroupTag=1", b"PortalGroupTag=2"))),
    Lie("discovery-tag", text(TEXT, b",1\0", b"\0")),
    Lie("discovery-tag", text(TEXT, b"TargetAddress", b"X-Address")),
    Lie("discovery-tag-agrees", text(TEXT, b",1\0", b",3\0")),
    Lie("cmdsn-beyond-window", patch=admits(lambda self, pdu, cmd_sn: True)),
    Lie("cmdsn-below-window", patch=admits(lambda self, pdu, cmd_sn: True)),
    Lie("cmdsn-duplicate", patch=admits(lambda self, pdu, cmd_sn: True)),
    Lie("cmdsn-held", patch=admits(lambda self, pdu, cmd_sn: True)),
    Lie("cmdsn-in-order", patch=admits(lambda self, pdu, cmd_sn: True)),
    Lie("cmdsn-wrap-held", patch=admits(lambda self, pdu, cmd_sn: True)),
    Lie("cmdsn-immediate", sets(NOP_IN, exp_cmd_sn=lambda pdu: pdu.exp_cmd_sn + 1)),
    Lie(
        "cmdsn-immediate-outside",
        patch=admits(lambda self, pdu, cmd_sn: cmd_sn - self.exp_cmd_sn & MASK <= self.limits.command_window),
    ),
    Lie("cmdsn-wrap", sets(DATA_IN, lambda pdu: pdu.exp_cmd_sn < 99, exp_cmd_sn=MASK)),
    Lie("cmdsn-wrap", sets(DATA_IN, lambda pdu: pdu.exp_cmd_sn < 99, status=8)),
    Lie("window-never-shrinks", grows("max_cmd_sn", DATA_IN)),
    Lie("window-never-shrinks", sets(RESPONSE, max_cmd_sn=lambda pdu: pdu.exp_cmd_sn - 2)),
    Lie("window-full", sets(RESPONSE, lambda pdu: pdu.exp_cmd_sn > 99, status=8)),
    Lie("statsn", sets(R2T, stat_sn=lambda pdu: pdu.stat_sn - 1)),
    Lie("statsn", sets(RESPONSE, lambda pdu: pdu.exp_cmd_sn > 30, stat_sn=lambda pdu: pdu.stat_sn + 1)),
    Lie("expstatsn-late", hears=old_acknowledgements_fail()),
    Lie("data-in-underflow", sets(DATA_IN, lambda pdu: pdu.residual_count, residual_underflow=0)),
    Lie("data-in-underflow", sets(DATA_IN, lambda pdu: pdu.residual_count, residual_count=1)),
    Lie("data-in-overflow", sets(DATA_IN, residual_overflow=0)),
    Lie("data-in-no-residual", sets(DATA_IN, residual_underflow=1, residual_count=4)),
    Lie("data-in-sequence", sets(DATA_IN, data_sn=0)),
    Lie("data-in-sequence", sets(DATA_IN, buffer_offset=0)),
    Lie("data-in-sequence", sets(DATA_IN, lambda pdu: not pdu.status_present, final=0)),
    Lie("data-in-sequence", hears=mishears(b"MaxRecvDataSegmentLength=512", b"MaxRecvDataSegmentLength=1024")),
    Lie("r2t-one-open", sets(R2T, r2t_sn=7)),
    Lie("r2t-one-open", sets(R2T, lambda pdu: pdu.r2t_sn, buffer_offset=0)),
    Lie("r2t-one-open", sets(R2T, target_transfer_tag=MASK)),
    Lie("r2t-one-open", hears=mishears(b"MaxOutstandingR2T=1", b"MaxOutstandingR2T=2")),
    Lie("r2t-one-open", hears=mishears(b"MaxBurstLength=4096", b"MaxBurstLength=8192")),
    Lie("r2t-several-open", hears=mishears(b"MaxOutstandingR2T=4", b"MaxOutstandingR2T=5")),
    Lie("r2t-after-unsolicited", sets(R2T, buffer_offset=0)),
    Lie("immediate-not-agreed", hears=mishears(b"ImmediateData=No", b"ImmediateData=Yes")),
    Lie("data-out-unknown-tag", hears=any_transfer_tag()),
    Lie("tmf-unknown-lun", sets(TMF, response=0)),
    Lie("tmf-unknown-task", sets(TMF, response=0)),
    Lie("tmf-task-not-arrived", sets(TMF, response=1)),
    Lie("tmf-task-not-arrived", patch=done_by_nobody(opcodes.ABORT_TASK)),
    Lie("tmf-abort-task", patch=done_by_nobody(opcodes.ABORT_TASK)),
    Lie("tmf-abort-task-set", patch=done_by_nobody(opcodes.ABORT_TASK_SET)),
    Lie(
        "tmf-abort-task-set",
        patch=lambda monkeypatch: monkeypatch.setitem(
            task_management.FUNCTIONS, opcodes.ABORT_TASK_SET, task_management.FUNCTIONS[opcodes.CLEAR_TASK_SET]
        ),
    ),
    Lie("tmf-no-function", sets(TMF, response=0)),
    Lie("tmf-reassign", sets(TMF, response=0)),
    Lie("tmf-query-task", sets(TMF, response=0)),
    Lie("tmf-after-reset", status(2, 8)),
    Lie("tmf-not-immediate", sets(NOP_IN, exp_cmd_sn=lambda pdu: pdu.exp_cmd_sn - 1)),
    Lie("nop-echo", sets(NOP_IN, data=lambda pdu: bytes(pdu.data)[:256])),
    Lie("nop-echo", sets(NOP_IN, target_transfer_tag=4)),
    Lie("nop-no-answer", hears=overwrites(opcodes.NOP_OUT, 16, bytes(4), lambda bhs: bhs[16:20] == b"\xff" * 4)),
    Lie("nop-cut-off", hears=mishears(b"MaxRecvDataSegmentLength=512", b"MaxRecvDataSegmentLength=1024")),
    Lie("text-unknown-key", text(TEXT, b"NotUnderstood", b"Reject")),
    Lie("text-own-target", sets(TEXT, data=b"")),
    Lie("text-in-parts", sets(TEXT, final=1)),
    Lie("text-in-parts", text(TEXT, b"TargetName", b"X-Name")),
    Lie("text-kept-open", sets(TEXT, final=1)),
    Lie("text-unknown-tag", replaces(REJECT, ISCSI_TextResponse, final=1)),
    Lie("logout-session", sets(LOGOUT, response=2)),
    Lie("logout-session", options=OPEN),
    Lie("logout-connection", sets(LOGOUT, response=1)),
    Lie("logout-connection", options=OPEN),
    Lie("logout-unknown-cid", sets(LOGOUT, response=0)),
    Lie("logout-recovery", sets(LOGOUT, response=0)),
    Lie("logout-ends-tasks", hears=logout_is_only_said()),
    Lie("reject-opcode", sets(REJECT, reason=0x02)),
    Lie("reject-opcode", sets(REJECT, data=bytes(48))),
    Lie("reject-opcode", sets(REJECT, initiator_task_tag=9)),
    Lie("reject-tag-in-use", replaces(REJECT, ISCSI_ScsiResponse)),
    Lie("discovery-no-commands", replaces(REJECT, ISCSI_ScsiResponse)),
    Lie("digests", sets(DATA_IN, data=lambda pdu: bytes(len(pdu.data)))),
    Lie("digest-header-error", patch=any_digest),
    Lie("digest-data-error", patch=any_digest),
    Lie("reinstate-same-portal", patch=old_sessions_stay),
    Lie("reinstate-other-portal", patch=old_sessions_stay),
    Lie("reinstate-tsih", login_status(0x020A, 0x0203)),
    Lie("reinstate-other-isid", patch=one_session_only),
    Lie("reinstate-waiting-write", patch=old_sessions_stay),
    Lie("reinstate-waiting-write-across", patch=old_sessions_stay),
    Lie("reinstate-fenced", hears=short_writes_late(0.03)),
    Lie("reinstate-fenced-across", hears=short_writes_late(0.03)),
    Lie("reinstate-unit-there", unsupported()),
    Lie(
        "group-same-unit",
        at_the_second_portal(sets(DATA_IN, lambda pdu: bytes(pdu.data[1:2]) == b"\x83", data=b"\0\x83\0\0")),
    ),
    Lie("group-writes-seen", at_the_second_portal(sets(DATA_IN, data=lambda pdu: bytes(len(pdu.data))))),
    Lie("group-reservation", at_the_second_portal(status(0x18, 0))),
    Lie("group-reservation-follows", at_the_second_portal(sets(RESPONSE, status=0x18, data=b""))),
    Lie("group-preempt", status(0x18, 0)),
    Lie("group-reset-told", at_the_second_portal(sense(0x29))),
    Lie("group-reset-ends-tasks", patch=done_by_nobody(opcodes.LOGICAL_UNIT_RESET)),
    Lie("group-reset-keeps-reservation", status(0x18, 0)),
    Lie("group-mode-told", at_the_second_portal(sense(0x2A))),
    Lie("async-message", sets(ASYNC, final=0), away={}),
    Lie("async-message", sets(ASYNC, initiator_task_tag=4), away={}),
    Lie("async-logout-obeyed", sets(LOGOUT, response=2), away={}),
    Lie("async-logout-obeyed", sets(LOGIN, status_class=2), away={"drops_s": None}),
    Lie("async-logout-obeyed", options=OPEN, away={"events": (opcodes.ASYNC_SESSION_DROP,)}),
    Lie("async-logout-ignored", away={"drops_s": None, "within_s": 0}),
    Lie("async-unit-there", unsupported(), away={}),
]


@contextlib.contextmanager
def told(lie: Lie, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        if lie.patch is not None:
            lie.patch(patch)
        yield


async def check(name: str, target: LyingTarget, patience_s: float = PATIENCE_S, **fields: Any) -> Result:
    chap = None if target._chap is None else Credentials(target._chap.user, target._chap.secret)
    return await run_check(target.setting(chap=chap, patience_s=patience_s, **fields), BY_NAME[name])


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Less patience: what is waited for here comes at once, or never."""
    monkeypatch.setattr("initiator_sim.conformance.raw_session.QUIET_S", 0.03)
    monkeypatch.setattr("initiator_sim.conformance.reinstatement.LATER_S", 0.05)
    monkeypatch.setattr("initiator_sim.conformance.tasks.WAITS_FOR_DATA_S", 0.3)
    for name in ("MESSAGE_S", "MARGIN_S", "RETURN_S"):
        monkeypatch.setattr(f"initiator_sim.conformance.moves.{name}", 1.0)


@pytest.mark.parametrize("lie", LIES, ids=[f"{lie.finds}-{number}" for number, lie in enumerate(LIES)])
def test_a_broken_rule_is_found(lie: Lie, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> Result:
        async with LyingTarget(lie.says, lie.hears, **lie.options) as target:
            if lie.redirects_back:
                target.portals[1].directory.redirect_to = target.portals[0].address
            hooks = {} if lie.away is None else {"hooks": Away(target, **lie.away)}
            return await check(lie.finds, target, **hooks)

    with told(lie, monkeypatch):
        result = asyncio.run(scenario())
    assert result.verdict is Verdict.FAILED, f"{result.verdict}: {result.seen}"
    assert result.seen
    assert result.wanted


@pytest.mark.slow
@pytest.mark.parametrize("redirects", [False, True], ids=["two portals", "redirected"])
def test_a_target_that_keeps_to_the_rules_passes(redirects: bool) -> None:
    async def scenario() -> dict[str, Result]:
        async with LyingTarget(redirects=redirects) as target:
            away = Away(target)
            return {name: await check(name, target, 10.0, hooks=away) for name in BY_NAME}

    results = asyncio.run(scenario())
    assert {name: result.seen for name, result in results.items() if result.verdict is Verdict.FAILED} == {}
    passed = {name for name, result in results.items() if result.verdict is Verdict.PASSED}
    needs_redirection = {name for name in BY_NAME if name.startswith("redirect-")} - {"redirect-portal-group"}
    needs_two_places = {"reinstate-other-portal", "reinstate-waiting-write-across", "reinstate-fenced-across"}
    assert set(BY_NAME) - passed == (needs_two_places if redirects else needs_redirection)


def test_no_check_is_one_that_cannot_fail() -> None:
    assert {lie.finds for lie in LIES} == set(BY_NAME)
