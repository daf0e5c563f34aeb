"""A member that stood still lets nothing old through, and one without a lease nobody whom others may have kept out."""

from types import SimpleNamespace
from typing import Any

from san_target.server.vigilance import STILL_S, Vigilance


class Fixture:
    def __init__(self, others: bool = True) -> None:
        self.now_s = 100.0
        self.lease_ends_s = 1000.0
        self.refreshed: list[str] = []
        self.still: list[float] = []
        self.units: list[Any] = [self.unit("bound", True), self.unit("free", False)]
        self.vigilance = Vigilance(
            lambda: self.now_s,
            lambda: self.lease_ends_s,
            lambda: others,
            lambda: self.units,
            self.still.append,
        )

    def unit(self, name: str, bound: bool) -> Any:
        reservations = SimpleNamespace(bind_to_lease=bound)
        return SimpleNamespace(reservations=reservations, refresh_all=lambda: self.refreshed.append(name))


def test_a_batch_after_a_standstill_is_not_executed() -> None:
    fixture = Fixture()
    assert fixture.vigilance.guard()
    fixture.now_s += STILL_S
    assert fixture.vigilance.guard()
    fixture.now_s += STILL_S + 0.1
    assert not fixture.vigilance.guard()
    assert len(fixture.still) == 1
    assert fixture.vigilance.guard()  # the sessions have ended; new ones may begin


def test_the_timer_finds_it_out_where_it_runs_first() -> None:
    fixture = Fixture()
    beats = fixture.vigilance.beat(_never)
    beats.send(None)
    fixture.now_s += STILL_S + 1
    assert fixture.still == []
    fixture.vigilance._look_still(fixture.now_s)
    assert fixture.still == [STILL_S + 1]
    beats.close()


def test_a_member_that_is_alone_goes_on() -> None:
    fixture = Fixture(others=False)
    fixture.now_s += 60
    assert fixture.vigilance.guard()
    assert fixture.still == []


def test_bound_units_are_looked_at_when_the_lease_ends_and_when_it_is_back() -> None:
    fixture = Fixture(others=False)
    assert fixture.vigilance.guard()
    assert fixture.refreshed == []
    fixture.now_s = 1000.1
    fixture.vigilance.guard()
    fixture.vigilance.guard()
    assert fixture.refreshed == ["bound"]
    fixture.lease_ends_s = 1010.0
    fixture.vigilance.guard()
    assert fixture.refreshed == ["bound", "bound"]


def test_a_lease_that_ends_before_its_time_is_looked_at_when_somebody_says_so() -> None:
    fixture = Fixture()
    assert fixture.vigilance.guard()
    fixture.lease_ends_s = float("-inf")
    fixture.vigilance.look()
    assert fixture.refreshed == ["bound"]
    fixture.lease_ends_s = 1000.0
    assert fixture.vigilance.guard()
    assert fixture.refreshed == ["bound", "bound"]


class _Forever:
    def __await__(self):
        yield


async def _never(_seconds: float) -> None:
    await _Forever()
