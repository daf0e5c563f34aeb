"""`serve` and `demo` with a real member: what the commands say, and that data is found again."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.demo import free_base_port
from tests.support.target import wait_for

PROGRAM = (sys.executable, "-m", "san_target.cli")
TOKEN = "0123456789abcdef0123456789abcdef"


class Processes:
    """Starts the real program and ends what still runs."""

    def __init__(self) -> None:
        self._running: list[subprocess.Popen[str]] = []

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*PROGRAM, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ)
        )
        self._running.append(process)
        return process

    def add(self, process: subprocess.Popen[str]) -> None:
        """End this one too."""
        self._running.append(process)

    def close(self) -> None:
        for process in self._running:
            if process.poll() is None:
                process.kill()
            process.communicate(timeout=60)


@pytest.fixture
def processes() -> Iterator[Processes]:
    processes = Processes()
    yield processes
    processes.close()


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PROGRAM, *arguments], capture_output=True, text=True, timeout=60, check=False)


def ask(api: str, *arguments: str) -> Any:
    result = run("--api", api, *arguments, "--json")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def end(process: subprocess.Popen[str], number: signal.Signals = signal.SIGTERM) -> str:
    """End a process in order; what it said on stderr."""
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    return errors


def line(process: subprocess.Popen[str]) -> str:
    """The next line of its stdout, which must come."""
    assert process.stdout is not None
    text = process.stdout.readline()
    if not text:
        pytest.fail(f"no line on stdout: {process.communicate(timeout=60)[1]}")
    return text


def test_serve_says_ready_with_its_addresses_and_ends_cleanly(tmp_path: Path, processes: Processes) -> None:
    process = processes.start(
        *("serve", "--name", "m7", "--dir", str(tmp_path / "pool"), "--portal", "127.0.0.1:0"),
        *("--admin", "127.0.0.1:0", "--busy-poll", "50us"),
    )
    ready = line(process)
    found = re.fullmatch(r"ready name=m7 portals=127\.0\.0\.1:(\d+) admin=(http://127\.0\.0\.1:\d+)\n", ready)
    assert found, ready
    portals = ask(found[2], "portal", "list")
    assert [one["address"] for one in portals] == [f"127.0.0.1:{found[1]}"]
    assert ask(found[2], "member", "show", "m7")["state"] == "active"
    errors = end(process, signal.SIGINT)
    assert "Traceback" not in errors


def test_life_of_a_volume(tmp_path: Path, processes: Processes) -> None:
    process = processes.start(
        *("serve", "--dir", str(tmp_path / "pool"), "--name", "m1", "--portal", "127.0.0.1:0", "--admin", "127.0.0.1:0")
    )
    api = line(process).split("admin=")[1].strip()
    created = ask(api, "volume", "create", "disk", "--size", "4M", "--block-size", "4096", "--removable")
    assert (created["size_bytes"], created["block_size"], created["state"]) == (4 << 20, 4096, "ready")
    assert (created["members"], created["removable"], created["sessions"]) == (["m1"], True, [])
    (entry,) = ask(api, "volume", "map", "disk")
    assert (entry["start_lba"], entry["end_lba"], entry["owner"]) == (0, 1024, "m1")
    assert ask(api, "volume", "resize", "disk", "--size", "8M")["size_bytes"] == 8 << 20
    assert ask(api, "volume", "set", "disk", "--read-only")["read_only"]
    status = ask(api, "group", "status")
    assert (status["volumes"], status["size_bytes"], status["state"]) == (1, 8 << 20, "ok")
    refused = run("--api", api, "volume", "create", "disk", "--size", "4M")
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (1, "", 1)
    assert run("--api", api, "volume", "delete", "disk").returncode == 0
    assert ask(api, "volume", "list") == []
    end(process)


def test_serve_whose_output_lies_on_a_full_disk_serves(tmp_path: Path, processes: Processes) -> None:
    """Such as a log file beside a pool that initiators have filled."""
    port = free_base_port()
    words = ("serve", "--name", "m1", "--dir", str(tmp_path / "pool"), "--portal", f"127.0.0.1:{port}")
    with open("/dev/full", "w") as full:
        process = subprocess.Popen(
            [*PROGRAM, *words, "--admin", f"127.0.0.1:{port + 20}"], stdout=full, stderr=full, text=True
        )
    processes.add(process)
    api = f"http://127.0.0.1:{port + 20}"
    wait_for(lambda: run("--api", api, "member", "list").returncode == 0, 60, "it serves")
    assert ask(api, "volume", "create", "disk", "--size", "4M")["state"] == "ready"
    end(process)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "directory"),
        (("--dir", "{pool}", "--admin", "0.0.0.0:0"), "API token"),
        (("--dir", "{pool}", "--config", "/nonexistent.toml"), "/nonexistent.toml"),
        (("--dir", "{pool}", "--store", "mysql://x"), "mysql"),
        (("--dir", "{pool}", "--api-token-file", "/nonexistent"), "/nonexistent"),
        (("--dir", "/proc/pool"), "/proc/pool"),
    ],
)
def test_serve_that_cannot_start_says_why_in_one_line(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    filled = [argument.format(pool=tmp_path / "pool") for argument in arguments]
    result = run("serve", "--name", "m1", "--portal", "127.0.0.1:0", *filled)
    assert (result.returncode, result.stdout) == (1, "")
    last = result.stderr.splitlines()[-1]
    assert last.startswith("san-target: ")
    assert words in last
    assert "Traceback" not in result.stderr


def test_token_of_serve_is_asked_for(tmp_path: Path, processes: Processes) -> None:
    token = tmp_path / "token"
    token.write_text(TOKEN + "\n")
    token.chmod(0o600)
    process = processes.start(
        *(
            "serve",
            "--dir",
            str(tmp_path / "pool"),
            "--name",
            "m1",
            "--portal",
            "127.0.0.1:0",
            "--admin",
            "127.0.0.1:0",
        ),
        *("--api-token-file", str(token)),
    )
    api = line(process).split("admin=")[1].strip()
    refused = run("--api", api, "volume", "list")
    assert (refused.returncode, "API token" in refused.stderr) == (1, True)
    assert ask(api, "--token-file", str(token), "volume", "list") == []
    assert TOKEN not in end(process)


def demo(processes: Processes, directory: Path, *arguments: str) -> tuple[subprocess.Popen[str], Any]:
    process = processes.start(
        "demo", "--json", "--dir", str(directory), "--base-port", str(free_base_port()), *arguments
    )
    return process, json.loads(line(process))


def test_demo_finds_its_data_again(tmp_path: Path, processes: Processes) -> None:
    process, ready = demo(processes, tmp_path, "--volume", "a=1M")
    assert [one["size_bytes"] for one in ready["targets"]] == [1 << 20]
    api = f"http://{ready['members'][0]['admin']}"
    first = ask(api, "volume", "show", "a")
    end(process)
    process, ready = demo(processes, tmp_path, "--volume", "a=2M", "--volume", "b=1M")
    api = f"http://{ready['members'][0]['admin']}"
    again = ask(api, "volume", "show", "a")
    assert (again["id"], again["size_bytes"]) == (first["id"], 1 << 20)
    assert [one["size_bytes"] for one in ready["targets"]] == [1 << 20, 1 << 20]
    assert "volume a exists already, with 1 MiB" in end(process)


@pytest.mark.tool
@pytest.mark.skipif(shutil.which("iscsi-ls") is None, reason="needs iscsi-ls (libiscsi-bin)")
def test_demo_can_be_connected_to(tmp_path: Path, processes: Processes) -> None:
    process, ready = demo(processes, tmp_path)
    (target,) = ready["targets"]
    assert len(ready["members"]) == 3
    for member in ready["members"]:
        listed = subprocess.run(
            ["iscsi-ls", "--show-luns", f"iscsi://{member['portal']}"],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert target["iqn"] in listed.stdout
        assert "Lun:0" in listed.stdout
    end(process)
