"""libiscsi's conformance suites, `iscsi-test-cu`: which tests there are, running them, and reading what they say.

Each suite gets a process of its own, so that what one leaves behind (a lost session, a pending unit attention) cannot
change the next one's result. The program counts a test that it skipped as passed; this module does not.
"""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from tests.support.tools import find

SUITE_TIMEOUT_S = 300
DETAIL_LINES_MAX = 20  # of different lines; a failing test may say the same hundreds of times
TEST_LINE = re.compile(r"^  Test: (\S+) \.\.\.", re.MULTILINE)
END_OF_TESTS = re.compile(r"^Run Summary:", re.MULTILINE)
# The verdict begins a line, or follows the name of a test that printed nothing; what the suite's end prints may follow.
VERDICT = re.compile(r"^(passed|FAILED)\b", re.MULTILINE)
SKIPPED = re.compile(r"\[SKIPPED\]\s*(.*)")
# Some tests do not skip, but fail on the program's own refusal to write when it was not allowed to.
REFUSED = re.compile(r"^\s*--dataloss flag is not set.*", re.MULTILINE)


class Verdict(StrEnum):
    """How a test ended. BROKEN: the program ended, or ran out of time, before it told."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"
    BROKEN = "broken"


@dataclass(frozen=True)
class Outcome:
    """The verdict on one test. `detail`: the reason of a skip, or all that was printed for a failure."""

    verdict: Verdict
    detail: str = ""


Outcomes = dict[str, Outcome]  # by "Suite.Test"


def parse_list(output: str) -> dict[str, list[str]]:
    """Suite -> its tests, from `iscsi-test-cu --list`, in the program's order."""
    suites: dict[str, list[str]] = {}
    for line in output.splitlines():
        match line.strip().split("."):
            case ["ALL", suite]:
                suites[suite] = []
            case ["ALL", suite, test]:
                suites[suite].append(test)
    return suites


def all_tests() -> dict[str, list[str]]:
    """Suite -> its tests, of the installed program."""
    done = subprocess.run([find("iscsi-test-cu"), "--list"], capture_output=True, text=True, timeout=30, check=True)
    return parse_list(done.stdout)


def parse_suite(suite: str, tests: Iterable[str], output: str, ending: str) -> Outcomes:
    """The outcomes of a suite's tests, from the program's verbose output.

    A test of which the output tells nothing is BROKEN; `ending` then says how the process ended.
    """
    end = END_OF_TESTS.search(output)
    starts = list(TEST_LINE.finditer(output))
    limits = [match.start() for match in starts[1:]] + [end.start() if end else len(output)]
    # strict=False: of a program that could not even log in there is a limit, but no start.
    told = {match[1]: output[match.end() : limit] for match, limit in zip(starts, limits, strict=False)}
    return {f"{suite}.{test}": judge(told.get(test), ending) for test in tests}


def judge(text: str | None, ending: str) -> Outcome:
    """The verdict on what one test printed; None = the test was never begun."""
    if text is None:
        return Outcome(Verdict.BROKEN, f"not begun; {ending}")
    verdict = VERDICT.search(text)
    said = "\n".join(list(dict.fromkeys(text.strip().splitlines()))[:DETAIL_LINES_MAX])
    if verdict is None:
        return Outcome(Verdict.BROKEN, f"not ended; {ending}\n{said}")
    refused = REFUSED.search(text)
    if refused is not None:
        return Outcome(Verdict.SKIPPED, refused[0].strip())
    if verdict[1] == "FAILED":
        return Outcome(Verdict.FAILED, said)
    skipped = SKIPPED.search(text)
    return Outcome(Verdict.SKIPPED, skipped[1].strip()) if skipped else Outcome(Verdict.PASSED)


def run_suite(suite: str, tests: Iterable[str], urls: Sequence[str], data_loss: bool = True) -> Outcomes:
    """Run one suite. `urls`: that of the logical unit, and a second one for the multipath tests.

    `data_loss`: let tests write; without it the program skips those that would.
    """
    permissions = ["--dataloss", "--allow-sanitize"] if data_loss else []
    command = [find("iscsi-test-cu"), *permissions, "--verbose", f"--test=ALL.{suite}", *urls]
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=SUITE_TIMEOUT_S, check=False
        )
        output, ending = done.stdout, f"the program ended with status {done.returncode}"
    except subprocess.TimeoutExpired as expired:
        output, ending = expired.stdout or b"", f"the program hung for {SUITE_TIMEOUT_S} s"
    text = output.decode(errors="replace")
    return parse_suite(suite, tests, text, f"{ending}: {text[-400:].strip()}")


def run_suites(
    urls: Sequence[str],
    suites: Iterable[str] = (),
    tell: Callable[[str], None] | None = None,
    writing_suites: Container[str] | None = None,
) -> Outcomes:
    """Run the named suites (all, when none is named), one process each. `tell` hears each suite's name.

    `writing_suites`: those that may write, where not all of them may.
    """
    known = all_tests()
    outcomes: Outcomes = {}
    for suite in suites or known:
        if tell is not None:
            tell(suite)
        data_loss = writing_suites is None or suite in writing_suites
        outcomes.update(run_suite(suite, known[suite], urls, data_loss))
    return outcomes


def count(outcomes: Outcomes) -> dict[Verdict, int]:
    """How many tests ended in each way."""
    counter = Counter(outcome.verdict for outcome in outcomes.values())
    return {verdict: counter[verdict] for verdict in Verdict}
