"""Listening sockets, how TCP sends, what became of connected sockets, and how addresses are written."""

import asyncio
import contextlib
import os
import socket
from typing import Any, Final

USUAL_CONGESTION_CONTROL: Final = "cubic"
SYSTEMS_CONGESTION_CONTROL: Final = "system"
_TCP_CA_NAME_MAX: Final = 16  # with its end


async def listen(host: str, port: int, congestion_control: str = USUAL_CONGESTION_CONTROL) -> socket.socket:
    """A listening socket that does not block; port 0 = a free one. OSError if that cannot be."""
    loop = asyncio.get_running_loop()
    info = (await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE))[0]
    listener = socket.socket(info[0], socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        control_congestion(listener, congestion_control)  # (what it accepts inherits it)
        if info[0] == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(info[4])
        listener.listen(1024)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


def control_congestion(sock: socket.socket, name: str) -> None:
    """Use this algorithm (tcp(7), TCP_CONGESTION); where the system lacks or refuses it, its own default.

    Some systems have BBR as their default, which spaces what it sends by timers: good for long ways, but storage is
    near, and large reads take a third longer by it.
    """
    if name != SYSTEMS_CONGESTION_CONTROL:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())


def congestion_control_problem(name: str) -> str:
    """Why an algorithm cannot be used on this system, or ""."""
    if name in (USUAL_CONGESTION_CONTROL, SYSTEMS_CONGESTION_CONTROL):
        return ""
    reason = "that is no name of one"
    if name.isascii() and name.isprintable() and 0 < len(name) < _TCP_CA_NAME_MAX:
        with socket.socket() as sock:
            try:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())
            except OSError as error:
                reason = error.strerror or "refused"
            else:
                return ""
    return (
        f"{name!r} cannot be used ({reason}); `sysctl net.ipv4.tcp_allowed_congestion_control` tells what can without "
        f"being root, once its kernel module is loaded, and {SYSTEMS_CONGESTION_CONTROL!r} is the system's own choice"
    )


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
