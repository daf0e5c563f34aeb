"""Fixtures of the end-to-end tests: a target, a Linux guest, and what to look at when a test fails."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.guest.machine import Guest, NoImages, images
from tests.support.group import Group, running
from tests.support.group_store import chosen_store
from tests.support.group_trial import FIGURES, told_recoveries
from tests.support.member import Member
from tests.support.target import Target
from tests.support.tgt import Tgt

TargetKind = Callable[[Path], Target]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add logs and consoles to the report of a failed test."""
    report = yield
    if report.failed and isinstance(item, pytest.Function):
        for name, value in item.funcargs.items():
            if isinstance(value, Target | Guest | Group):
                report.sections.append((f"log of {name}", value.diagnosis()))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What was measured and not judged."""
    figures = [*FIGURES, *told_recoveries()]
    if figures:
        terminalreporter.section("measured, not judged")
        for figure in figures:
            terminalreporter.write_line(figure)


def kill_all(targets: list[Target]) -> None:
    for target in targets:
        target.kill()


@pytest.fixture(scope="session")
def target_kind(request: pytest.FixtureRequest) -> TargetKind:
    """What --target chose."""
    return Tgt if request.config.getoption("--target") == "tgt" else Member


@pytest.fixture
def start_target(tmp_path: Path, target_kind: TargetKind) -> Iterator[Callable[[], Target]]:
    """Start further targets of the chosen kind; they end with the test."""
    targets: list[Target] = []

    def start() -> Target:
        targets.append(target_kind(tmp_path / f"target-{len(targets)}"))
        targets[-1].start()
        return targets[-1]

    yield start
    kill_all(targets)


@pytest.fixture
def target(start_target: Callable[[], Target]) -> Target:
    """A running target of the chosen kind, without volumes."""
    return start_target()


@pytest.fixture
def member(tmp_path: Path) -> Iterator[Member]:
    """A running member of san-target, whatever --target says."""
    member = Member(tmp_path / "member")
    try:
        member.start()
        yield member
    finally:
        member.kill()


@pytest.fixture
def new_member(tmp_path: Path, small_disk: object, ext4_disk: object) -> Iterator[Callable[..., Member]]:
    """Further members, not yet started, each with a directory of its own; arguments as of `Member`.

    They end before the disks that they lie on are unmounted.
    """
    members: list[Member] = []

    def make(*options: str, **places: Path) -> Member:
        members.append(Member(tmp_path / f"member-{len(members)}", *options, **places))
        return members[-1]

    yield make
    for each in members:
        each.kill()


@pytest.fixture(scope="session")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Group]:
    """Three running members, for all tests that leave them as they are."""
    directory = tmp_path_factory.mktemp("group")
    with ExitStack() as stack:
        group = stack.enter_context(running(Group(directory, store_url=chosen_store(stack, directory))))
        yield group


@pytest.fixture
def tgt(tmp_path: Path) -> Iterator[Tgt]:
    """A running tgtd, whatever --target says."""
    tgt = Tgt(tmp_path / "tgt")
    try:
        tgt.start()
        yield tgt
    finally:
        tgt.kill()


@pytest.fixture(scope="session")
def guest_images() -> Path:
    try:
        return images()
    except NoImages as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def guest_machine(guest_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    with Guest(guest_images, tmp_path_factory.mktemp("guest")) as machine:
        yield machine


@pytest.fixture
def guest(guest_machine: Guest) -> Iterator[Guest]:
    """The module's guest with no session and no record of a target; booted again if it died in the test before."""
    if not guest_machine.alive:
        guest_machine.boot()
    yield guest_machine
    if guest_machine.alive:
        guest_machine.forget_targets()
