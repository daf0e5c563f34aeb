"""The model of the group: what it predicts, and that what it says of a change is what the change does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from san_target.group.efficiency import COSTS, Flow, RangeFlow, flow_of, model_of, queue
from san_target.peer.load_report import MemberLoad
from tests.unit.group.load_kit import load, session

NAMES = ("m1", "m2", "m3")


def test_a_group_without_load_is_as_good_as_it_gets() -> None:
    assert model_of({"m1": load("m1")}).efficiency() == 1.0


def test_idle_local_load_is_almost_ideal_and_remote_load_is_not() -> None:
    local = model_of({"m1": load("m1", session("a", 100, {"m1": 1.0})), "m2": load("m2")})
    remote = model_of({"m1": load("m1", session("a", 100, {"m2": 1.0})), "m2": load("m2")})
    assert local.efficiency() > 0.99
    assert remote.efficiency() < 0.1  # a hop takes much longer than the I/O itself
    assert remote.hops_s == pytest.approx(100 * COSTS.hop_s)


def test_one_busy_member_is_worse_than_three() -> None:
    sessions = [session(f"s{number}", 40_000) for number in range(3)]
    one = model_of({"m1": load("m1", *sessions), "m2": load("m2"), "m3": load("m3")})
    three = model_of({name: load(name, each) for name, each in zip(NAMES, sessions, strict=True)})
    assert one.efficiency() < three.efficiency() / 2


@given(st.floats(0, 3), st.floats(0, 3))
def test_a_queue_only_grows(less: float, more: float) -> None:
    less, more = sorted((less, more))
    assert queue(less) <= queue(more)


def test_queue_has_no_step_at_its_knee() -> None:
    assert queue(0.9) == pytest.approx(10.0)
    assert queue(0.9000001) == pytest.approx(10.0, rel=1e-3)


def test_a_busier_cpu_than_the_model_says_is_a_slower_machine() -> None:
    quick = model_of({"m1": load("m1", session("a", 50_000), cpu=0.35), "m2": load("m2")})
    slow = model_of({"m1": load("m1", session("a", 50_000), cpu=0.7), "m2": load("m2")})
    assert slow.stations["m1"].busy == pytest.approx(0.7)
    assert slow.stations["m1"].scale > quick.stations["m1"].scale
    # That is no fault of how the load is spread.
    idle = model_of({"m1": load("m1", session("a", 10_000), cpu=0.2), "m2": load("m2")})
    assert idle.stations["m1"].scale > 2
    assert idle.efficiency() == pytest.approx(1 - 0.2)
    other = model_of({"m1": load("m1", cpu=0.6)})
    assert [other.stations["m1"].background, other.stations["m1"].scale] == pytest.approx([0.6, 1.0])


def test_a_member_that_may_use_a_fifth_of_a_cpu_is_as_busy_as_a_whole_one() -> None:
    sessions = [session(f"s{number}", 5_000, {"m1": 1.0}) for number in range(3)]
    names = {"m1": load("m1", *sessions, cpu=0.2, limit=0.2), "m2": load("m2", cpu=0.002, limit=0.2)}
    limited = model_of(names)
    assert limited.stations["m1"].busy == pytest.approx(1.0)
    assert limited.stations["m2"].scale == pytest.approx(5.0, rel=0.05)  # nothing is known of it but its limit
    whole = model_of({"m1": load("m1", *sessions, cpu=0.2), "m2": load("m2", cpu=0.002)})
    assert whole.stations["m1"].busy == pytest.approx(0.2)
    assert limited.efficiency() < whole.efficiency() / 4
    # What is forwarded from there is relief: seen only by who knows the limit.
    remote = session("r", 2_000, {"m2": 1.0})
    with_remote = {"m1": load("m1", *sessions, remote, cpu=0.2, limit=0.2), "m2": load("m2", cpu=0.02, limit=0.2)}
    model = model_of(with_remote)
    assert model.effect_of_move(flow_of(remote, "m1"), "m2").gain_s > 2_000 * COSTS.hop_s


shares = st.dictionaries(st.sampled_from(NAMES), st.floats(0.01, 1.0), max_size=3).map(
    lambda found: {name: share / sum(found.values()) for name, share in found.items()}
)
flows = st.builds(
    lambda name, iops, owners: session(name, iops, owners), st.uuids().map(str), st.floats(0, 60_000), shares
)


@st.composite
def groups(draw: st.DrawFn) -> dict[str, MemberLoad]:
    return {
        name: load(
            name,
            *draw(st.lists(flows, max_size=3)),
            cpu=draw(st.sampled_from([0.0, 0.2, 0.95])),
            limit=draw(st.sampled_from([1.0, 0.2])),
        )
        for name in NAMES
    }


@given(groups(), st.data())
def test_a_move_changes_the_total_by_what_was_predicted(loads: dict[str, MemberLoad], data: st.DataObject) -> None:
    sessions = [(name, one) for name, each in loads.items() for one in each.details]
    if not sessions:
        return
    member, chosen = data.draw(st.sampled_from(sessions))
    to = data.draw(st.sampled_from([name for name in NAMES if name != member]))
    model = model_of(loads)
    before, flow = model.total_s(), flow_of(chosen, member)
    effect = model.effect_of_move(flow, to)
    moved = model.move(flow, to)
    assert model.total_s() == pytest.approx(before - effect.gain_s, abs=1e-9, rel=1e-9)
    back = model.effect_of_move(moved, member)
    assert back.gain_s == pytest.approx(-effect.gain_s, abs=1e-9, rel=1e-6)
    assert 0.0 < model.efficiency() <= 1.0


@given(groups(), shares, st.floats(1, 20_000), st.sampled_from(NAMES), st.data())
def test_a_migration_changes_the_total_by_what_was_predicted(
    loads: dict[str, MemberLoad], by_ingress: dict[str, float], iops: float, owner: str, data: st.DataObject
) -> None:
    """Where the range's load is in the model, as the sessions that ask for it."""
    for name, share in by_ingress.items():
        more = session(f"r-{name}", iops * share, {owner: 1.0})
        old = loads[name]
        loads[name] = load(name, *old.details, more, cpu=old.cpu_share)
    moved = RangeFlow("v", 0, 100, owner, 1 << 20, {name: iops * share for name, share in by_ingress.items()}, 4096.0)
    to = data.draw(st.sampled_from([name for name in NAMES if name != owner]))
    model = model_of(loads)
    before = model.total_s()
    effect = model.effect_of_migration(moved, to)
    model.migrate(moved, to)
    assert model.total_s() == pytest.approx(before - effect.gain_s, abs=1e-9, rel=1e-6)


def test_a_disk_that_waits_is_a_queue_of_its_own() -> None:
    def with_disk(waits: float, latency_s: float) -> MemberLoad:
        return MemberLoad("m1", 1, 1, owned_iops=2 * waits, storage_waits=waits, storage_latency_s=latency_s)

    busy = model_of({"m1": with_disk(800, 0.02), "m2": MemberLoad("m2", 1, 1)})
    station = busy.stations["m1"]
    assert station.disk_s < 0.02
    assert station.disk_response_s() == pytest.approx(800 * 0.02)
    assert busy.stations["m2"].disk_s == station.disk_s
    moved = RangeFlow("v", 0, 100, "m1", 1 << 20, {"m1": 800.0}, 4096.0)
    assert busy.effect_of_migration(moved, "m2").gain_s > 0


def test_flow_of_a_session_that_sleeps() -> None:
    assert flow_of(session("a", 0.0), "m1") == Flow("m1", 0.0, 0.0, {})
