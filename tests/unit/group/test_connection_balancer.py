"""Which session is moved where, and why not: each rule, and that no decision makes the group worse."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from san_target.group.connection_balancer import cost_of, plan_moves
from san_target.group.decisions import RULES, Decision, View, chosen
from san_target.peer.load_report import MemberLoad, SessionLoad
from tests.unit.group.load_kit import load, session, view

NAMES = ("m1", "m2", "m3")


def best(seen: View) -> Decision | None:
    taken = chosen(plan_moves(seen), RULES, len(seen.loads))
    return taken[0] if taken else None


def all_on_one(count: int = 6, iops: float = 30_000) -> View:
    return view(load("m1", *(session(f"s{number}", iops) for number in range(count))), load("m2"), load("m3"))


def test_from_a_busy_member_to_an_idle_one() -> None:
    found = best(all_on_one())
    assert found is not None
    assert (found.source, found.destination in ("m2", "m3")) == ("m1", True)
    assert found.after > found.before
    assert "m1 is busy" in found.reason


def test_to_where_its_blocks_are_though_no_member_is_busy() -> None:
    found = best(view(load("m1", session("a", 500, {"m2": 0.9, "m1": 0.1})), load("m2"), load("m3")))
    assert found is not None
    assert (found.session, found.destination) == ("a", "m2")
    assert "90% of what it touches is at m2" in found.reason
    assert found.before < found.after


@pytest.mark.parametrize(
    "owners", [{"m1": 0.34, "m2": 0.33, "m3": 0.33}, {"m1": 0.5, "m2": 0.5}, {"m1": 1.0}, {"m1": 0.6, "m2": 0.4}]
)
def test_nothing_is_gained_by_what_lies_everywhere_or_is_at_home(owners: dict[str, float]) -> None:
    decisions = plan_moves(view(load("m1", session("a", 500, owners)), load("m2"), load("m3")))
    assert [(one.taken, one.session) for one in decisions] == [(False, "a")]
    assert "gain" in decisions[0].reason


def test_a_session_that_hardly_does_anything_is_not_worth_the_pause() -> None:
    decisions = plan_moves(view(load("m1", session("a", 1.0, {"m2": 1.0})), load("m2")))
    assert not decisions[0].taken
    assert "at a cost of" in decisions[0].reason


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"held": "it holds RESERVE(6)"}, "RESERVE(6)"),
        ({"age_s": 5.0}, "stays for 20 s"),
    ],
)
def test_who_stays(change: dict[str, object], reason: str) -> None:
    one = session("a", 500, {"m2": 1.0}, **change)  # type: ignore[arg-type]
    decisions = plan_moves(view(load("m1", one), load("m2")))
    assert not decisions[0].taken
    assert reason in decisions[0].reason


def test_what_was_touched_lately_rests() -> None:
    seen = view(load("m1", session("a", 500, {"m2": 1.0})), load("m2"))
    assert best(seen) is not None
    for resting, reason in (
        (replace(seen, migrated={"v-a": seen.now_s - 5}), "migrated lately; 25 s to go"),
        (replace(seen, busy=frozenset({"v-a"})), "is being moved"),
        (replace(seen, sulking={("v-a", "iqn.2026-01.x:a"): seen.now_s + 1}), "did not obey"),
    ):
        decisions = plan_moves(resting)
        assert not decisions[0].taken
        assert reason in decisions[0].reason


def test_sessions_of_one_initiator_are_kept_apart() -> None:
    pair = [session(f"s{number}", 20_000, volume="v", initiator="iqn.x:one") for number in range(2)]
    found = best(view(load("m1", *pair), load("m2")))
    assert found is not None
    assert "one initiator" in found.reason
    apart = view(load("m1", pair[0], *(session(f"t{n}", 60_000) for n in range(2))), load("m2", pair[1]))
    decisions = {one.session: one for one in plan_moves(apart)}
    assert not decisions["s0"].taken
    assert "another session of the same initiator" in decisions["s0"].reason
    assert decisions["t0"].taken


def test_a_drained_member_is_left_and_gets_nothing() -> None:
    seen = view(
        load("m1", session("a", 0.0), session("held", 5.0, held="it holds RESERVE(6)")),
        load("m2", session("b", 90_000), session("c", 90_000)),
        leaving=frozenset({"m1"}),
    )
    decisions = {one.session: one for one in plan_moves(seen)}
    assert (decisions["a"].taken, decisions["a"].destination) == (True, "m2")
    assert "drained" in decisions["a"].reason
    assert not decisions["held"].taken
    assert not decisions["b"].taken


def test_members_that_are_silent_or_closed_get_nothing() -> None:
    seen = all_on_one()
    assert best(replace(seen, serving=frozenset({"m1", "m9"}))) is None
    silent = view(load("m1", *(session(f"s{number}", 30_000, {"m9": 1.0}) for number in range(4))))
    assert all(not one.taken for one in plan_moves(silent))


def test_a_move_costs_its_pause() -> None:
    assert cost_of(session("a", 10_000, depth=32)) == pytest.approx(0.02 + 10_000 * 0.00125 + 1.6)


def settle(seen: View, rounds: int = 400) -> tuple[View, list[Decision]]:
    """Carry out what is decided, one after the other, with the load as it is."""
    done: list[Decision] = []
    for _ in range(rounds):
        found = best(seen)
        if found is None:
            return seen, done
        done.append(found)
        loads: dict[str, MemberLoad] = {}
        going = next(one for one in seen.loads[found.source].details if one.id == found.session)
        for name, each in seen.loads.items():
            kept = [one for one in each.details if one.id != found.session]
            loads[name] = load(name, *kept, *([going] if name == found.destination else []))
        seen = view(*loads.values(), leaving=seen.leaving)
    raise AssertionError(f"it never settles: {done[-4:]}")


@st.composite
def groups(draw: st.DrawFn) -> View:
    count = draw(st.integers(2, 6))
    names = [f"m{number}" for number in range(count)]
    number = 0
    loads = []
    for name in names:
        details: list[SessionLoad] = []
        for _ in range(draw(st.integers(0, 6))):
            number += 1
            first, second = draw(st.sampled_from(names)), draw(st.sampled_from(names))
            share = draw(st.sampled_from([0.0, 0.5, 0.9, 1.0]))
            owners = {first: 1.0} if first == second else {first: share, second: 1.0 - share}
            iops = draw(st.sampled_from([0.0, 10.0, 1000.0, 20_000.0, 80_000.0]))
            details.append(session(f"s{number}", iops, owners, depth=draw(st.sampled_from([1.0, 32.0]))))
        loads.append(load(name, *details))
    return view(*loads)


@settings(max_examples=150, deadline=None)
@given(groups())
def test_it_settles_never_back_and_forth_and_each_step_makes_the_group_better(seen: View) -> None:
    """Nor does a session ever come back to a member that it has left: what was better then is better still."""
    settled, done = settle(seen)
    for one in done:
        assert one.after >= one.before
        assert one.gain_s > 0
    efficiencies = [one.before for one in done] + [settled.model.efficiency()]
    assert efficiencies == sorted(efficiencies)
    assert len(done) <= 3 * sum(len(each.details) for each in seen.loads.values())


@settings(max_examples=50, deadline=None)
@given(groups())
def test_what_is_done_at_a_time_concerns_different_members(seen: View) -> None:
    taken = chosen(plan_moves(seen), RULES, 64)
    concerned = [name for one in taken for name in (one.source, one.destination)]
    assert len(concerned) == len(set(concerned))
    gain = sum(one.gain_s for one in taken)
    before = seen.model.total_s()
    for one in taken:
        flow = next(each for each in seen.loads[one.source].details if each.id == one.session)
        from san_target.group.efficiency import flow_of

        seen.model.move(flow_of(flow, one.source), one.destination)
    assert seen.model.total_s() == pytest.approx(before - gain, abs=1e-9, rel=1e-9)
