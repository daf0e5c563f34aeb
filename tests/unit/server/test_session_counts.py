"""Counts of sessions that end, and rates."""

from typing import Any, cast

import pytest

from san_target.server.sessions import RateMeter, SessionTable
from san_target.session.session import Session


def session(since_s: float = 0.0) -> Session:
    return Session(cast(Any, None), "iqn.x", bytes(6), 1, None, None, cast(Any, None), "a:1", since_s)


def test_ended_sessions_leave_their_counts() -> None:
    table = SessionTable()
    first, second = session(), session()
    table["a", b"1"] = first
    table["b", b"1"] = second
    first.counters.commands, second.counters.commands = 5, 7
    first.counters.bytes_read = 512
    assert table.total().commands == 12
    del table["a", b"1"]
    second.counters.commands += 1
    assert (table.total().commands, table.total().bytes_read, table.logins) == (13, 512, 2)
    assert table.total().commands == 13  # asking adds nothing up


def test_sessions_of_a_withdrawn_target_are_told() -> None:
    table = SessionTable()
    late: list[Session] = []
    table.withdrawn = late.append
    table["a", b"1"] = session()
    assert late == [table["a", b"1"]]


def test_rates_are_of_the_last_seconds() -> None:
    meter, one = RateMeter(), session(since_s=100.0)
    assert meter.rate(one, 100.0).commands == 0
    one.counters.commands, one.counters.bytes_written = 50, 1000
    assert meter.rate(one, 105.0).commands == pytest.approx(10)
    for now_s in (110.0, 112.0, 114.0):
        meter.begin()
        meter.take([one], now_s)
    one.counters.commands, one.counters.bytes_written = 90, 5000
    rate = meter.rate(one, 116.0)
    assert rate.commands == pytest.approx(10)
    assert rate.bytes == pytest.approx(1000)


def test_ended_sessions_are_forgotten() -> None:
    meter, one = RateMeter(), session()
    meter.begin()
    meter.take([one], 1.0)
    meter.begin()
    meter.begin()
    assert not meter._older
    assert not meter._newer
