"""The suites and checks of a single target on a group of three members, on a volume of which each has a part.

`python -m tests.conformance.run --target group` runs all suites there; here those that say something about several
members run: what reaches over the end of one member's blocks, and what belongs to the unit as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.iscsi_test_cu import Outcomes, Verdict, run_suites
from tests.conformance.kinds import MULTIPATH_SUITE
from tests.conformance.protocol import by_name, names, run_checks
from tests.support.group import Group, running
from tests.support.target import Volume

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

MIB = 1 << 20
SUITES = (
    "CompareAndWrite",
    "ExtendedCopy",
    "GetLBAStatus",
    "OrWrite",
    "ProutPreempt",
    "ProutReserve",
    "Read16",
    "Reserve6",
    "Unmap",
    "Verify16",
    "Write16",
    "WriteAtomic16",
    "WriteSame16",
)
NOTHING_TO_REDIRECT = {"redirect-before-authentication", "redirect-no-loop", "redirect-without-tag"}
NOTHING_TO_REDIRECT |= {"redirect-temporarily"}


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Group]:
    with running(Group(tmp_path_factory.mktemp("group"))) as group:
        yield group


@pytest.fixture(scope="module")
def volume(group: Group) -> Volume:
    """Parts of 1 MiB: the suites' longest transfers reach over their ends."""
    return group.create_volume("conformance", 6 * MIB)


def failures(outcomes: Outcomes) -> list[str]:
    good = (Verdict.PASSED, Verdict.SKIPPED)
    return [f"{test}: {one.verdict}\n{one.detail}" for test, one in outcomes.items() if one.verdict not in good]


@pytest.mark.tool("iscsi-test-cu")
def test_no_test_fails_through_one_of_the_members(group: Group, volume: Volume) -> None:
    outcomes = run_suites([group.at(volume, 1).url], SUITES)
    assert not failures(outcomes), "\n".join(failures(outcomes))
    assert sum(one.verdict is Verdict.PASSED for one in outcomes.values()) > len(SUITES)


@pytest.mark.tool("iscsi-test-cu")
def test_every_multipath_test_passes_with_two_members(group: Group) -> None:
    volume = group.create_volume("multipath", 6 * MIB)  # its tests expect a volume without data
    outcomes = run_suites([group.at(volume, 0).url, group.at(volume, 2).url], [MULTIPATH_SUITE])
    assert not failures(outcomes), "\n".join(failures(outcomes))
    assert [one.verdict for one in outcomes.values()] == [Verdict.PASSED] * 4


def test_the_protocol_checks_pass_across_members(group: Group, volume: Volume, tmp_path: Path) -> None:
    others = [word for member in group.members[1:] for word in ("--portal", member.portal)]
    status, report = run_checks(volume, *others, "--api", group[0].api, "--api-token-file", str(group[0].token_file))
    assert {name: by_name(report)[name]["seen"] for name in names(report, "failed")} == {}
    assert status == 0
    passed = names(report, "passed")
    assert passed >= {name for name in by_name(report) if name.startswith(("group-", "reinstate-"))}
    assert names(report, "not applicable") >= NOTHING_TO_REDIRECT
