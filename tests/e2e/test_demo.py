"""The demo does what its own output says, keeps its data, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.guest.machine import Guest
from tests.support.demo import Demo, children, free_base_port, runs
from tests.support.member import COMMAND
from tests.support.target import is_free, wait_for
from tests.support.tools import run

GIB = 1 << 30
MIB = 1 << 20

StartDemo = Callable[..., Demo]


@pytest.fixture
def start_demo(tmp_path: Path) -> Iterator[StartDemo]:
    """Start demos one after the other on one directory and one set of ports."""
    base_port = free_base_port()
    demos: list[Demo] = []

    def start(*options: str) -> Demo:
        demos.append(Demo(tmp_path, base_port, *options))
        return demos[-1]

    yield start
    for demo in demos:
        demo.kill()


def only_command(demo: Demo, program: str, containing: str = "") -> list[str]:
    """The words of the one command line of `program` in the how-to that contains a text."""
    (line,) = [command for command in demo.commands(program) if containing in command]
    return shlex.split(line)


@pytest.mark.tool("iscsi-ls", "qemu-img", "qemu-iscsi")
def test_the_commands_that_it_shows_work(start_demo: StartDemo, tmp_path: Path) -> None:
    demo = start_demo()
    demo.wait_until_ready()
    listed = run(only_command(demo, "iscsi-ls"))
    assert "Type:DIRECT_ACCESS" in listed
    assert demo.portal in listed
    info = only_command(demo, "qemu-img")
    assert "virtual size: 1 GiB" in run(info)
    program, *arguments = only_command(demo, "san-target", "volume list")
    assert program == "san-target"
    assert "demo" in run([str(COMMAND), *arguments])

    source, back = tmp_path / "source.img", tmp_path / "back.img"
    source.write_bytes(os.urandom(32 * MIB))
    url = info[-1]
    run(["qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", source, url])
    run(["qemu-img", "convert", "-f", "raw", "-O", "raw", url, back])
    assert back.stat().st_size == GIB
    with back.open("rb") as file:
        assert file.read(32 * MIB) == source.read_bytes()
    assert demo.end() == 0


@pytest.mark.guest
@pytest.mark.slow
def test_the_open_iscsi_commands_that_it_shows_work_on_linux(start_demo: StartDemo, guest: Guest) -> None:
    demo = start_demo()
    demo.wait_until_ready()
    discover, login = demo.commands("iscsiadm")
    guest.check(discover)
    guest.check(login)
    size = guest.check("udevadm settle; lsblk --bytes --noheadings --nodeps --output SIZE /dev/sda").strip()
    assert size == str(GIB)


@pytest.mark.tool("qemu-io", "qemu-iscsi")
def test_a_second_demo_on_the_directory_finds_the_data(start_demo: StartDemo) -> None:
    demo = start_demo("--volume", "media=64M", "--json")
    demo.wait_until_ready("{")
    ready = json.loads(demo.output)
    assert ready["ready"] is True
    (target,) = ready["targets"]
    assert (target["lun"], target["size_bytes"]) == (0, 64 * MIB)
    url = f"iscsi://{ready['members'][0]['portal']}/{target['iqn']}/0"
    run(["qemu-io", "-f", "raw", "-c", "write -P 0x5a 1M 4M", "-c", "flush", url])
    assert demo.end() == 0

    again = start_demo("--volume", "media=64M", "--json")
    again.wait_until_ready("{")
    assert json.loads(again.output)["targets"] == [target]
    assert "verification failed" not in run(["qemu-io", "-f", "raw", "-c", "read -P 0x5a 1M 4M", url])
    assert again.end() == 0


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_all_its_processes(start_demo: StartDemo, how: signal.Signals) -> None:
    demo = start_demo()
    demo.wait_until_ready()
    members = children(demo.pid)
    assert members
    assert demo.end(how) == 0
    assert not [pid for pid in members if runs(pid)]
    assert is_free(int(demo.portal.rpartition(":")[2]))


def test_members_do_not_outlive_a_demo_that_is_killed(start_demo: StartDemo) -> None:
    """kill -9 leaves the demo no chance to end them: they must notice by themselves."""
    demo = start_demo()
    demo.wait_until_ready()
    members = children(demo.pid)
    assert members
    demo.end(signal.SIGKILL)
    wait_for(lambda: not [pid for pid in members if runs(pid)], 30, "the members of a killed demo end")


def test_exit_after_ends_by_itself(start_demo: StartDemo) -> None:
    demo = start_demo("--exit-after", "0.5")
    assert demo.wait() == 0
    assert demo.output.splitlines()[-1] == "ready"


def test_taken_ports_are_told_in_one_line(start_demo: StartDemo, tmp_path: Path) -> None:
    demo = start_demo()
    demo.wait_until_ready()
    port = demo.portal.rpartition(":")[2]
    words = [str(COMMAND), "demo", "--dir", str(tmp_path / "other"), "--base-port", port]
    second = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert second.returncode == 1
    assert port in second.stderr
    assert len(second.stderr.strip().splitlines()) == 1
