"""The outside world of a member, in one replaceable object: clocks, randomness, threads, and what is made of them.

A simulation passes a subclass with virtual time and in-memory twins.
"""

import asyncio
import secrets
import socket
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from san_target.admin.http_server import AdminServer, listen
from san_target.group.membership import LEASE_TTL_S
from san_target.metadata import clock as machine_clock
from san_target.metadata.factory import make_store
from san_target.metadata.store import Store
from san_target.peer.transport import PeerListener, Receiver, Transport
from san_target.server import peer_socket, portal_socket
from san_target.server.cpu_limit import CpuLimit
from san_target.server.peer_tls import PeerTls
from san_target.storage.pool import Pool
from san_target.storage.threads import ThreadPool, Threads

if TYPE_CHECKING:
    from starlette.types import ASGIApp


class Environment:
    """The real world. The constructor starts nothing.

    lease_ttl_s: how long others wait for a member that gives no sign of life.
    peer_tls: certificates for connections between members; None = plain ones.
    congestion_control: of TCP, by its Linux name.
    """

    lease_ttl_s = LEASE_TTL_S
    peer_tls: PeerTls | None = None
    congestion_control = portal_socket.USUAL_CONGESTION_CONTROL

    # (Both are read for each batch: no call more than needed.)
    now_s: Callable[[], float] = staticmethod(time.monotonic)
    """Monotonic seconds, for intervals within this process."""

    boottime_s: Callable[[], float] = staticmethod(machine_clock.boottime_s)
    """Seconds since boot, which also count while the machine sleeps; for leases."""

    def wall_clock_s(self) -> float:
        """Seconds since 1970, for people."""
        return time.time()

    def cpu_s(self) -> float:
        """CPU time that this process has taken, of all its threads."""
        return time.process_time()

    @cached_property
    def _cpu_limit(self) -> CpuLimit:
        return CpuLimit()

    def cpu_limit(self) -> float:
        """Of one CPU, what this process may use."""
        return self._cpu_limit.share()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def random_bytes(self, count: int) -> bytes:
        """For challenges and ids: unpredictable."""
        return secrets.token_bytes(count)

    def new_id(self) -> str:
        """32 hex digits that nobody else has."""
        return self.random_bytes(16).hex()

    def host_name(self) -> str:
        return socket.gethostname()

    async def listen_portal(self, host: str, port: int) -> socket.socket:
        """A socket that listens for initiators and never blocks. OSError."""
        return await portal_socket.listen(host, port, self.congestion_control)

    def make_admin_server(self, app: "ASGIApp", host: str, port: int) -> AdminServer:
        """Bound, not yet serving. OSError."""
        return AdminServer(app, listen(host, port))

    def make_directory(self, directory: Path) -> None:
        """For the pool, and whatever lies beside it. OSError."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def make_threads(self) -> Threads:
        return ThreadPool()

    def make_store(self, url: str) -> Store:
        """Not yet open. StoreError for a URL that is not supported."""
        return make_store(url)

    def make_pool(self, directory: Path, threads: Threads) -> Pool:
        return Pool(directory, threads)

    @cached_property
    def _peer_buffer(self) -> memoryview:
        return peer_socket.new_receive_buffer()

    async def connect_peer(self, address: str, make_receiver: Callable[[Transport], Receiver]) -> Transport:
        """A connection to another member's peer port, "host:port". OSError with a text that says why."""
        return await peer_socket.connect(
            address, make_receiver, self._peer_buffer, self.peer_tls, self.congestion_control
        )

    async def listen_peers(self, address: str, make_receiver: Callable[[Transport, str], Receiver]) -> PeerListener:
        """Take connections of other members at "host:port" (port 0 = a free one). OSError."""
        return await peer_socket.listen(
            address, make_receiver, self._peer_buffer, self.peer_tls, self.congestion_control
        )
