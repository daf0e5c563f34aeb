"""Migrations of data as the difference of two partition maps, and the API that tells them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from initiator_sim.group_map import ApiError, GroupMap, Migrated, Range, differences

IQN = "iqn.2026-01.org.example:disk"
OWNERS = st.lists(st.sampled_from("abc"), min_size=1, max_size=20)


def ranges(owners: list[str]) -> list[Range]:
    """A map in which each block has the given owner; equal neighbours are one range."""
    found: list[Range] = []
    for lba, owner in enumerate(owners):
        if found and found[-1].owner == owner:
            found[-1] = found[-1]._replace(end_lba=lba + 1)
        else:
            found.append(Range(lba, lba + 1, owner))
    return found


@given(OWNERS, OWNERS)
def test_differences_are_counted_block_by_block(before: list[str], after: list[str]) -> None:
    pairs = [(old, new) for old, new in zip(before, after, strict=False) if old != new]
    expected = {Migrated(*pair, pairs.count(pair)) for pair in pairs}
    assert set(differences(ranges(before), ranges(after))) == expected


class Api:
    """Answers of a member, which a test may change at any time."""

    def __init__(self) -> None:
        self.owners = list("aaaabbbb")
        self.status = 200
        self.asked = 0

    def answer(self, request: httpx.Request) -> httpx.Response:
        self.asked += 1
        if self.status != 200:
            return httpx.Response(self.status, json={})
        if request.url.path == "/api/v1/volumes":
            return httpx.Response(200, json=[{"name": "disk", "iqn": IQN}])
        assert request.url.path == "/api/v1/volumes/disk/map"
        return httpx.Response(200, json=[one._asdict() | {"generation": 1} for one in ranges(self.owners)])

    def group_map(self, iqn: str = IQN) -> GroupMap:
        return GroupMap("http://member:3280", iqn, transport=httpx.MockTransport(self.answer))


def run(scenario: Callable[[Api], Any]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await scenario(Api())

    asyncio.run(bounded())


def test_changes_are_told_also_after_a_time_without_answers() -> None:
    async def scenario(api: Api) -> None:
        group_map = api.group_map()
        await group_map.open()
        told: list[Migrated] = []
        following = asyncio.ensure_future(group_map.follow(told.append, 0.001))
        api.status, asked = 503, api.asked
        while api.asked < asked + 3:
            await asyncio.sleep(0.001)
        assert told == []
        api.owners, api.status = list("abbbbbba"), 200
        while not told:
            await asyncio.sleep(0.001)
        asked = api.asked
        while api.asked < asked + 3:
            await asyncio.sleep(0.001)
        following.cancel()
        assert sorted(told) == [Migrated("a", "b", 3), Migrated("b", "a", 1)]
        await group_map.close()

    run(scenario)


@pytest.mark.parametrize(("status", "text"), [(401, "--api-token-file"), (404, "status 404")])
def test_what_the_api_refuses_is_said(status: int, text: str) -> None:
    async def scenario(api: Api) -> None:
        api.status = status
        with pytest.raises(ApiError, match=text):
            await api.group_map().open()

    run(scenario)


def test_an_unknown_volume_and_a_dead_member_are_said() -> None:
    async def scenario(api: Api) -> None:
        with pytest.raises(ApiError, match="knows no volume"):
            await api.group_map("iqn.2026-01.org.example:other").open()
        with pytest.raises(ApiError, match="no member"):
            await GroupMap("http://127.0.0.1:9", IQN).open()

    run(scenario)
