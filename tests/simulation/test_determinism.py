"""The same seed gives the same run: in the same process after others, in another one, and without some rule."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.simulation.mutants import mutated
from tests.simulation.scenarios import SCENARIOS
from tests.simulation.world import simulate

ROOT = Path(__file__).resolve().parents[2]
SEED = 7
DURATION_S = 0.4
NAMES = (
    "one-crashes",
    "group",
    "group-moves",
    "group-network",
    "group-store",
    "group-fencing",
    "group-operated",
    "step/committing-unanswered-unlock/kill-source",
    "step/handing-over-done-route/power-destination",
)


def _elsewhere(names: tuple[str, ...], hash_seed: int) -> dict[str, str]:
    """The digests of the traces, in another process, by scenario."""
    command = [sys.executable, "-m", "tests.simulation", "--seed", str(SEED), "--quiet", "--duration", str(DURATION_S)]
    for name in names:
        command += ["--scenario", name]
    environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    return dict(re.findall(r"scenario (\S+): all is well.* trace (\w+)", done.stdout))


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_same_seed_gives_the_same_run() -> None:
    here = {name: simulate(SEED, replace(SCENARIOS[name], duration_s=DURATION_S)).digest for name in NAMES}
    assert len(set(here.values())) == len(NAMES)
    assert _elsewhere(NAMES[::-1], 4711) == here


@pytest.mark.slow
@pytest.mark.parametrize("name", ["group-moves", "group-fencing"])
def test_again_in_the_same_process(name: str) -> None:
    first, second = (simulate(SEED, SCENARIOS[name]) for _ in range(2))
    assert (first.digest, first.steps, first.commands) == (second.digest, second.steps, second.commands)


def test_again_without_some_rule() -> None:
    digests = []
    for mutant in ("not-mirrored", "not-mirrored", None, None):
        with mutated(mutant):
            digests.append(simulate(SEED, SCENARIOS["group-calm-moves"]).digest)
    assert digests[0] == digests[1] != digests[2] == digests[3]
