"""Where a login goes under the policy `adaptive`."""

from san_target.group.efficiency import model_of
from san_target.group.login_balancer import Expected, expected_of, order, share_of
from tests.unit.group.load_kit import load, session

LOCAL = Expected(1000.0, 4096.0, {"m2": 1.0})
EVERYWHERE = Expected(1000.0, 4096.0, {"m1": 0.34, "m2": 0.33, "m3": 0.33})


def test_to_where_the_blocks_are() -> None:
    model = model_of({name: load(name) for name in ("m1", "m2", "m3")})
    assert order(model, "m1", model.stations, LOCAL) == ["m2"]
    assert order(model, "m2", model.stations, LOCAL) == []


def test_not_to_where_they_are_if_that_member_has_too_much_to_do() -> None:
    busy = [session(f"s{number}", 90_000, {"m2": 1.0}) for number in range(3)]
    model = model_of({"m1": load("m1"), "m2": load("m2", *busy), "m3": load("m3")})
    assert "m2" not in order(model, "m1", model.stations, LOCAL)


def test_to_the_member_that_waits_least() -> None:
    model = model_of({"m1": load("m1", session("a", 80_000)), "m2": load("m2", session("b", 60_000)), "m3": load("m3")})
    assert order(model, "m1", model.stations, EVERYWHERE)[0] == "m3"


def test_equals_take_turns_and_home_is_one_of_them() -> None:
    model = model_of({name: load(name) for name in ("m1", "m2", "m3")})
    assert order(model, "m1", model.stations, EVERYWHERE) == []
    far = Expected(1000.0, 4096.0, {"m9": 1.0})
    assert order(model, "m1", model.stations, far) == []
    busy = model_of({"m1": load("m1", session("a", 80_000)), "m2": load("m2"), "m3": load("m3")})
    firsts = {order(busy, "m1", busy.stations, far, turn=turn)[0] for turn in range(6)}
    assert firsts == {"m2", "m3"}


def test_members_with_a_session_of_the_same_initiator_come_last() -> None:
    model = model_of({name: load(name) for name in ("m1", "m2", "m3")})
    assert order(model, "m2", model.stations, LOCAL, siblings=["m2"]) == ["m1", "m3"]
    assert order(model, "m1", model.stations, LOCAL, siblings=["m2"]) == []


def test_what_is_expected() -> None:
    loads = {"m1": load("m1", session("a", 500, {"m3": 1.0}, volume="v", initiator="iqn.x:a"), session("b", 1500))}
    same = expected_of(loads, "v", "iqn.x:a", {"m1": 1.0})
    assert (same.iops, same.owners) == (500, {"m3": 1.0})
    other = expected_of(loads, "v", "iqn.x:z", {"m1": 1.0})
    assert (other.iops, other.bytes_each, other.owners) == (1000, 4096.0, {"m1": 1.0})
    assert expected_of({}, "v", "iqn.x:z", {}).iops == 100


def test_shares_of_a_volume() -> None:
    assert share_of([(0, 10, "m1"), (10, 40, "m2")]) == {"m1": 0.25, "m2": 0.75}
    assert share_of([]) == {}
