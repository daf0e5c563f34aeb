"""Which range is migrated where, and why not."""

from dataclasses import replace

import msgspec
import pytest

from san_target.group.data_balancer import plan_migrations
from san_target.group.decisions import RULES, Decision, Holding, Kind, View, chosen
from san_target.group.efficiency import RangeFlow, model_of
from san_target.peer.load_report import MemberLoad, SessionLoad
from tests.unit.group.load_kit import GIB, load, session, view

MIB = 1 << 20


def one_range(owner: str, by_ingress: dict[str, float], size_bytes: int = 64 * MIB, volume: str = "v") -> RangeFlow:
    return RangeFlow(volume, 0, size_bytes // 512, owner, size_bytes, by_ingress, 4096.0)


def holding(owner: str, size_bytes: int = GIB, volume: str = "v", start: int = 0) -> Holding:
    return Holding(volume, start, start + size_bytes // 512, owner, size_bytes)


def best(seen: View) -> Decision | None:
    taken = chosen(plan_migrations(seen), RULES, len(seen.loads))
    return taken[0] if taken else None


def test_data_goes_to_its_readers_though_nobody_is_busy() -> None:
    seen = view(load("m1", session("a", 2000, {"m2": 1.0})), load("m2"), load("m3"))
    found = best(replace(seen, ranges=[one_range("m2", {"m1": 2000.0})]))
    assert found is not None
    assert (found.kind, found.source, found.destination) == (Kind.MIGRATE, "m2", "m1")
    assert "locality: 100% of its I/O comes through m1" in found.reason
    assert found.after > found.before


def test_not_when_it_is_read_from_everywhere_or_costs_too_much() -> None:
    seen = view(load("m1", session("a", 2000, {"m2": 1.0})), load("m2", session("b", 2000, {"m2": 1.0})), load("m3"))
    assert best(replace(seen, ranges=[one_range("m2", {"m1": 2000.0, "m2": 2000.0})])) is None
    large = replace(seen, ranges=[one_range("m2", {"m1": 600.0}, 40 * GIB)])
    (decision,) = plan_migrations(large)
    assert not decision.taken
    assert "at a cost of" in decision.reason


def test_away_from_a_disk_that_has_too_much_to_do() -> None:
    waits = MemberLoad("m1", 1, 1, owned_iops=2000.0, storage_waits=1000.0, storage_latency_s=0.02,
                       pool_capacity_bytes=100 * GIB, pool_free_bytes=50 * GIB)  # fmt: skip
    loads = {"m1": waits, "m2": load("m2"), "m3": load("m3", session("c", 1000, {"m1": 1.0}))}
    seen = replace(view(*loads.values()), model=model_of(loads), ranges=[one_range("m1", {"m3": 1000.0})])
    found = best(seen)
    assert found is not None
    assert found.source == "m1"
    assert found.gain_s > 1.0


def test_the_rest_of_a_volume_after_its_session_moved() -> None:
    seen = view(load("m1", session("a", 2000, {"m2": 1.0})), load("m2"))
    seen = replace(seen, ranges=[one_range("m2", {"m1": 2000.0})])
    for resting, reason in (
        (replace(seen, moved={"v": seen.now_s - 10}), "a session of it was moved lately; 20 s to go"),
        (replace(seen, migrated={"v": seen.now_s - 10}), "it was migrated lately"),
        (replace(seen, busy=frozenset({"v"})), "is being moved"),
    ):
        (decision,) = plan_migrations(resting)
        assert not decision.taken
        assert reason in decision.reason


def test_a_range_stays_where_it_came_to() -> None:
    seen = view(load("m1", session("a", 2000, {"m2": 1.0})), load("m2"))
    seen = replace(seen, ranges=[one_range("m2", {"m1": 2000.0})])
    (decision,) = plan_migrations(replace(seen, stays={("v", 100, 200): seen.now_s - 100}))
    assert not decision.taken
    assert "stays for 200 s" in decision.reason
    for elsewhere in (("v", 1 << 30, 1 << 31), ("w", 0, 200)):
        assert best(replace(seen, stays={elsewhere: seen.now_s})) is not None


def test_a_few_slow_reads_are_no_reason() -> None:
    def with_disk(name: str, waits: float, latency_s: float, *sessions: SessionLoad) -> MemberLoad:
        return msgspec.structs.replace(
            load(name, *sessions), owned_iops=2000.0, storage_waits=waits, storage_latency_s=latency_s
        )

    slow = with_disk("m1", 15.0, 0.040, session("a", 2000, {"m1": 1.0}))
    seen = view(slow, with_disk("m2", 15.0, 0.005))
    assert best(replace(seen, ranges=[one_range("m1", {"m1": 2000.0})])) is None


def test_a_drained_member_gives_away_what_it_holds() -> None:
    seen = view(load("m1"), load("m2", free=30 * GIB), load("m3"), leaving=frozenset({"m1"}))
    found = best(replace(seen, holdings=[holding("m1", 10 * GIB), holding("m2")]))
    assert found is not None
    assert (found.source, found.destination, found.urgent) == ("m1", "m3", True)
    (decision,) = plan_migrations(replace(seen, holdings=[holding("m1", 80 * GIB)]))
    assert not decision.taken
    assert "no other pool has room" in decision.reason


def test_a_drained_member_that_is_silent_gives_away_too() -> None:
    seen = replace(view(load("m2"), load("m3", free=60 * GIB)), leaving=frozenset({"m1"}))
    found = best(replace(seen, holdings=[holding("m1")]))
    assert found is not None
    assert found.destination == "m3"


def test_a_full_pool_gives_away_what_is_touched_least() -> None:
    seen = view(load("m1", free=5 * GIB), load("m2", free=90 * GIB), load("m3", free=25 * GIB))
    seen = replace(
        seen,
        holdings=[holding("m1", GIB, "hot"), holding("m1", GIB, "cold")],
        ranges=[one_range("m1", {"m1": 500.0}, GIB, "hot")],
    )
    found = best(seen)
    assert found is not None
    assert (found.volume_id, found.source, found.destination) == ("cold", "m1", "m2")
    assert found.reason == "the pool of member m1 is 95% full, that of m2 10%"


@pytest.mark.parametrize("free", [5 * GIB, 16 * GIB])
def test_pools_that_are_all_full_are_left(free: int) -> None:
    seen = view(load("m1", free=5 * GIB), load("m2", free=free))
    assert best(replace(seen, holdings=[holding("m1")])) is None


def test_nobody_migrates_into_a_pool_without_room() -> None:
    seen = view(load("m1", session("a", 2000, {"m2": 1.0}), free=10 * MIB), load("m2"))
    found = best(replace(seen, ranges=[one_range("m2", {"m1": 2000.0})]))
    assert found is None or found.destination != "m1"
