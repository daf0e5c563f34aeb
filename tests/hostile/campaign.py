"""Runs cases in chains: one battlefield, one attacker, a number of cases of mixed kinds, the witnesses after each.

Everything follows from a seed. A failing chain is cut down to the cases, and those to the steps, without which the
failure would not be there.
"""

from __future__ import annotations

import asyncio
import copy
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple

from tests.hostile import cases_login, cases_protocol, cases_scsi
from tests.hostile.attack import Attacker, Step
from tests.hostile.battlefield import Battlefield

CASES_PER_CHAIN = 40


class Kind(NamedTuple):
    """make: a case from randomness. by_right: its commands may change the volume, so its other host must bear with it.

    weight: how often, against the others.
    """

    name: str
    make: Callable[[Random], list[Step]]
    by_right: bool = False
    weight: int = 1


KINDS = (
    Kind("garbage", cases_protocol.garbage, weight=2),
    Kind("lengths", cases_protocol.lengths, weight=2),
    Kind("opcodes", cases_protocol.opcode, by_right=True, weight=3),
    Kind("reserved bits", cases_protocol.reserved),
    Kind("additional headers", cases_protocol.additional_headers, by_right=True, weight=2),
    Kind("digests", cases_protocol.wrong_digests, weight=2),
    Kind("mutated fields", cases_protocol.mutation, by_right=True, weight=3),
    Kind("order", cases_protocol.order, weight=2),
    Kind("CmdSN games", cases_protocol.command_numbers, weight=2),
    Kind("task tags", cases_protocol.task_tags, by_right=True, weight=2),
    Kind("data games", cases_protocol.data_games, weight=3),
    Kind("late data", cases_protocol.late_data),
    Kind("text", cases_protocol.texts, weight=2),
    Kind("text floods", cases_protocol.text_flood),
    Kind("NOP floods", cases_protocol.nops),
    Kind("task management", cases_protocol.task_managements, by_right=True, weight=2),
    Kind("cold reset", cases_protocol.cold_reset, by_right=True),
    Kind("rare PDUs", cases_protocol.rare),
    Kind("logout", cases_protocol.logout),
    Kind("slow senders", cases_protocol.slow),
    Kind("logins", cases_login.logins, weight=2),
    Kind("login keys", cases_login.operational, weight=2),
    Kind("CHAP", cases_login.chap, weight=2),
    Kind("half logins", cases_login.half),
    Kind("sessions", cases_login.sessions),
    Kind("CDBs", cases_scsi.cdbs, by_right=True, weight=4),
    Kind("block commands", cases_scsi.block_commands, by_right=True, weight=3),
    Kind("parameter lists", cases_scsi.parameter_lists, by_right=True, weight=4),
    Kind("reservations", cases_scsi.reservations, by_right=True, weight=2),
)
_STRICT = tuple(kind for kind in KINDS if not kind.by_right)


class Case(NamedTuple):
    kind: Kind
    steps: Sequence[Step]


class Failure(NamedTuple):
    """seed and number find the case again; cases is what is left of the chain, text the traceback."""

    seed: int
    chain: int
    cases: list[Case]
    text: str

    def __str__(self) -> str:
        lines = [f"seed {self.seed}, chain {self.chain}: the smallest sequence that fails"]
        for case in self.cases:
            lines.append(f"  {case.kind.name}:")
            lines += [f"    {step!r}" for step in case.steps]
        return "\n".join([*lines, self.text])


@dataclass
class Result:
    """cases, seconds and outcomes by kind; failures in the order found."""

    cases: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)
    outcomes: dict[str, Counter[str]] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)


def chain_of(seed: int, number: int, kinds: Sequence[Kind] = KINDS) -> list[Case]:
    """The cases of one chain. Every third chain has only cases after which the witness must see nothing at all."""
    random = Random(f"{seed}/{number}")
    if number % 3 == 0:
        kinds = [kind for kind in kinds if kind in _STRICT] or kinds
    picked = random.choices(kinds, [kind.weight for kind in kinds], k=CASES_PER_CHAIN)
    return [Case(kind, kind.make(random)) for kind in picked]


class Chain:
    """One battlefield, on which cases are fought one after the other."""

    def __init__(self) -> None:
        self.field = Battlefield()
        self.attacker = Attacker(self.field)
        self._by_right = False

    async def begin(self) -> None:
        for witness in self.field.witnesses:
            await witness.prepare()

    async def fight(self, case: Case) -> Counter[str]:
        """Run one case; the outcomes seen. AssertionError where a rule was broken."""
        self._by_right |= case.kind.by_right
        before = len(self.attacker.judges)
        self.attacker.judge.outcomes.clear()
        await self.attacker.run(case.steps)
        attacked, quiet = self.field.witnesses
        outcomes: Counter[str] = Counter()
        for judge in self.attacker.judges[before - 1 :]:
            outcomes += judge.outcomes
        seen = await attacked.check(tolerant=self._by_right)
        assert await quiet.check(tolerant=False) == "good"
        self.attacker.judges = self.attacker.judges[-1:]
        outcomes[f"the other host of the volume reads: {seen}"] += 1
        return outcomes

    async def end(self) -> None:
        await self.attacker.leave()
        for witness in self.field.witnesses:
            witness.connection.lost()
        for target in self.field.directory.targets.values():
            assert not target.sessions, "a session outlives its connection"
            assert not target.unit.nexuses, "a nexus outlives its session"


async def fight_all(cases: Sequence[Case], on_outcome: Callable[[Case, Counter[str], float], None]) -> None:
    chain = Chain()
    await chain.begin()
    for case in cases:
        started = time.perf_counter()
        outcomes = await chain.fight(case)
        on_outcome(case, outcomes, time.perf_counter() - started)
    await chain.end()


async def _fails(cases: Sequence[Case]) -> str | None:
    """What an attempt at these cases breaks, or None."""
    # Steps are copied, since PDUs could be changed while they are sent.
    try:
        await fight_all(copy.deepcopy(list(cases)), lambda *_: None)
    except Exception as error:  # an AssertionError of ours, or whatever the target lets escape
        return "".join(traceback.format_exception(error, limit=-6, chain=False))
    return None


async def shrink(cases: list[Case]) -> tuple[list[Case], str]:
    """Leave out cases, then steps, as long as it still fails in any way."""
    text = await _fails(cases)
    if text is None:
        return cases, "(did not fail again)"
    smaller = True
    while smaller:
        smaller = False
        for candidate in _smaller(cases):
            if (found := await _fails(candidate)) is not None:
                cases, text, smaller = candidate, found, True
                break
    return cases, text


def _smaller(cases: list[Case]) -> Iterator[list[Case]]:
    for size in (len(cases) // 2, len(cases) // 4, 1):
        for start in range(0, len(cases), max(1, size)):
            if size and len(cases) > size:
                yield cases[:start] + cases[start + size :]
    for number, case in enumerate(cases):
        for index in range(len(case.steps)):
            steps = [*case.steps[:index], *case.steps[index + 1 :]]
            yield [*cases[:number], case._replace(steps=steps), *cases[number + 1 :]]


async def campaign(
    seed: int,
    count: int,
    kinds: Sequence[Kind] = KINDS,
    first_chain: int = 0,
    failures_max: int = 5,
    progress: Callable[[int], None] = lambda done: None,
) -> Result:
    """At least `count` cases."""
    result = Result()

    def enter(case: Case, outcomes: Counter[str], seconds: float) -> None:
        result.cases[case.kind.name] += 1
        result.seconds[case.kind.name] += seconds  # type: ignore[assignment]
        result.outcomes.setdefault(case.kind.name, Counter()).update(outcomes)

    number = first_chain
    while result.cases.total() < count and len(result.failures) < failures_max:
        cases = chain_of(seed, number, kinds)
        try:
            await fight_all(copy.deepcopy(cases), enter)
        except Exception:
            smallest, text = await shrink(cases)
            result.failures.append(Failure(seed, number, smallest, text))
        progress(result.cases.total())
        number += 1
    return result


def run(seed: int, count: int, kinds: Sequence[Kind] = KINDS, first_chain: int = 0) -> Result:
    return asyncio.run(campaign(seed, count, kinds, first_chain))
