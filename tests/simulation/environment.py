"""The outside world of one process of a simulated member."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from san_target.server.config import parse_address
from san_target.server.environment import Environment
from san_target.server.peer_socket import SocketListener, SocketTransport, prepare
from san_target.storage.pool import Pool
from tests.simulation.disk import SimThreads
from tests.simulation.sockets import SimListener, SimSocket
from tests.simulation.store import SimStore

if TYPE_CHECKING:
    import random

    from san_target.peer.transport import PeerListener, Receiver, Transport
    from san_target.storage.threads import Threads
    from tests.simulation.disk import SimDisk
    from tests.simulation.loop import VirtualLoop
    from tests.simulation.network import Machine
    from tests.simulation.store import StoreServer


PEER_BUFFER_BYTES = 1 << 18
CONNECT_S = 3.0


class SimAdminServer:
    """Nobody asks over HTTP: the operator of a simulation calls `server.service.Service` itself."""

    def __init__(self, host: str, port: int) -> None:
        self.address = (host, port)

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        pass


class SimEnvironment(Environment):
    """drift: how much faster this machine's clocks run, as a share; boot_s: what they showed at the start."""

    def __init__(
        self,
        loop: VirtualLoop,
        random: random.Random,
        machine: Machine,
        disk: SimDisk,
        store: StoreServer,
        drift: float,
    ) -> None:
        self._loop = loop
        self._random = random
        self._machine = machine
        self._disk = disk
        self._store = store
        self._drift = drift
        self._threads: SimThreads | None = None
        self._shared_buffer = memoryview(bytearray(PEER_BUFFER_BYTES))

    def now_s(self) -> float:
        return self._loop.time() * (1 + self._drift)

    def boottime_s(self) -> float:
        return self.now_s()

    def wall_clock_s(self) -> float:
        return 1.8e9 + self._loop.time()

    def cpu_s(self) -> float:
        return 0.1 * self._loop.time()  # nothing here takes any

    def cpu_limit(self) -> float:
        return 1.0

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds / (1 + self._drift))

    def random_bytes(self, count: int) -> bytes:
        return self._random.randbytes(count)

    def host_name(self) -> str:
        return self._machine.name

    async def listen_portal(self, host: str, port: int) -> Any:
        return SimListener(self._machine.network.listen(self._machine, port))

    async def connect_peer(self, address: str, make_receiver: Callable[[Transport], Receiver]) -> Transport:
        async with asyncio.timeout(CONNECT_S):
            end = await self._machine.network.connect(self._machine, *parse_address(address))
        sock: Any = SimSocket(end)
        prepare(sock)
        transport = SocketTransport(sock, self._shared_buffer)
        transport.start(make_receiver(transport))
        return transport

    async def listen_peers(self, address: str, make_receiver: Callable[[Transport, str], Receiver]) -> PeerListener:
        listener = self._machine.network.listen(self._machine, parse_address(address)[1])
        sock: Any = SimListener(listener)
        return SocketListener(sock, make_receiver, self._shared_buffer, None)

    def make_admin_server(self, app: object, host: str, port: int) -> Any:
        return SimAdminServer(host, port)

    def make_directory(self, directory: Path) -> None:
        pass

    def make_threads(self) -> Threads:
        self._threads = SimThreads(self._disk)
        return self._threads

    def die(self) -> None:
        """The process is killed; its threads may be in the middle of a call."""
        if self._threads is not None:
            self._threads.die()

    def make_store(self, url: str) -> Any:
        return SimStore(self._store, self._machine)

    def make_pool(self, directory: Path, threads: Threads) -> Pool:
        return Pool(directory, threads, self._disk.directory, self.new_id)
