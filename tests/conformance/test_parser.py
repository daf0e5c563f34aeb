"""The reader of iscsi-test-cu's output tells passed, skipped, failed and broken apart."""

from __future__ import annotations

from tests.conformance.iscsi_test_cu import Outcome, Verdict, count, parse_list, parse_suite

OUTPUT = """

     CUnit - A unit testing framework for C

Suite: Read10
  Test: Simple ...passed
  Test: BeyondEol ...    [SKIPPED] READ10 is not implemented.
    [SKIPPED] twice.
passed
  Test: ZeroBlocks ...    [FAILED] READ10 command failed.
FAILED
    1. test_read10.c:40  - ret == 0
  Test: Warned ...    [WARNING] a word FAILED in the middle.
passed
  Test: Last ...passed    [FAILED] said by the end of the suite.

Run Summary:    Type  Total    Ran Passed Failed Inactive
               tests      4      4      3      1        0
"""


def test_verdicts_are_told_apart() -> None:
    outcomes = parse_suite("Read10", ["Simple", "BeyondEol", "ZeroBlocks", "Warned", "Last"], OUTPUT, "status 1")
    assert outcomes["Read10.Simple"] == Outcome(Verdict.PASSED)
    assert outcomes["Read10.BeyondEol"] == Outcome(Verdict.SKIPPED, "READ10 is not implemented.")
    assert outcomes["Read10.ZeroBlocks"].verdict == Verdict.FAILED
    assert "test_read10.c:40" in outcomes["Read10.ZeroBlocks"].detail
    assert outcomes["Read10.Warned"] == Outcome(Verdict.PASSED)
    assert outcomes["Read10.Last"] == Outcome(Verdict.PASSED)
    assert count(outcomes) == {Verdict.PASSED: 3, Verdict.FAILED: 1, Verdict.SKIPPED: 1, Verdict.BROKEN: 0}


def test_a_program_that_ends_early_breaks_the_rest() -> None:
    cut = OUTPUT[: OUTPUT.index("FAILED\n    1.")]
    outcomes = parse_suite("Read10", ["Simple", "ZeroBlocks", "Warned"], cut, "the program hung")
    assert [outcome.verdict for outcome in outcomes.values()] == [Verdict.PASSED, Verdict.BROKEN, Verdict.BROKEN]
    assert outcomes["Read10.ZeroBlocks"].detail.startswith("not ended; the program hung")
    assert outcomes["Read10.Warned"].detail == "not begun; the program hung"


def test_a_program_that_cannot_log_in_breaks_them_all() -> None:
    outcomes = parse_suite("Read10", ["Simple", "Last"], "Failed to connect to the target\n", "status 255")
    assert set(outcomes.values()) == {Outcome(Verdict.BROKEN, "not begun; status 255")}


def test_the_programs_own_refusal_to_write_is_a_skip() -> None:
    output = "  Test: Simple ...    --dataloss flag is not set in. Skipping PROUT\nFAILED\n    1. test.c:9\n"
    outcome = parse_suite("ProutRegister", ["Simple"], output, "status 1")["ProutRegister.Simple"]
    assert outcome == Outcome(Verdict.SKIPPED, "--dataloss flag is not set in. Skipping PROUT")


def test_only_the_family_with_all_tests_is_listed() -> None:
    listing = "ALL\nALL.Read10\nALL.Read10.Simple\nALL.Read10.Async\nSCSI\nSCSI.Read10\nSCSI.Read10.Simple\n"
    assert parse_list(listing) == {"Read10": ["Simple", "Async"]}
