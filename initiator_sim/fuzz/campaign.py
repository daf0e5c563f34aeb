"""Runs cases side by side until the time is over, holds well-behaved sessions against them, and keeps the account."""

import asyncio
import contextlib
import itertools
import shlex
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any, Final

from initiator_sim.client import Initiator
from initiator_sim.fuzz.attacker import FAILED, OUTCOMES, Attacker, Gone, Hang, Progress, Who, Wrong
from initiator_sim.fuzz.craft import Ground
from initiator_sim.fuzz.kinds import kind_of, make_case
from initiator_sim.fuzz.script import Case, header_shown
from initiator_sim.fuzz.witness import Noticed, Witness, fresh_login

FAILURES_MAX: Final = 20
CHECK_EVERY_S: Final = 2.0
SUSPECTS_MAX: Final = 16
_CASE_S_MAX: Final = 60.0
_SHOWN_BYTES: Final = 256
_SHOWN_PDUS: Final = 2
_TICK_S: Final = 0.25


@dataclass(frozen=True)
class Assignment:
    """What to attack, and how.

    connections: cases under way at once. numbers: only these cases, one after the other, instead of `seconds` of them.
    kinds: only cases of these kinds. patience_s: how long the target may take for anything that it must do.
    """

    initiator: Initiator
    who: Who
    iqn: str | None
    seed: int
    seconds: float
    lun: int | None = None
    connections: int = 8
    destructive: bool = False
    numbers: tuple[int, ...] = ()
    kinds: frozenset[str] = frozenset()
    patience_s: float = 10.0


@dataclass(frozen=True)
class Failure:
    """What the target did wrong. cases: those that may have caused it, the likeliest first; sent: its last bytes."""

    what: str
    message: str
    cases: tuple[int, ...]
    kind: str
    sent: tuple[dict[str, Any], ...]


@dataclass
class Tally:
    """The account so far."""

    cases: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    by_kind: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    fresh_logins: int = 0
    failures: list[Failure] = field(default_factory=list)


class Campaign:
    """Make it, `run` it, ask for its `report`. `tally` and `witness` may be looked at meanwhile."""

    def __init__(self, assignment: Assignment) -> None:
        self.assignment = assignment
        self.tally = Tally()
        # A refusal is told at once, with its status.
        self._initiator = copy(assignment.initiator)
        self._initiator.personality = replace(assignment.initiator.personality, login_retries=0)
        self.witness = Witness(
            self._initiator, assignment.who.portal, assignment.iqn, assignment.patience_s, assignment.destructive
        )
        self.elapsed_s = 0.0
        self.ground = Ground(assignment.iqn, assignment.initiator.name)
        self._attacker: Attacker | None = None
        self._numbers = self._choose()
        self._under_way: dict[int, Progress] = {}
        self._over: deque[Progress] = deque(maxlen=SUSPECTS_MAX)
        self._stopping = asyncio.Event()
        self._deadline_s = float("inf")

    def _choose(self) -> Iterator[int]:
        return iter(self.assignment.numbers) if self.assignment.numbers else itertools.count()

    @property
    def over(self) -> bool:
        return self._stopping.is_set() or time.monotonic() >= self._deadline_s

    # --- the course of it -----------------------------------------------------------------------------------------

    async def run(
        self, on_tick: Callable[[], None] = lambda: None, on_case: Callable[[Case], None] | None = None
    ) -> None:
        """Raises what the witness's login raises; what goes wrong later is a failure in the report."""
        assignment = self.assignment
        self.ground = replace(await self.witness.open(assignment.lun), destructive=assignment.destructive)
        self._attacker = Attacker(assignment.who, self.ground, assignment.seed, assignment.patience_s)
        began_s = time.monotonic()
        if not assignment.numbers:
            self._deadline_s = began_s + assignment.seconds
        beside = [asyncio.create_task(work) for work in (self._watch(), self._check(), self._tick(began_s, on_tick))]
        lanes = 1 if assignment.numbers else assignment.connections
        try:
            await asyncio.gather(*(self._lane(on_case) for _ in range(lanes)))
            await self._attacker.close()
            await self._last_check()
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
            await self._attacker.close()
            await self.witness.close()
            self.elapsed_s = time.monotonic() - began_s

    async def _tick(self, began_s: float, on_tick: Callable[[], None]) -> None:
        while True:
            self.elapsed_s = time.monotonic() - began_s
            on_tick()
            await asyncio.sleep(_TICK_S)

    async def _lane(self, on_case: Callable[[Case], None] | None) -> None:
        assignment = self.assignment
        for number in self._numbers:
            if self.over:
                return
            if assignment.kinds and kind_of(assignment.seed, number, self.ground).name not in assignment.kinds:
                continue
            case = make_case(assignment.seed, number, self.ground)
            if on_case is not None:
                on_case(case)
            await self._one(case)

    async def _one(self, case: Case) -> None:
        assert self._attacker is not None
        progress = Progress(case)
        self._under_way[case.number] = progress
        try:
            async with asyncio.timeout(_CASE_S_MAX + self.assignment.patience_s):
                await self._attacker.run(progress)
        except Gone as error:
            await self._stop("crash", str(error), self._suspects())
        except Hang as error:
            await self._stop("hang", str(error), [progress])
        except TimeoutError:
            await self._stop("hang", f"the case has no end within {_CASE_S_MAX:g} s", [progress])
        except Wrong as error:
            if await self._attacker.is_gone():
                await self._stop("crash", f"{error}; then nobody listens any more", self._suspects())
            else:
                self._fail("wrong answer", str(error), [progress])
        finally:
            del self._under_way[case.number]
            self._over.append(progress)
        self.tally.cases += 1
        outcome = progress.outcome or FAILED
        self.tally.outcomes[outcome] += 1
        self.tally.by_kind[case.kind][outcome] += 1

    # --- failures -------------------------------------------------------------------------------------------------

    async def _stop(self, what: str, message: str, suspects: Sequence[Progress]) -> None:
        """The end of the campaign. Only the first reason counts: what comes after it may be its consequence."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        assert self._attacker is not None
        if what not in ("crash", "hang") and await self._attacker.is_gone():
            what, message = "crash", f"{message}; then nobody listens any more"
        self._fail(what, message, suspects)

    def _suspects(self) -> list[Progress]:
        """Cases under way, or just over: the last first. One whose connections only begin is none."""
        recent = [*self._over, *self._under_way.values()][::-1]
        return [progress for progress in recent if progress.line or progress.outcome] or recent

    def _fail(self, what: str, message: str, suspects: Sequence[Progress]) -> None:
        suspects = suspects[:SUSPECTS_MAX]
        numbers = tuple(progress.case.number for progress in suspects)
        kind = suspects[0].case.kind if suspects else ""
        line = suspects[0].line if suspects else None
        sent = () if line is None else tuple(_sent(part) for part in list(line.sent)[-_SHOWN_PDUS:])
        self.tally.failures.append(Failure(what, message, numbers, kind, sent))
        if len(self.tally.failures) >= FAILURES_MAX:
            self._stopping.set()

    # --- the others -----------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        await self._no_failure("witness", self.witness.run())

    async def _check(self) -> None:
        while not self._stopping.is_set():
            await asyncio.sleep(CHECK_EVERY_S)
            await self._no_failure("fresh login", self._fresh_login())

    async def _fresh_login(self) -> None:
        assignment = self.assignment
        await fresh_login(self._initiator, assignment.who.portal, assignment.iqn, assignment.lun, assignment.patience_s)
        self.tally.fresh_logins += 1

    async def _no_failure(self, what: str, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Noticed as error:
            await self._stop(what, str(error), self._suspects())

    async def _last_check(self) -> None:
        """Afterwards the target serves a fresh login, and the witness still."""
        if any(failure.what == "crash" for failure in self.tally.failures):
            return
        had = self.witness.operations
        stopped = self._stopping.is_set()
        try:
            await self._fresh_login()
        except Noticed as error:
            assert self._attacker is not None
            what = "crash" if await self._attacker.is_gone() else "fresh login"
            self._fail(what, f"after the fuzz: {error}", self._suspects())
            return
        if not stopped:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.assignment.patience_s):
                    while self.witness.operations <= had and not self._stopping.is_set():
                        await asyncio.sleep(0.01)
            if self.witness.operations <= had and not self._stopping.is_set():
                self._fail("witness", f"the witness's {self.witness.task} do not go on", self._suspects())

    # --- the account ----------------------------------------------------------------------------------------------

    def report(self) -> dict[str, Any]:
        """The document of --json."""
        tally, assignment = self.tally, self.assignment
        return {
            "portal": assignment.who.portal,
            "iqn": assignment.iqn,
            "seed": assignment.seed,
            "destructive": assignment.destructive,
            "seconds": round(self.elapsed_s, 1),
            "cases": tally.cases,
            "outcomes": {name: tally.outcomes[name] for name in OUTCOMES if tally.outcomes[name]},
            "kinds": {
                kind: {"cases": seen.total()} | {name: seen[name] for name in OUTCOMES if seen[name]}
                for kind, seen in sorted(tally.by_kind.items())
            },
            "witness": {
                "task": self.witness.task,
                "operations": self.witness.operations,
                "longest_ms": round(self.witness.longest_s * 1000, 1),
            },
            "fresh_logins": tally.fresh_logins,
            "late_closes": self._attacker.late_closes if self._attacker else 0,
            "failures": [self._failure(failure) for failure in tally.failures],
            "ok": not tally.failures,
        }

    def _failure(self, failure: Failure) -> dict[str, Any]:
        assignment = self.assignment
        words = ["initiator-sim", "fuzz", assignment.who.portal, *([assignment.iqn] if assignment.iqn else [])]
        words += ["--seed", str(assignment.seed), *(["--destructive"] if assignment.destructive else [])]
        words += [word for number in failure.cases[::-1] for word in ("--case", str(number))]
        return {
            "what": failure.what,
            "message": failure.message,
            "seed": assignment.seed,
            "cases": list(failure.cases),
            "kind": failure.kind,
            "repeat": shlex.join(words),
            "sent": list(failure.sent),
        }


def _sent(part: bytes) -> dict[str, Any]:
    """Bytes in hex, and as scapy shows the header that they begin with, if they may be a PDU."""
    return {"bytes": len(part), "hex": part[:_SHOWN_BYTES].hex(" "), "header": header_shown(part)}
