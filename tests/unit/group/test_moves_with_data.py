"""Sessions that take what they touch along: a member that has all the load, and all the data, gives some of it away."""

from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from san_target.group.connection_balancer import plan_moves
from san_target.group.data_balancer import plan_migrations
from san_target.group.decisions import RULES, Decision, Kind, View, chosen
from san_target.group.efficiency import Flow, RangeFlow, model_of
from tests.unit.group.load_kit import GIB, load, session, view

NAMES = ("m1", "m2", "m3")
STEP_S = 4.0
MIB = 1 << 20


def range_of(name: str, owner: str, by_ingress: dict[str, float], size_bytes: int = 16 * MIB) -> RangeFlow:
    return RangeFlow(f"v-{name}", 0, size_bytes // 512, owner, size_bytes, by_ingress, 4096.0)


@dataclass
class Disk:
    """A volume at one member, with one session."""

    name: str
    iops: float
    at: str = "m1"
    owner: str = "m1"
    size_bytes: int = 16 * MIB


def seen(disks: list[Disk], limit: float = 1.0) -> View:
    """The group as it is; what it touches is told by each session."""
    sessions = {name: [session(d.name, d.iops, {d.owner: 1.0}) for d in disks if d.at == name] for name in NAMES}
    group = view(*(load(name, *found, limit=limit) for name, found in sessions.items()))
    return replace(group, ranges=[range_of(d.name, d.owner, {d.at: d.iops}, d.size_bytes) for d in disks])


def settle(disks: list[Disk], limit: float = 1.0, steps: int = 40) -> list[Decision]:
    """What is decided and done, until nothing is for a whole minute; one action at a time, as in a small group."""
    by_volume = {f"v-{disk.name}": disk for disk in disks}
    moved: dict[str, float] = {}
    migrated: dict[str, float] = {}
    stays: dict[tuple[str, int, int], float] = {}
    following: dict[str, str] = {}
    done: list[Decision] = []
    quiet = 0
    for step in range(steps):
        now_s = 10_000.0 + step * STEP_S
        group = replace(
            seen(disks, limit), now_s=now_s, moved=moved, migrated=migrated, stays=stays, following=following
        )
        taken = chosen([*plan_moves(group), *plan_migrations(group)], RULES, len(NAMES))
        quiet = 0 if taken else quiet + 1
        if quiet * STEP_S > 60:
            return done
        for one in taken:
            done.append(one)
            disk = by_volume[one.volume_id]
            if one.kind is Kind.MOVE:
                disk.at, moved[one.volume_id] = one.destination, now_s
                following.pop(one.volume_id, None)
                if one.with_data:
                    following[one.volume_id] = one.destination
            else:
                disk.owner, migrated[one.volume_id] = one.destination, now_s
                stays[one.volume_id, one.start_lba, one.end_lba] = now_s
    raise AssertionError(f"it never settles: {done[-6:]}")


@pytest.mark.parametrize(("iops", "limit"), [(30_000.0, 1.0), (6_000.0, 0.2)])
def test_all_load_and_all_data_at_one_member_is_spread(iops: float, limit: float) -> None:
    disks = [Disk(f"d{number}", iops) for number in range(6)]
    before = seen(disks, limit).model.efficiency()
    done = settle(disks, limit)
    assert sorted(disk.at for disk in disks) == ["m1", "m1", "m2", "m2", "m3", "m3"]
    assert all(disk.at == disk.owner for disk in disks)
    # Of each of four volumes the session, and at once what it touches; nothing else.
    assert [one.kind for one in done] == [Kind.MOVE, Kind.MIGRATE] * 4
    assert [one.volume_id for one in done[::2]] == [one.volume_id for one in done[1::2]]
    assert "with 16 MiB that it touches at m1: m1 is busy" in done[0].reason
    assert all(one.after > one.before for one in done)
    assert seen(disks, limit).model.efficiency() > 3 * before


def test_a_member_that_is_not_busy_keeps_what_is_its_own() -> None:
    assert settle([Disk(f"d{number}", 2_000.0) for number in range(6)]) == []


def test_little_more_to_do_than_another_is_no_reason_to_bring_data_about() -> None:
    disks = [
        Disk("d0", 30_000.0),
        Disk("d1", 15_000.0),
        Disk("d2", 30_000.0, "m2", "m2"),
        Disk("d3", 20_000, "m3", "m3"),
    ]
    assert settle(disks) == []


def test_one_session_that_fills_a_member_stays() -> None:
    """Wherever it was, it would be the same."""
    assert settle([Disk("d0", 140_000.0)]) == []


def decision_of(group: View) -> Decision:
    (found,) = (one for one in plan_moves(group) if one.session == "d0")
    return found


def test_what_the_data_cannot_do_the_session_does_not() -> None:
    disks = [Disk(f"d{number}", 30_000.0) for number in range(5)]
    group = seen(disks)
    assert decision_of(group).with_data
    now_s = group.now_s
    full = {name: load(name, *group.loads[name].details, free=GIB // 32) for name in NAMES}
    for other in (
        replace(group, stays={("v-d0", 0, 8): now_s - 100}),
        replace(group, moved={"v-d0": now_s - 10}),
        replace(group, loads=full),
        replace(group, ranges=[]),
        seen([Disk("d0", 30_000.0, size_bytes=8 << 40), *disks[1:]]),
    ):
        found = decision_of(other)
        assert (found.taken, found.with_data) == (False, False)
        assert "gain" in found.reason


def test_a_session_waits_for_what_follows_it() -> None:
    group = seen([Disk("d0", 5_000.0, at="m2", owner="m1")])
    assert decision_of(group).taken
    group = replace(group, following={"v-d0": "m2"}, moved={"v-d0": group.now_s - 4})
    found = decision_of(group)
    assert (found.taken, found.reason) == (False, "it was moved lately, for what it touches to follow it")
    (follows,) = plan_migrations(group)
    assert (follows.taken, follows.destination) == (True, "m2")
    (rests,) = plan_migrations(replace(group, following={}))
    assert "a session of it was moved lately" in rests.reason


def test_data_is_not_brought_to_a_busy_member_if_its_session_may_leave_it() -> None:
    disks = [*(Disk(f"d{number}", 28_000.0) for number in range(4)), Disk("away", 28_000.0, owner="m2")]
    group = seen(disks)
    (found,) = (one for one in plan_migrations(group) if one.volume_id == "v-away")
    assert (found.taken, found.reason) == (False, "more is gained when its session goes to m2")
    # A session that cannot go, or did not go when it was asked to, gets its data.
    sulking = replace(group, sulking={("v-away", "iqn.2026-01.x:away"): group.now_s + 1})
    (found,) = (one for one in plan_migrations(sulking) if one.volume_id == "v-away")
    assert (found.taken, found.destination) == (True, "m1")
    # Where nobody is busy it is all the same.
    (found,) = plan_migrations(seen([Disk("away", 500.0, owner="m2")]))
    assert (found.taken, found.destination) == (True, "m1")


@given(
    st.floats(1, 60_000),
    st.floats(0, 60_000),
    st.floats(0, 1),
    st.lists(st.floats(0, 30_000), min_size=2, max_size=2),
    st.sampled_from([1.0, 0.2]),
)
def test_what_is_predicted_of_both_is_what_both_do(
    iops: float, other_iops: float, share: float, of_others: list[float], limit: float
) -> None:
    """The session, one beside it, and others at other members that use the same range."""
    owners = {"m1": share, "m3": 1.0 - share}
    loads = {
        "m1": load("m1", session("a", iops, owners), session("b", other_iops, {"m1": 1.0}), limit=limit),
        "m2": load("m2", session("c", of_others[0], {"m1": 1.0})),
        "m3": load("m3", session("d", of_others[1], {"m1": 1.0})),
    }
    by_ingress = {"m1": iops * share, "m2": of_others[0], "m3": of_others[1]}
    moved, flow = range_of("a", "m1", by_ingress), Flow("m1", iops, 4096.0, owners)
    model = model_of(loads)
    before_s = model.total_s()
    effect = model.effect_of_move_with(flow, [moved], "m2")
    assert model.total_s() == before_s  # it only looks
    model.move(flow, "m2")
    after = {"m1": 0.0, "m2": of_others[0] + iops * share, "m3": of_others[1]}
    model.migrate(replace(moved, by_ingress=after), "m2")
    assert model.total_s() == pytest.approx(before_s - effect.gain_s, abs=1e-9, rel=1e-6)
