"""iscsi-test-cu on every kind of volume: nothing fails, and what passes nowhere has its reason."""

from __future__ import annotations

import pytest

from tests.conformance.expectations import NOWHERE
from tests.conformance.iscsi_test_cu import Outcomes, Verdict
from tests.conformance.kinds import KINDS, MULTIPATH, run_kinds
from tests.conformance.report import document, passes_somewhere, written
from tests.support.member import Member

pytestmark = [pytest.mark.tool("iscsi-test-cu"), pytest.mark.slow, pytest.mark.timeout(900)]

TESTS = 230  # of libiscsi 1.19
PASSING_MIN = 220


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcomes]:
    """The outcomes by kind of volume; run once for all tests below."""
    return run_kinds(Member, tmp_path_factory.mktemp("conformance"))


@pytest.mark.parametrize("kind", KINDS)
def test_no_test_fails(results: dict[str, Outcomes], kind: str) -> None:
    outcomes = results[kind]
    bad = {
        test: outcome for test, outcome in outcomes.items() if outcome.verdict not in (Verdict.PASSED, Verdict.SKIPPED)
    }
    told = [f"{test}: {outcome.verdict}\n{outcome.detail}" for test, outcome in bad.items()]
    assert not bad, f"{len(bad)} of {len(outcomes)} on {kind}:\n" + "\n".join(told)


def test_with_a_second_url_every_multipath_test_passes(results: dict[str, Outcomes]) -> None:
    assert {test: outcome.verdict for test, outcome in results[MULTIPATH].items()} == {
        "MultipathIO.Simple": Verdict.PASSED,
        "MultipathIO.Reset": Verdict.PASSED,
        "MultipathIO.CompareAndWrite": Verdict.PASSED,
        "MultipathIO.CompareAndWriteAsync": Verdict.PASSED,
    }


def test_each_test_passes_on_some_volume_or_has_its_reason(results: dict[str, Outcomes]) -> None:
    passing = passes_somewhere(results)
    every = {test for outcomes in results.values() for test in outcomes}
    assert every - passing == set(NOWHERE)
    assert len(passing) >= PASSING_MIN
    assert len(every) >= TESTS


def test_the_document_tells_what_this_run_found(results: dict[str, Outcomes]) -> None:
    assert written()[0] == document(results), (
        "docs/conformance.md is not current: python -m tests.conformance.run --write-docs"
    )
