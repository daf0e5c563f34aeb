"""Three members as processes: sessions moved by hand under verified load, and a group that balances itself."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from initiator_sim.personalities import PERSONALITIES
from tests.support.group import Group, running
from tests.support.target import PLAIN, Volume, wait_for

SIMULATOR = Path(sys.executable).with_name("initiator-sim")
MIB = 1 << 20
MOVES = 10
"""Generous: a machine that is busy with other tests delays everybody; what is usual is in docs/balancing.md."""


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Group]:
    with running(Group(tmp_path)) as started:
        yield started


def load(volume: Volume, seconds: float, *options: str) -> subprocess.Popen[str]:
    words = [str(SIMULATOR), "run", volume.portal, volume.iqn, "--seconds", str(seconds), "--verify", "--strict"]
    words += ["--workload", "randrw", "--depth", "8", "--json", *options]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def report_of(process: subprocess.Popen[str]) -> dict[str, Any]:
    output, errors = process.communicate(timeout=120)
    assert output, errors
    report: dict[str, Any] = json.loads(output)
    return report


def assert_unharmed(report: dict[str, Any], group: Group) -> None:
    assert report["ok"], f"{report}\n{group.diagnosis()}"
    assert report["errors"] == 0
    assert report["verify"]["violation_count"] == 0


def sessions(group: Group) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = group[0].ask("GET", "/sessions")
    return found


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("personality", sorted(PERSONALITIES))
def test_a_session_is_moved_ten_times_under_load(group: Group, personality: str) -> None:
    volume = group.create_volume("disk", 24 * MIB)
    process = load(volume, 60 if personality == "libiscsi" else 30, "--personality", personality)
    try:
        wait_for(lambda: len(sessions(group)) == 1, 20, "the session")
        names = [member.member_name for member in group]
        for number in range(MOVES):
            (session,) = sessions(group)
            to = [name for name in names if name != session["member"]][number % 2]
            moved = group[number % 3].ask("POST", f"/sessions/{session['id']}/move", {"to": to})
            assert (moved["member"], moved["dropped"]) == (to, False), f"{moved}\n{group.diagnosis()}"
            (session,) = sessions(group)
            assert (session["id"], session["member"]) == (moved["id"], to)
    finally:
        report = report_of(process)
    assert_unharmed(report, group)
    assert report["moves"] >= MOVES
    print(f"{personality}: longest pause {report['longest_pause_s']} s")


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_what_is_apart_comes_together_and_stays(group: Group) -> None:
    """Volumes of which each lies on another member; all sessions at the first. Nobody is overloaded, but each I/O of
    two of them is forwarded: the group gains by moving those sessions, or their data, and by nothing else."""
    volumes = [
        group[0].create_volume(f"at-{name}", 24 * MIB, PLAIN, "--members", name)
        for name in (member.member_name for member in group)
    ]
    processes = [
        load(one, 80, "--rate", "150", "--name", f"iqn.2026-01.org.example:{one.name}", "--seed", str(number))
        for number, one in enumerate(volumes)
    ]
    try:
        wait_for(lambda: len(sessions(group)) == 3, 20, "three sessions")
        assert {one["member"] for one in sessions(group)} == {"m1"}
        group.set_policy("adaptive")

        def all_local() -> bool:
            return all(one["owners"].get(one["member"], 0.0) > 0.95 for one in sessions(group))

        wait_for(all_local, 60, "every session is where its volume is")
        actions = group[0].ask("GET", "/balance")["actions"]
        done = {one["decision"]["volume"] for one in actions if one["outcome"] == "done"}
        assert done == {"at-m2", "at-m3"}, actions
        for action in actions:
            assert action["decision"]["efficiency_after"] >= action["decision"]["efficiency_before"]
        loads = {one["member"]: one for one in group[1].ask("GET", "/load")}
        assert {one["state"] for one in loads.values()} == {"fresh"}
        # Nothing is left to be gained: what was decided last was not to move anything.
        decisions = group[2].ask("POST", "/balance/run", {"dry_run": True})["decisions"]
        assert not any(one["taken"] for one in decisions), decisions
        assert all(one["reason"] for one in decisions)
        # The one that was at home from the beginning is left where it is, and `balance explain` says why.
        wait_for(lambda: bool(group[1].json("balance", "explain")), 20, "a look that decides nothing")
        explained = {one["volume"]: one for one in group[1].json("balance", "explain")}
        assert not explained["at-m1"]["taken"]
        assert "gain" in explained["at-m1"]["reason"], explained["at-m1"]
    finally:
        reports = [report_of(process) for process in processes]
    for report in reports:
        assert_unharmed(report, group)
