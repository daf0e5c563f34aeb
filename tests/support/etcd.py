"""etcd as processes: one, or several that are one cluster, on free loopback ports, each in a directory of its own."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import signal
import ssl
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from tests.support.target import free_port, wait_for
from tests.support.tools import find

START_TIMEOUT_S = 30
ENDED_TTL = -1  # what etcd says of a lease that it does not know


class Etcd:
    """One process. host: "ADDRESS:PORT". The constructor starts nothing.

    address, prefix: where it listens, if that is in a network of its own, and what runs a command there.
    """

    def __init__(
        self,
        directory: Path,
        name: str = "e0",
        scheme: str = "http",
        address: str = "127.0.0.1",
        prefix: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.scheme = scheme
        self._address = address
        self._prefix = list(prefix)
        self.tls: ssl.SSLContext | None = None  # with which tests reach it, where it speaks TLS
        self.port = free_port(1)
        self.directory = directory / name
        self._log = directory / f"{name}.log"
        self._earlier_log_bytes = 0  # what was written before it was started last
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def host(self) -> str:
        return f"{self._address}:{self.port}"

    @property
    def peer_url(self) -> str:
        return f"http://{self._address}:{self.port + 1}"

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} is not running"
        return self._process.pid

    def start(self, *options: str, cluster: Sequence[Etcd] = ()) -> None:
        """Start it, also again on its data. Does not wait: a cluster answers only once most of it runs."""
        client_url = f"{self.scheme}://{self.host}"
        command = [*self._prefix, find("etcd"), "--name", self.name, "--data-dir", str(self.directory)]
        command += ["--listen-client-urls", client_url, "--advertise-client-urls", client_url]
        command += ["--listen-peer-urls", self.peer_url, "--initial-advertise-peer-urls", self.peer_url]
        command += ["--initial-cluster", ",".join(f"{one.name}={one.peer_url}" for one in cluster or (self,))]
        with self._log.open("ab") as log:
            self._earlier_log_bytes = log.tell()
            self._process = subprocess.Popen([*command, *options], stdout=log, stderr=log)

    def wait_until_healthy(self) -> None:
        """Until it has a leader. Without TLS only."""

        def is_healthy() -> bool:
            assert self._process is not None
            assert self._process.poll() is None, f"{self.name} ended:\n{self._log.read_text()[-2000:]}"
            try:
                return "true" in httpx.get(f"http://{self.host}/health", trust_env=False, timeout=2).text
            except httpx.HTTPError:
                return False

        wait_for(is_healthy, START_TIMEOUT_S, f"health of {self.name}")

    def wait_until_listening(self) -> None:
        """Since it was started last."""
        wait_for(
            lambda: b"erving" in self._log.read_bytes()[self._earlier_log_bytes :],
            START_TIMEOUT_S,
            f"start of {self.name}",
        )

    def kill(self) -> None:
        """SIGKILL; nothing if it does not run."""
        if self._process is not None:
            process, self._process = self._process, None
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()

    def pause(self) -> None:
        """SIGSTOP; returns when every thread stands still."""
        os.kill(self.pid, signal.SIGSTOP)
        states = Path(f"/proc/{self.pid}/task")

        def is_stopped() -> bool:
            return all(stat.read_text().rpartition(") ")[2].startswith("T") for stat in states.glob("*/stat"))

        wait_for(is_stopped, 10, f"stop of {self.name}")

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def ask(self, path: str, **fields: Any) -> dict[str, Any]:
        """A request by way of its HTTP gateway, so that tests have a second opinion; bytes are sent as base64."""
        body = {key: _base64(value) if isinstance(value, bytes) else value for key, value in fields.items()}
        url = f"{self.scheme}://{self.host}/v3/{path}"
        answer = httpx.post(url, json=body, trust_env=False, timeout=10, verify=self.tls or False)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def make_user(self, name: str, password: str, prefix: str) -> None:
        """A user who may use the keys below `prefix`, which ends with "/"."""
        key = prefix.encode()
        rights = {"permType": "READWRITE", "key": _base64(key), "range_end": _base64(key[:-1] + b"0")}
        self.ask("auth/user/add", name=name, password=password)
        self.ask("auth/role/add", name=f"{name}-role")
        self.ask("auth/role/grant", name=f"{name}-role", perm=rights)
        self.ask("auth/user/grant", user=name, role=f"{name}-role")

    def enable_users(self) -> None:
        """From now on it asks for users."""
        self.ask("auth/user/add", name="root", password="root")
        self.ask("auth/role/add", name="root")
        self.ask("auth/user/grant", user="root", role="root")
        self.ask("auth/enable")

    @property
    def is_leader(self) -> bool:
        status = self.ask("maintenance/status")
        return bool(status.get("leader") == status["header"]["member_id"])

    def version_of(self, key: bytes) -> int:
        """How often the key was put since it was made; 0 = there is none."""
        found = self.ask("kv/range", key=key).get("kvs", [])
        return int(found[0]["version"]) if found else 0

    def compact(self, revision: int) -> None:
        """Forget the history up to this revision."""
        self.ask("kv/compaction", revision=revision, physical=True)

    def wait_until_ended(self, lease_id: int) -> None:
        """Until the lease is gone, with its keys."""

        def has_ended() -> bool:
            return int(self.ask("lease/timetolive", ID=lease_id).get("TTL", 0)) == ENDED_TTL

        wait_for(has_ended, 30, f"end of lease {lease_id}")


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


class Proxy:
    """What stands between a client and an etcd. `drop_answers`: requests go on, answers do not come back.

    Use it as `async with`.
    """

    def __init__(self, etcd: Etcd) -> None:
        self._to = etcd.port
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = free_port()
        self.drop_answers = False
        self.connections = 0

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()

    def cut(self) -> None:
        """End all connections."""
        for writer in self._writers:
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        there, back = await asyncio.open_connection("127.0.0.1", self._to)
        self._writers |= {writer, back}
        for one in (self._pump(reader, back, False), self._pump(there, writer, True)):
            task = asyncio.ensure_future(one)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, is_answer: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if not (is_answer and self.drop_answers):
                    writer.write(data)
                    await writer.drain()
        writer.close()


class EtcdCluster:
    """Three processes, of which one may be missing. options: for each of them. address, prefix: as of `Etcd`."""

    def __init__(
        self,
        directory: Path,
        options: Sequence[str] = (),
        count: int = 3,
        address: str = "127.0.0.1",
        prefix: Sequence[str] = (),
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.members = [Etcd(directory, f"e{number}", address=address, prefix=prefix) for number in range(count)]
        self._options = options

    @property
    def url(self) -> str:
        """As a member's --store takes it."""
        return "etcd://" + ",".join(member.host for member in self.members)

    def start(self) -> None:
        for member in self.members:
            member.start(*self._options, cluster=self.members)
        for member in self.members:
            member.wait_until_healthy()

    def restart(self, member: Etcd) -> None:
        member.start(*self._options, cluster=self.members)
        member.wait_until_healthy()

    def leader_first(self) -> list[Etcd]:
        """The members, the present leader at the head."""
        wait_for(lambda: any(member.is_leader for member in self.members), START_TIMEOUT_S, "a leader")
        return sorted(self.members, key=lambda member: not member.is_leader)

    def kill(self) -> None:
        for member in self.members:
            member.kill()
