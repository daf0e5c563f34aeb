"""The kinds of volume that the conformance suites run on, and running them there."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.conformance.iscsi_test_cu import Outcomes, run_suites
from tests.support.group import Group
from tests.support.target import Options, Target

# The test Sanitize.Reset wants to find a SANITIZE still under way after 3 s of sleep, five resets and a new login; a
# member overwrites 64 MiB/s.
VOLUME_BYTES = 512 << 20
MULTIPATH = "multipath"  # a second URL of the same volume, at another member of a group: the suite of that name only
MULTIPATH_SUITE = "MultipathIO"
# Most tests that write take it for a failure when a write-protected volume refuses, so on such a volume they may not
# write. This suite is made for it: it tries every writing command and wants each to be refused.
READ_ONLY_SUITES = frozenset({"ReadOnly"})

KINDS: dict[str, Options] = {
    "normal-512": Options(block_size=512),
    "normal-4096": Options(block_size=4096),
    "read-only": Options(read_only=True),
    "removable": Options(removable=True),
    MULTIPATH: Options(),
}


def run_kind(
    start: Callable[[Path], Target | Group],
    directory: Path,
    kind: str,
    suites: Iterable[str] = (),
    tell: Callable[[str], None] | None = None,
) -> Outcomes:
    """Run the suites on a new target with one volume of that kind. `start` makes the target, not yet running."""
    target = start(directory)
    target.start()
    try:
        volume = target.create_volume("conformance", VOLUME_BYTES, KINDS[kind])
        if kind == MULTIPATH:
            second = target.at(volume, 1) if isinstance(target, Group) else volume
            return run_suites([volume.url, second.url], [MULTIPATH_SUITE], tell)
        return run_suites([volume.url], suites, tell, READ_ONLY_SUITES if volume.options.read_only else None)
    finally:
        target.kill()


def run_kinds(
    start: Callable[[Path], Target | Group],
    directory: Path,
    kinds: Iterable[str] = KINDS,
    suites: Iterable[str] = (),
    tell: Callable[[str], None] | None = None,
) -> dict[str, Outcomes]:
    """Run the suites on each kind, side by side: most of their time they sleep. A target each, so none sees another."""
    with ThreadPoolExecutor(max_workers=len(KINDS)) as pool:
        runs = {kind: pool.submit(run_kind, start, directory / kind, kind, suites, tell) for kind in kinds}
    return {kind: run.result() for kind, run in runs.items()}
