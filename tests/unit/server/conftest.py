"""Members in this process, on free ports of the loopback interface."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from san_target.admin.service import MemberService, VolumeSpec
from san_target.metadata.memory import MemoryData, MemoryStore
from san_target.metadata.store import Store
from san_target.server.config import load
from san_target.server.environment import Environment
from san_target.server.member import Member
from san_target.server.service import Service

MIB = 1 << 20
SECONDS_MAX = 60


class MemoryEnvironment(Environment):
    """The real world, but for the store: one in memory, that outlives the members."""

    def __init__(self) -> None:
        self.data = MemoryData()

    def make_store(self, url: str) -> Store:
        return MemoryStore(self.data)


class Site:
    """A directory with a pool, and one member after another on it."""

    def __init__(self, directory: Path, environment: Environment) -> None:
        self.directory = directory
        self.environment = environment

    def member(self, **options: Any) -> Member:
        chosen = {
            "name": "one",
            "directory": str(self.directory / "pool"),
            "portals": ["127.0.0.1:0"],
            "admin": "127.0.0.1:0",
        }
        return Member(load(None, chosen | options), self.environment)

    @contextlib.asynccontextmanager
    async def started(self, **options: Any) -> AsyncIterator[tuple[Member, MemberService]]:
        member = self.member(**options)
        await member.start()
        try:
            yield member, Service(member)
        finally:
            await member.stop()

    def blocks_files(self) -> list[Path]:
        return sorted((self.directory / "pool" / "volumes").glob("*.blocks"))

    def volume_files(self) -> list[str]:
        return sorted(path.name for path in (self.directory / "pool" / "volumes").iterdir())


@pytest.fixture(params=["sqlite", "memory"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Site:
    return Site(tmp_path, Environment() if request.param == "sqlite" else MemoryEnvironment())


@pytest.fixture
def sqlite_site(tmp_path: Path) -> Site:
    return Site(tmp_path, Environment())


def run(body: Callable[[], Awaitable[None]]) -> None:
    """Run a test's coroutine, bounded in time."""

    async def bounded() -> None:
        async with asyncio.timeout(SECONDS_MAX):
            await body()

    asyncio.run(bounded())


def spec(name: str = "demo", size_bytes: int = MIB, **options: Any) -> VolumeSpec:
    return VolumeSpec(name=name, size_bytes=size_bytes, **options)
