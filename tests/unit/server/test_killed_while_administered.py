"""SIGKILL in the middle of creating and deleting volumes: what the next start finds is whole."""

import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.support.target import free_port

ROUNDS = 5
READY_S = 30.0


class Process:
    """One `san-target serve` on a pool, with its API."""

    def __init__(self, directory: Path) -> None:
        self.api = f"http://127.0.0.1:{free_port()}"
        words = ["serve", "--name", "one", "--dir", str(directory), "--portal", f"127.0.0.1:{free_port()}"]
        words += ["--admin", self.api.removeprefix("http://")]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "san_target.cli", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline().startswith("ready ")

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()

    def stop(self) -> int:
        self._process.terminate()
        self._process.communicate(timeout=READY_S)
        return self._process.returncode


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
    volumes = httpx.get(f"{process.api}/api/v1/volumes").json()
    assert {volume["state"] for volume in volumes} <= {"ready"}
    names = {volume["name"] for volume in volumes}
    assert {name for name, exists in acknowledged.items() if exists} <= names
    assert not {name for name, exists in acknowledged.items() if not exists} & names
    assert {path.stem for path in (pool / "volumes").glob("*.blocks")} == {volume["id"] for volume in volumes}
    assert {path.stem for path in (pool / "volumes").glob("*.held")} == {volume["id"] for volume in volumes}
    assert process.stop() == 0
