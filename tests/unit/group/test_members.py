"""The membership as one member sees it: what is in the store, after each of its revisions."""

import msgspec
import pytest

from san_target.group.members import Members, view_of
from san_target.metadata.schema import LeaseRecord, MemberRecord, encode, lease_key, member_key
from san_target.metadata.store import Event, Item

ONE = MemberRecord(
    name="one", incarnation=3, portals=("10.0.0.1:3260",), admin="10.0.0.1:3280", peer="10.0.0.1:3300", serving=True
)


def record_item(record: MemberRecord, revision: int = 1) -> Item:
    return Item(member_key(record.name), encode(record), 1, revision)


def lease_item(name: str, incarnation: int, revision: int = 1) -> Item:
    lease = LeaseRecord(name=name, incarnation=incarnation, pool_id="pool")
    return Item(lease_key(name), encode(lease), 1, revision, 7)


def put(item: Item) -> Event:
    return Event(item.key, item)


def loaded(*items: Item) -> Members:
    members = Members()
    members.begin()
    members.read(items)
    members.complete(1)
    return members


@pytest.mark.parametrize(
    ("changes", "lease", "alive", "state"),
    [
        ({}, 3, True, "active"),
        ({"serving": False}, 3, True, "starting"),
        ({"state": "draining"}, 3, True, "draining"),
        ({"state": "draining", "serving": False}, 3, True, "starting"),
        ({}, None, False, "unreachable"),
        ({"state": "draining"}, None, False, "unreachable"),
        ({}, 2, False, "unreachable"),  # the lease of a life that is over
        ({"state": "removing"}, 3, True, "removing"),
        ({"state": "removing"}, None, False, "removing"),
        ({"state": "removed"}, None, False, "removed"),
        ({"state": "removed"}, 3, False, "removed"),
    ],
)
def test_states(changes: dict[str, object], lease: int | None, alive: bool, state: str) -> None:
    view = view_of(msgspec.structs.replace(ONE, **changes), lease)
    assert (view.alive, view.state) == (alive, state)


def test_what_is_known_of_a_member() -> None:
    view = loaded(record_item(ONE), lease_item("one", 3)).view["one"]
    assert (view.name, view.incarnation, view.peer) == ("one", 3, "10.0.0.1:3300")
    assert (view.portals, view.admin) == (("10.0.0.1:3260",), "10.0.0.1:3280")


def test_changes_are_told_once_with_the_names() -> None:
    members = loaded(record_item(ONE), lease_item("one", 3))
    told: list[frozenset[str]] = []
    end = members.subscribe(told.append)
    before = members.view
    members.take(2, [Event(lease_key("one"), None)])
    assert members.view["one"].state == "unreachable"
    assert before["one"].state == "active"
    members.take(3, [put(lease_item("one", 3))])
    members.take(4, [put(record_item(ONE, 4))])  # the same once more
    two = msgspec.structs.replace(ONE, name="two", incarnation=1)
    members.take(5, [put(record_item(two)), put(lease_item("two", 1))])
    members.take(6, [Event(member_key("two"), None), Event(lease_key("two"), None)])
    assert told == [{"one"}, {"one"}, {"two"}, {"two"}]
    assert set(members.view) == {"one"}
    end()
    members.take(7, [Event(lease_key("one"), None)])
    assert len(told) == 4


def test_a_new_incarnation_and_its_lease_come_together() -> None:
    members = loaded(record_item(ONE), lease_item("one", 3))
    told: list[bool] = []
    members.subscribe(lambda names: told.append(members.view["one"].alive))
    again = msgspec.structs.replace(ONE, incarnation=4)
    members.take(2, [put(record_item(again)), put(lease_item("one", 4))])
    assert told == [True]
    assert members.incarnation_of("one") == 4


def test_reading_again_replaces_everything_at_its_end() -> None:
    members = loaded(record_item(ONE), lease_item("one", 3))
    told: list[frozenset[str]] = []
    members.subscribe(told.append)
    two = msgspec.structs.replace(ONE, name="two")
    members.begin()
    members.read([record_item(two)])
    assert set(members.view) == {"one"}
    members.read([lease_item("two", 3)])
    members.complete(9)
    assert [member.name for member in members.alive()] == ["two"]
    assert told == [{"one", "two"}]
    members.begin()
    members.complete(10)
    assert members.alive() == []


def test_a_removed_member_is_no_member_for_its_peers() -> None:
    members = loaded(record_item(msgspec.structs.replace(ONE, state="removed")), lease_item("one", 3))
    assert members.incarnation_of("one") is None
    assert members.incarnation_of("never") is None
    assert members.alive() == []
    assert members.view["one"].state == "removed"


def test_the_view_cannot_be_changed() -> None:
    members = loaded(record_item(ONE))
    with pytest.raises(TypeError):
        members.view["two"] = members.view["one"]  # type: ignore[index]
