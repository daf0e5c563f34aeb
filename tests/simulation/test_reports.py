"""What is told of a run that failed; the commands; and the table in the documentation."""

from __future__ import annotations

import io
import re
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from tests.simulation import rules
from tests.simulation.__main__ import main
from tests.simulation.campaign import find_mutants, run_many, shared_out
from tests.simulation.mutants import MUTANTS, mutated
from tests.simulation.report import commit, shorten, tell
from tests.simulation.scenarios import SCENARIOS, USUAL
from tests.simulation.steps import STEPS
from tests.simulation.world import simulate

TESTS = Path(__file__).resolve().parents[1]


def test_the_shortest_run_that_fails_is_told() -> None:
    mutant = MUTANTS["no-range-locks"]
    scenario = SCENARIOS[mutant.scenario]
    with mutated(mutant.name):
        result = simulate(mutant.seed or 0, scenario)
        shortest, shorter = shorten(result, scenario)
        assert shortest.wrong
        assert len(shortest.numbers) <= len(result.numbers)
        assert shortest.steps < result.steps
        told = tell(shortest, shorter)
        assert f"seed {result.seed}, scenario one, commit {commit()}" in told
        assert shortest.last[-1] in told
        # The command that it names does it again.
        arguments = re.findall(r"ARGS='(.*)'", told)[0].replace('"', "").replace("--faults  ", "--faults= ")
        words = ["--seed", str(result.seed), "--quiet", *arguments.split()]
        with redirect_stdout(io.StringIO()) as printed, pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", ["simulation", *words])
            assert main() == 1
    assert shortest.wrong[0].splitlines()[0] in printed.getvalue()


def test_no_more_runs_than_allowed() -> None:
    with mutated("no-range-locks"):
        result = simulate(MUTANTS["no-range-locks"].seed or 0, SCENARIOS["one"])
        assert shorten(result, SCENARIOS["one"], runs_max=0) == (result, SCENARIOS["one"])


def test_all_scenarios_have_their_turn() -> None:
    names = {name for _, name in shared_out(0, 4 * max(len(STEPS), len(USUAL)))}
    assert names == {*USUAL, *STEPS}


@pytest.mark.slow
def test_many_runs_in_processes() -> None:
    lines: list[str] = []
    assert run_many([(seed, "one-calm") for seed in range(3)], 2, lines.append)
    assert lines[-1].startswith("3 runs, 0 failed")


@pytest.mark.slow
def test_mutants_are_looked_for_in_processes() -> None:
    lines: list[str] = []
    assert find_mutants(["no-range-locks"], 0, 5, 1, lines.append)
    assert lines[-1] == "1 of 1 mutants found"


def test_the_table_in_the_documentation() -> None:
    text = (TESTS.parent / "docs" / "testing.md").read_text()
    assert "\n".join(rules.table()) in text, "print it anew: python -m tests.simulation.rules"


def test_every_rule_has_its_test() -> None:
    for number in rules.NUMBERS:
        if not rules.found(number):
            why, test = rules.ELSEWHERE[number]
            assert why
            assert (TESTS / test).exists()
            assert test or why == rules.COPIES


def test_so_many_mutants_are_found() -> None:
    assert sum(mutant.seed is not None for mutant in MUTANTS.values()) >= 20
