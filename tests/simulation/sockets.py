"""Sockets over the simulated network, as far as portals, peers and initiators use sockets."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.simulation.loop import Handle
    from tests.simulation.network import End, Listener

_NO_LINGER = struct.pack("ii", 1, 0)


class SimSocket:
    """A connected socket that does not block."""

    def __init__(self, end: End) -> None:
        self._end = end

    def recv_into(self, buffer: memoryview) -> int:
        data = self._end.receive(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def recvmsg_into(self, buffers: list[memoryview]) -> tuple[int, None, None, None]:
        data = self._end.receive(sum(map(len, buffers)))
        done = 0
        for buffer in buffers:
            part = data[done : done + len(buffer)]
            buffer[: len(part)] = part
            done += len(part)
        return len(data), None, None, None

    def sendmsg(self, buffers: Iterable[bytes | memoryview]) -> int:
        return self._end.send(b"".join(buffers))

    def send(self, data: bytes | memoryview) -> int:
        return self._end.send(bytes(data))

    def setsockopt(self, level: int, option: int, value: int | bytes) -> None:
        if (level, option) == (socket.SOL_SOCKET, socket.SO_LINGER):
            self._end.lingers_not = value == _NO_LINGER

    def getsockopt(self, level: int, option: int) -> int:
        """SO_ERROR is all that anybody asks for."""
        error = self._end.error
        return 0 if error is None else error.errno or 0

    def setblocking(self, flag: bool) -> None:
        pass

    def getsockname(self) -> tuple[str, int]:
        return self._end.address

    def getpeername(self) -> tuple[str, int]:
        return self._end.peer_address

    def shutdown(self, how: int) -> None:
        self._end.shut()

    def close(self) -> None:
        self._end.close()

    def set_reader(self, handle: Handle | None) -> bool:
        return self._end.set_reader(handle)

    def set_writer(self, handle: Handle | None) -> bool:
        return self._end.set_writer(handle)


class SimListener:
    """A listening socket."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener

    def accept(self) -> tuple[SimSocket, tuple[str, int]]:
        end = self._listener.accept()
        return SimSocket(end), end.peer_address

    def getsockname(self) -> tuple[str, int]:
        return self._listener.machine.address, self._listener.port

    def set_reader(self, handle: Handle | None) -> bool:
        return self._listener.set_reader(handle)

    def set_writer(self, handle: Handle | None) -> bool:
        return False

    def close(self) -> None:
        self._listener.close()
