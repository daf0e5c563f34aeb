"""Listening sockets, what became of connected ones, and how addresses are written."""

import asyncio
import os
import socket
from typing import Any


async def listen(host: str, port: int) -> socket.socket:
    """A listening socket that does not block; port 0 = a free one. OSError if that cannot be."""
    loop = asyncio.get_running_loop()
    info = (await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE))[0]
    listener = socket.socket(info[0], socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if info[0] == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(info[4])
        listener.listen(1024)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


def pending_error(sock: socket.socket) -> OSError | None:
    """What a connected socket has suffered and nobody was told yet: a reset.

    uvloop takes an error for the end of its watch: it calls the reader once more, and that finds the data which came
    before the reset, if there was any. The reset itself is then told to nobody.
    """
    number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    return OSError(number, os.strerror(number)) if number else None


def address_text(address: tuple[Any, ...]) -> str:
    """ "host:port", with brackets around an IPv6 host."""
    host, port = address[0], address[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
