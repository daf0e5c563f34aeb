"""What all tests share: options, the skipping of tests whose tools are missing, and hypothesis' profile."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support.file_systems import Ext4, MountRefused, ext4, tmpfs
from tests.support.tools import missing_packages

# A busy machine must not fail a property: no deadlines. A failure prints the blob that reproduces it.
settings.register_profile("san-target", deadline=None, print_blob=True)
settings.load_profile("san-target")

GUEST_TOOLS = ("qemu-system-x86_64", "cpio", "mke2fs", "depmod", "apt-get", "flock")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--target",
        choices=["san-target", "tgt"],
        default="san-target",
        help="the target under the end-to-end tests; tgt shows that a test is sound where both must pass",
    )


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip, with the packages to install, what needs tools that this machine lacks."""
    tools = {tool for mark in item.iter_markers("tool") for tool in mark.args}
    if item.get_closest_marker("guest"):
        tools.update(GUEST_TOOLS)
    packages = missing_packages(tools)
    if packages:
        pytest.skip(f"not installed: {', '.join(packages)}")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mount a tmpfs of so many bytes; unmounted with the test. Skips where that is not permitted."""
    with contextlib.ExitStack() as mounted:

        def mount(size_bytes: int) -> Path:
            try:
                return mounted.enter_context(tmpfs(tmp_path / "small-disk", size_bytes))
            except MountRefused as reason:
                pytest.skip(str(reason))

        yield mount


@pytest.fixture
def ext4_disk(tmp_path: Path) -> Iterator[Callable[[int], Ext4]]:
    """Mount an ext4 of so many bytes, which can lose its power or break; as `small_disk` otherwise."""
    with contextlib.ExitStack() as mounted:

        def mount(size_bytes: int) -> Ext4:
            try:
                return mounted.enter_context(ext4(tmp_path / "ext4-disk", size_bytes))
            except MountRefused as reason:
                pytest.skip(str(reason))

        yield mount
