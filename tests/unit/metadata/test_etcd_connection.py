"""What a connection to etcd says of requests that it did not get answered."""

import asyncio

import pytest

from san_target.metadata.etcd_connection import Connection, NotSent
from tests.unit.metadata.etcd_support import run

NO_SETTINGS = bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))  # RFC 9113 6.5


def test_what_is_asked_after_the_end_was_not_sent() -> None:
    """Not in doubt: also before the event loop has closed the socket."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(NO_SETTINGS)
        await reader.read()
        writer.close()

    async def body() -> None:
        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            connection = await Connection.open("127.0.0.1", server.sockets[0].getsockname()[1], None)
            connection.eof_received()
            with pytest.raises(NotSent, match="the connection is closed"):
                await connection.call("/a", b"", {}, 1.0)
            connection.abort("the test is over")

    run(body)
