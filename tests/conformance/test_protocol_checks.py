"""`initiator-sim conformance` on real targets: a member passes everything that applies to it, and tgt is no crash."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conformance.protocol import by_name, document, names, on_member, on_tgt, reason
from tests.conformance.report import written

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

Ran = tuple[int, dict[str, Any]]

# One member has nobody to redirect to, and ends a session with event 3 at once.
NOT_FOR_ONE_MEMBER = {
    "redirect-before-authentication",
    "redirect-no-loop",
    "redirect-without-tag",
    "redirect-temporarily",
    "async-logout-ignored",
}


@pytest.fixture(scope="module")
def member(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return on_member(tmp_path_factory.mktemp("member"))


@pytest.fixture(scope="module")
def tgt(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return on_tgt(tmp_path_factory.mktemp("tgt"))


def test_a_member_passes_all_that_applies(member: Ran) -> None:
    status, report = member
    failed = {name: by_name(report)[name]["seen"] for name in names(report, "failed")}
    assert failed == {}
    assert status == 0
    assert names(report, "not applicable") == NOT_FOR_ONE_MEMBER


@pytest.mark.tool("tgtd")
def test_tgt_passes_most_and_what_it_fails_is_explained(tgt: Ran) -> None:
    status, report = tgt
    assert status == 1
    assert report["passed"] > len(report["checks"]) / 2
    for name in names(report, "failed"):
        assert by_name(report)[name]["seen"]
        assert by_name(report)[name]["wanted"]


@pytest.mark.tool("tgtd")
def test_the_document_tells_what_these_runs_found(member: Ran, tgt: Ran) -> None:
    assert written()[1] == document(member[1], tgt[1]), (
        "docs/conformance.md is not current: python -m tests.conformance.protocol --write-docs"
    )
    for _, report in (member, tgt):
        assert all(reason(name) != "unknown" for name in names(report, "not applicable"))


def test_reports_are_compared_by_path_free_words(tmp_path: Path) -> None:
    ours = {"passed": 1, "failed": 1, "not_applicable": 0, "checks": []}
    for name, verdict in (("a-check", "passed"), ("another", "failed")):
        ours["checks"].append({"name": name, "title": "T", "section": "RFC 7143 1", "verdict": verdict, "seen": "127"})
    text = document(ours, ours)
    assert "| a-check | T | RFC 7143 1 | yes | yes |\n| another | T | RFC 7143 1 | **no** | **no** |\n" in text
    assert "127" not in text
