"""Carries out cases: one connection or many, step by step, and says what came of it."""

import asyncio
from collections import deque
from dataclasses import dataclass, field
from random import Random
from typing import Final

from initiator_sim.chap import Chap, Credentials
from initiator_sim.fuzz.craft import Ground
from initiator_sim.fuzz.guard import Guard
from initiator_sim.fuzz.line import Line, Malformed
from initiator_sim.fuzz.script import (
    AnswerR2T,
    Await,
    Begin,
    Case,
    Ending,
    Raw,
    Script,
    Send,
    Stage,
    Step,
    StopListening,
)
from initiator_sim.login import LoggedIn, Login, LoginError, LoginRequest
from initiator_sim.parameters import Pair

QUIET_S: Final = 0.15
"""Silence for so long is an answer too."""
END_S: Final = 1.0
LINGERING_MAX: Final = 64
_REDIRECTS_MAX: Final = 16
_OUT_OF_RESOURCES: Final = 3  # Status-Class: the target cannot now (RFC 7143 11.13.5)
_NOT_AUTHENTICATED: Final = 0x0201
_KEYS: Final[tuple[Pair, ...]] = (
    ("MaxRecvDataSegmentLength", "65536"),
    ("MaxBurstLength", "65536"),
    ("FirstBurstLength", "16384"),
    ("InitialR2T", "Yes"),
    ("ImmediateData", "Yes"),
    ("MaxOutstandingR2T", "1"),
    ("ErrorRecoveryLevel", "0"),
    ("DefaultTime2Wait", "0"),
    ("DefaultTime2Retain", "0"),
)
_DISCOVERY_KEYS: Final = frozenset({"HeaderDigest", "DataDigest", "MaxRecvDataSegmentLength"})

CLOSED: Final = "closed"
REJECT: Final = "reject"
REFUSED: Final = "refused"
REDIRECTED: Final = "redirected"
ANSWERED: Final = "answered"
IGNORED: Final = "ignored"
WITHHELD: Final = "withheld"
FAILED: Final = "failed"
OUTCOMES: Final = (CLOSED, REJECT, REFUSED, REDIRECTED, ANSWERED, IGNORED, WITHHELD, FAILED)


class Gone(Exception):
    """Nobody listens at the portal any more."""


class Hang(Exception):
    """The target does not answer what it has to answer."""


class Wrong(Exception):
    """The target answers what it must not."""


@dataclass(frozen=True, slots=True)
class Who:
    """How hostile sessions log in where they do it correctly."""

    portal: str
    chap: Credentials | None = None
    mutual: Credentials | None = None
    chap_algorithms: tuple[int, ...] = (5,)


@dataclass(slots=True)
class Progress:
    """A case under way, or over: then it has an outcome."""

    case: Case
    lines: list[Line] = field(default_factory=list)
    outcome: str = ""

    @property
    def line(self) -> Line | None:
        """A connection of it that sent something."""
        return next((line for line in reversed(self.lines) if line.sent), None)


class Attacker:
    """Any number of cases may be under way. patience_s: how long a target may take for what it must answer."""

    def __init__(self, who: Who, ground: Ground, seed: int, patience_s: float) -> None:
        self.late_closes = 0
        self._who = who
        self._ground = ground
        self._seed = seed
        self._patience_s = patience_s
        self._lingering: deque[Line] = deque()

    async def run(self, progress: Progress) -> None:
        """Carry out a case. Raises Gone, Hang or Wrong."""
        script, lines = progress.case.script, progress.lines
        try:
            outcomes = await asyncio.gather(
                *(self._run(progress.case, index, lines) for index in range(script.connections)),
                return_exceptions=True,
            )
        finally:
            await self._leave(lines, script.ending)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        progress.outcome = min((str(outcome) for outcome in outcomes), key=OUTCOMES.index)

    async def _leave(self, lines: list[Line], ending: Ending) -> None:
        if ending is Ending.LINGER:
            self._lingering.extend(lines)
            lines = [self._lingering.popleft() for _ in range(max(0, len(self._lingering) - LINGERING_MAX))]
        for line in lines:
            await line.end()

    async def is_gone(self) -> bool:
        """Does nobody listen any more?"""
        try:
            line = await self._connect(self._who.portal)
        except Gone:
            return True
        except Hang:
            return False
        await line.end()
        return False

    async def close(self) -> None:
        """Give up the connections that were left open."""
        while self._lingering:
            await self._lingering.popleft().end()

    async def _run(self, case: Case, index: int, lines: list[Line]) -> str:
        script = case.script
        line = await self._begin(case, index, lines)
        if line is None:
            return REFUSED
        for step in script.steps:
            if not line.usable:
                break
            await _take(line, step)
        closed_first = line.answers.closed
        if script.ending in (Ending.PROBE, Ending.CLOSE):
            closed_first = await self._finish(line, script)
        if line.answers.malformed:
            raise Wrong(f"malformed answer: {line.answers.malformed}")
        return _outcome(line, closed_first)

    async def _finish(self, line: Line, script: Script) -> bool:
        """Did the target close before we did?"""
        if script.ending is Ending.PROBE and line.logged_in:
            await line.probe(QUIET_S)
        elif script.ending is Ending.PROBE:
            await line.wait(QUIET_S)
        closed_first = line.answers.closed
        self.late_closes += not await line.wait_for_close(END_S)
        return closed_first

    # --- how a connection begins ----------------------------------------------------------------------------------

    async def _begin(self, case: Case, index: int, lines: list[Line]) -> Line | None:
        """None where the target may refuse a correct login, and does."""
        begin = case.script.begin
        address = self._who.portal
        for _ in range(_REDIRECTS_MAX + 1):
            line = await self._connect(address)
            lines.append(line)
            if begin.stage is Stage.CONNECTED:
                return line
            login = Login(self._request(case, index))
            try:
                result = await line.log_in(login, self._patience_s)
            except LoginError as error:
                if self._may_refuse(begin, error.status):
                    return None
                raise Wrong(f"a correct login fails: {error}") from None
            except TimeoutError:
                raise Hang(f"a correct login has no end within {self._patience_s:g} s") from None
            except ConnectionError as error:
                raise Wrong(line.answers.malformed or str(error)) from None
            if isinstance(result, LoggedIn):
                return line
            lines.remove(line)
            await line.end()
            address = result.address
        raise Wrong(f"a correct login was redirected {_REDIRECTS_MAX} times")

    def _may_refuse(self, begin: Begin, status: int) -> bool:
        """Where there are too many; and in discovery, where it is only known how to prove oneself to the target."""
        unknown = begin.stage is Stage.DISCOVERY and self._ground.iqn is not None and status == _NOT_AUTHENTICATED
        return unknown or status >> 8 == _OUT_OF_RESOURCES

    async def _connect(self, address: str) -> Line:
        try:
            return await Line.open(address, Guard(self._ground.destructive), self._patience_s)
        except TimeoutError:
            raise Hang(f"no connection within {self._patience_s:g} s") from None
        except ConnectionError as error:
            raise Gone(f"no connection: {error.strerror or error}") from None

    def _request(self, case: Case, index: int) -> LoginRequest:
        begin = case.script.begin
        iqn = self._ground.iqn if begin.stage is Stage.SESSION else None
        keys = dict(_KEYS) | _digest_keys(begin) | dict(begin.keys)
        pairs = [pair for pair in keys.items() if iqn is not None or pair[0] in _DISCOVERY_KEYS]
        who = self._who
        chap = None
        if who.chap is not None:
            chance = Random(f"{self._seed}/{case.number}/{index}/CHAP")
            chap = Chap(who.chap, who.mutual, who.chap_algorithms, chance.randbytes)
        isid = bytes((0x80, self._seed & 0x7F)) + (case.number & 0xFFFFFF).to_bytes(3, "big") + bytes((index & 0xFF,))
        return LoginRequest(self._ground.initiator_name, isid, iqn, pairs, chap, cmd_sn=begin.cmd_sn)


def _digest_keys(begin: Begin) -> dict[str, str]:
    return {
        "HeaderDigest": "CRC32C,None" if begin.header_digest else "None",
        "DataDigest": "CRC32C,None" if begin.data_digest else "None",
    }


async def _take(line: Line, step: Step) -> None:
    if isinstance(step, Send):
        await line.send(line.encoder.encode(step))
    elif isinstance(step, Raw):
        for piece in step.pieces():
            await line.send(piece)
            if step.pause_s:
                await asyncio.sleep(step.pause_s)
    elif isinstance(step, AnswerR2T):
        await _answer(line, step)
    elif isinstance(step, Await):
        await line.wait(step.seconds)
    elif isinstance(step, StopListening):
        line.stop_listening()


async def _answer(line: Line, step: AnswerR2T) -> None:
    r2ts = line.answers.r2ts
    if not r2ts:
        await line.wait(QUIET_S)
    if r2ts:
        r2ts.rotate(-step.which)
        for pdu in line.encoder.data_out(step, r2ts.popleft()):
            await line.send(pdu)


def _outcome(line: Line, closed_first: bool) -> str:
    """The first of OUTCOMES that holds, but a reason is worth more than the end."""
    answers = line.answers
    if line.withheld:
        return WITHHELD
    if answers.refused:
        return REDIRECTED if answers.refused >> 8 == 1 else REFUSED
    if answers.heard["Reject"]:
        return REJECT
    if closed_first:
        return CLOSED
    return ANSWERED if line.has_answered else IGNORED


__all__ = ["FAILED", "OUTCOMES", "Attacker", "Gone", "Hang", "Malformed", "Progress", "Who", "Wrong"]
