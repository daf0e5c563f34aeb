"""The admin port over real sockets: serves, ends cleanly, and bounds its connections."""

from __future__ import annotations

import asyncio
import signal

import httpx
import pytest

from san_target.admin import http_server
from san_target.admin.app import create_app
from san_target.admin.http_server import CONNECTIONS_MAX, AdminServer, listen
from tests.unit.admin.fake_service import FakeService


async def started() -> AdminServer:
    server = AdminServer(create_app(FakeService(), None), listen("127.0.0.1", 0))
    await server.start()
    return server


def test_serves_and_stops_and_leaves_signals_alone() -> None:
    async def run() -> None:
        handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
        server = await started()
        host, port = server.address
        async with httpx.AsyncClient(base_url=f"http://{host}:{port}") as client:
            answer = await client.get("/healthz")
            assert answer.json()["status"] == "ok"
            assert "server" not in answer.headers
        assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
        await server.stop()
        await server.stop()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(host, port)

    asyncio.run(run())


def test_connections_beyond_the_limit_are_closed_and_the_others_served() -> None:
    async def run() -> None:
        server = await started()
        idle = [await asyncio.open_connection(*server.address) for _ in range(CONNECTIONS_MAX)]
        reader, writer = await asyncio.open_connection(*server.address)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        idle[0][1].write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await idle[0][0].readline()).startswith(b"HTTP/1.1 200")
        for _, one in idle:
            one.close()
        await server.stop()

    asyncio.run(run())


def test_half_sent_requests_do_not_hold_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "LOOK_INTERVAL_S", 0.05)

    async def run() -> None:
        server = await started()
        reader, writer = await asyncio.open_connection(*server.address)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: loc")
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        writer.close()
        await server.stop()

    asyncio.run(run())


def test_garbage_gets_an_answer_and_an_end() -> None:
    async def run() -> None:
        server = await started()
        reader, writer = await asyncio.open_connection(*server.address)
        writer.write(b"\x43\x87" + bytes(46) + b"\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 400")
        writer.close()
        await server.stop()

    asyncio.run(run())
