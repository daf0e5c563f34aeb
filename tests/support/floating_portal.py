"""An address that leads to one member's portal now and to another's later, as that of a cluster or a balancer does.

What an initiator has sent before it moves may still be in the hands of the member that it leaves: in a socket buffer,
or in a process that stands still. So a move may leave the old connections open to that side, with all that is in them.
"""

from __future__ import annotations

import asyncio
import contextlib

from tests.support.target import free_port


class FloatingPortal:
    """Use it as `async with`. to: the portal that new connections reach, "host:port"."""

    def __init__(self, to: str) -> None:
        self.to = to
        self.portal = f"127.0.0.1:{free_port()}"
        self._pairs: dict[asyncio.StreamWriter, asyncio.StreamWriter] = {}  # initiator's side -> member's side
        self._left: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> FloatingPortal:
        host, _, port = self.portal.rpartition(":")
        self._server = await asyncio.start_server(self._accept, host, int(port))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.move(self.to)
        for writer in self._left:
            writer.transport.abort()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def move(self, to: str, leave: bool = False) -> None:
        """The initiators lose their connections. leave: the member hears nothing of it, and gets what was sent."""
        self.to = to
        pairs, self._pairs = self._pairs, {}
        for initiator, member in pairs.items():
            initiator.transport.abort()
            if leave:
                self._left.append(member)
            else:
                member.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = self.to.rpartition(":")
        try:
            there, back = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.transport.abort()
            return
        self._pairs[writer] = back
        for source, sink in ((reader, back), (there, writer)):
            task = asyncio.ensure_future(self._pump(source, sink, writer))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, key: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(1 << 16):
                sink.write(data)
                await sink.drain()
        pair = self._pairs.pop(key, None)
        if pair is not None:  # one side has ended: the other one with it
            key.transport.abort()
            pair.transport.abort()
