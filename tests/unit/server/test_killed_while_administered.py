"""SIGKILL in the middle of creating, resizing and deleting volumes: what the next start finds is whole."""

import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.support.target import free_port

ROUNDS = 5
READY_S = 30.0
STARTED: list["Process"] = []


class Process:
    """One `san-target serve` on a pool, with its API."""

    def __init__(self, directory: Path, name: str = "one", *options: str) -> None:
        self.api = f"http://127.0.0.1:{free_port()}"
        words = ["serve", "--name", name, "--dir", str(directory), "--portal", f"127.0.0.1:{free_port()}"]
        words += ["--admin", self.api.removeprefix("http://"), *options]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "san_target.cli", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        STARTED.append(self)
        assert self._process.stdout is not None
        assert self._process.stdout.readline().startswith("ready ")

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()

    def kill_if_left(self) -> None:
        if self._process.poll() is None:
            self.kill()

    def stop(self) -> int:
        self._process.terminate()
        self._process.communicate(timeout=READY_S)
        return self._process.returncode


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Also by a test that fails."""
    yield
    while STARTED:
        STARTED.pop().kill_if_left()


def administer(api: str, round_number: int, acknowledged: dict[str, bool]) -> None:
    """Create and delete until the member dies; notes what was acknowledged: name -> exists."""
    with httpx.Client(base_url=f"{api}/api/v1", timeout=READY_S) as client:
        for number in range(10_000):
            name = f"v{round_number}-{number}"
            victim = f"v{round_number}-{number - 1}"
            try:
                assert client.post("/volumes", json={"name": name, "size_bytes": 1 << 20}).status_code < 300
                acknowledged[name] = True
                if number % 2:
                    acknowledged.pop(victim)  # from now on it may be either
                    assert client.delete(f"/volumes/{victim}").status_code < 300
                    acknowledged[victim] = False
            except httpx.TransportError:
                return


def settled(*processes: Process) -> list[dict[str, object]]:
    """The volumes, once what was in the midst of being made or removed is done and all members say the same."""
    for _ in range(600):
        told = [httpx.get(f"{process.api}/api/v1/volumes", timeout=READY_S).json() for process in processes]
        states = {volume["state"] for volumes in told for volume in volumes}
        if states <= {"ready"} and len({len(volumes) for volumes in told}) == 1:
            return list(told[0])
        time.sleep(0.05)
    raise AssertionError(f"not settled: {told}")


@pytest.mark.slow
def test_each_start_finds_whole_volumes_and_keeps_what_was_acknowledged(tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    chance = random.Random(7)
    acknowledged: dict[str, bool] = {}
    for round_number in range(ROUNDS):
        process = Process(pool)
        with ThreadPoolExecutor(1) as pool_of_one:
            working = pool_of_one.submit(administer, process.api, round_number, acknowledged)
            time.sleep(chance.uniform(0.1, 0.8))
            process.kill()
            working.result()
    assert sum(acknowledged.values()) >= ROUNDS
    process = Process(pool)
    volumes = settled(process)
    names = {volume["name"] for volume in volumes}
    assert {name for name, exists in acknowledged.items() if exists} <= names
    assert not {name for name, exists in acknowledged.items() if not exists} & names
    assert {path.stem for path in (pool / "volumes").glob("*.blocks")} == {volume["id"] for volume in volumes}
    assert {path.stem for path in (pool / "volumes").glob("*.held")} == {volume["id"] for volume in volumes}
    assert process.stop() == 0


NAMES = ("one", "two")
MIB = 1 << 20


class Group:
    """Two members on one store; either may be killed."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.processes = {name: self._start(name) for name in NAMES}

    def _start(self, name: str) -> Process:
        store = f"sqlite://{self.directory}/group.sqlite"
        return Process(self.directory / name, name, "--peer", f"127.0.0.1:{free_port()}", "--store", store)

    def kill(self, name: str) -> None:
        self.processes[name].kill()

    def start_again(self, name: str) -> None:
        self.processes[name] = self._start(name)

    def stop(self) -> None:
        for process in self.processes.values():
            assert process.stop() == 0

    def files(self, name: str, suffix: str) -> dict[str, int]:
        """Sizes by volume."""
        return {path.stem: path.stat().st_size for path in (self.directory / name / "volumes").glob(f"*.{suffix}")}


def administer_both(api: str, round_number: int, stop: threading.Event) -> None:
    """Create, resize and delete volumes that lie on both members, until told to stop; any refusal ends it too."""
    with httpx.Client(base_url=f"{api}/api/v1", timeout=READY_S) as client:
        for number in range(10_000):
            if stop.is_set():
                return
            name = f"v{round_number}-{number}"
            requests = (
                ("POST", "/volumes", {"name": name, "size_bytes": 4 * MIB, "members": list(NAMES)}),
                ("POST", f"/volumes/{name}/resize", {"size_bytes": 6 * MIB}),
                ("POST", f"/volumes/{name}/resize", {"size_bytes": 2 * MIB, "force": True}),
                *([("DELETE", f"/volumes/{name}", None)] if number % 2 else []),
            )
            for method, path, body in requests:
                try:
                    if client.request(method, path, json=body).status_code >= 300:
                        return
                except httpx.TransportError:
                    return


@pytest.mark.slow
@pytest.mark.parametrize("victim", NAMES)
def test_volumes_of_two_members_are_whole_at_both(tmp_path: Path, victim: str) -> None:
    """The member that is asked dies, or the other one."""
    group, chance = Group(tmp_path), random.Random(victim)
    for round_number in range(ROUNDS):
        with ThreadPoolExecutor(1) as pool_of_one:
            stop = threading.Event()
            working = pool_of_one.submit(administer_both, group.processes["one"].api, round_number, stop)
            time.sleep(chance.uniform(0.1, 1.0))
            group.kill(victim)
            group.start_again(victim)
            stop.set()
            working.result()
    volumes = settled(*group.processes.values())
    sizes = {str(volume["id"]): volume["size_bytes"] for volume in volumes}
    for name in NAMES:
        assert group.files(name, "blocks").keys() == group.files(name, "held").keys() == sizes.keys()
        assert group.files(name, "blocks") == sizes
    assert set(sizes.values()) <= {2 * MIB, 4 * MIB, 6 * MIB}
    group.stop()
