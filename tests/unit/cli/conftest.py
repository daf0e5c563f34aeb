"""A fake member behind a real admin port, and the commands run against it in this process."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from click.testing import CliRunner, Result

from san_target.admin.app import create_app
from san_target.admin.http_server import AdminServer, listen
from san_target.cli.main import main
from tests.unit.admin.fake_service import FakeService


class Port:
    """An admin port on its own thread and event loop; `app` may be exchanged between requests."""

    def __init__(self) -> None:
        self.app = create_app(FakeService(), None)
        self.server = AdminServer(self._answer, listen("127.0.0.1", 0))
        self.url = "http://{}:{}".format(*self.server.address)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._do(self.server.start())

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)

    def close(self) -> None:
        self._do(self.server.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _do(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)


@dataclass
class Shell:
    """Runs commands; `url` is put before them as --api."""

    url: str

    def run(self, *arguments: str, **options: Any) -> Result:
        return CliRunner().invoke(main, ["--api", self.url, *arguments], **options)

    def ok(self, *arguments: str) -> str:
        result = self.run(*arguments)
        assert result.exit_code == 0, result.stderr
        return result.stdout

    def json(self, *arguments: str) -> Any:
        return json.loads(self.ok(*arguments, "--json"))

    def error(self, *arguments: str, code: int = 1) -> str:
        """The one line on stderr of a command that must fail; stdout must stay empty."""
        result = self.run(*arguments)
        assert result.exit_code == code, result.output
        assert result.stdout == ""
        assert result.stderr.startswith("san-target: ")
        assert result.stderr.count("\n") == 1
        return result.stderr.removeprefix("san-target: ").rstrip()


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SAN_TARGET_API", raising=False)
    monkeypatch.delenv("SAN_TARGET_TOKEN", raising=False)


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture(scope="session")
def port() -> Iterator[Port]:
    port = Port()
    yield port
    port.close()


@pytest.fixture
def shell(port: Port, service: FakeService) -> Shell:
    port.app = create_app(service, None)
    return Shell(port.url)
