"""docs/conformance.md, written from what runs found and from the reasons in expectations.py.

It has two parts, each with its own run: libiscsi's suites, and the protocol checks of `initiator-sim conformance`.
"""

from __future__ import annotations

from pathlib import Path

from tests.conformance.expectations import NOWHERE
from tests.conformance.iscsi_test_cu import Outcomes, Verdict, count
from tests.conformance.kinds import KINDS

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "conformance.md"
SIGNS = {Verdict.PASSED: "yes", Verdict.SKIPPED: "–", Verdict.FAILED: "**no**", Verdict.BROKEN: "**broken**"}

PROTOCOL_MARK = "\n# Protocol checks\n"

HEAD = """# Conformance

Two suites: libiscsi's `iscsi-test-cu` for what a disk does, and below it the [protocol checks](#protocol-checks) of
`initiator-sim conformance` for what a target does about sessions, numbers, moves and reservations.

libiscsi's test program `iscsi-test-cu` ({tests} tests), run with `--dataloss --allow-sanitize`, one process per suite,
on each kind of volume. A test that the program skips is not counted as passed. {somewhere} of the {tests} tests pass on
some kind of volume; the others stand below, each with its reason.

On the read-only volume only the suite `ReadOnly` may write, since the other tests that write do not expect a volume to
refuse it. `multipath` is the suite `MultipathIO` with a second URL of the same volume.

For comparison: on a thin volume of tgt 1.0.85 the same run finds 171 passed, 10 failed, 49 skipped, and 2 of the 4
multipath tests pass.

This part is written by `python -m tests.conformance.run --write-docs`; `make test` checks the same results.

"""


def written() -> tuple[str, str]:
    """The two parts as they stand in the file."""
    suites, mark, protocol = DOCUMENT.read_text().partition(PROTOCOL_MARK)
    return suites, mark + protocol


def write(suites: str | None = None, protocol: str | None = None) -> None:
    """Replace one part of the file, or both."""
    before = written()
    DOCUMENT.write_text((before[0] if suites is None else suites) + (before[1] if protocol is None else protocol))


def passes_somewhere(results: dict[str, Outcomes]) -> set[str]:
    """The tests that pass on at least one kind of volume."""
    return {
        test for outcomes in results.values() for test, outcome in outcomes.items() if outcome.verdict is Verdict.PASSED
    }


def document(results: dict[str, Outcomes]) -> str:
    """The whole file. `results`: by kind of volume, all kinds."""
    tests = list(dict.fromkeys(test for outcomes in results.values() for test in outcomes))
    somewhere = passes_somewhere(results)
    return (
        HEAD.format(tests=len(tests), somewhere=len(somewhere))
        + totals(results)
        + "\n## Tests that pass on no kind of volume\n\n"
        + reasons([test for test in tests if test not in somewhere])
        + "\n## Every test\n\n`yes` passes, `–` is skipped by the program on that kind.\n\n"
        + every_test(results, tests)
    )


def row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |\n"


def rule(columns: int) -> str:
    return "|" + "---|" * columns + "\n"


def totals(results: dict[str, Outcomes]) -> str:
    text = row(["volume", *(str(verdict) for verdict in Verdict)]) + rule(1 + len(Verdict))
    for kind, outcomes in results.items():
        text += row([kind, *(str(number) for number in count(outcomes).values())])
    return text


def reasons(tests: list[str]) -> str:
    if not tests:
        return "None.\n"
    return row(["test", "reason"]) + rule(2) + "".join(row([test, NOWHERE.get(test, "unknown")]) for test in tests)


def every_test(results: dict[str, Outcomes], tests: list[str]) -> str:
    kinds = [kind for kind in KINDS if kind in results]
    text = row(["test", *kinds]) + rule(1 + len(kinds))
    for test in tests:
        outcomes = [results[kind].get(test) for kind in kinds]
        text += row([test, *(SIGNS[outcome.verdict] if outcome else "" for outcome in outcomes)])
    return text
