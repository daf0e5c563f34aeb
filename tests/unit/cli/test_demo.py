"""The demo as a supervisor: starts, announces, and ends its members in every way it can end."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from san_target.cli.demo import parse_volume
from san_target.cli.demo_group import ADMIN_OFFSET, PEER_OFFSET, Plan, check_ports, held, ports_of, serve_command
from tests.support.demo import free_base_port

ROOT = Path(__file__).resolve().parents[3]
# Runs the demo with the stand-in for `serve`.
DEMO = """
import sys
from san_target.cli import demo_group
real = demo_group.serve_command
demo_group.serve_command = lambda plan, index: [
    sys.executable, "-m", "tests.unit.cli.fake_member", *real(plan, index)[3:]
]
from san_target.cli.main import main
main(["demo", *sys.argv[1:]])
"""


class Demos:
    """Starts demos in a directory and ends those that still run."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.base_port = free_base_port()
        self._running: list[subprocess.Popen[str]] = []

    def start(self, *arguments: str, fate: str = "") -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                DEMO,
                "--dir",
                str(self.directory),
                *("--base-port", str(self.base_port)),
                *arguments,
            ],
            cwd=ROOT,
            env={**os.environ, "SAN_TARGET_FAKE": fate},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._running.append(process)
        return process

    def run(self, *arguments: str, fate: str = "") -> tuple[int, str, str]:
        process = self.start(*arguments, fate=fate)
        output, errors = process.communicate(timeout=60)
        return process.returncode, output, errors

    def close(self) -> None:
        for process in self._running:
            if process.poll() is None:
                process.kill()
            process.communicate(timeout=60)


@pytest.fixture
def demos(tmp_path: Path) -> Iterator[Demos]:
    demos = Demos(tmp_path / "demo")
    yield demos
    demos.close()


def first_line(process: subprocess.Popen[str]) -> Any:
    assert process.stdout is not None
    return json.loads(process.stdout.readline())


def has_ended(pid: int) -> bool:
    """Whether no process has this id, or only a dead one that nobody has waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_json_line_names_members_and_targets(demos: Demos) -> None:
    code, output, _ = demos.run("--members", "1", "--json", "--exit-after", "0", "--volume", "a=1M", "--volume", "b=2M")
    assert code == 0
    assert output.count("\n") == 1
    ready = json.loads(output)
    assert ready.keys() == {"ready", "members", "targets"}
    assert ready["ready"] is True
    (member,) = ready["members"]
    assert member.keys() == {"name", "portal", "admin", "pid"}
    assert member["portal"] == f"127.0.0.1:{demos.base_port}"
    assert member["admin"] == f"127.0.0.1:{demos.base_port + ADMIN_OFFSET}"
    assert [(one["lun"], one["size_bytes"]) for one in ready["targets"]] == [(0, 1 << 20), (0, 2 << 20)]
    assert all(one.keys() == {"iqn", "lun", "size_bytes"} for one in ready["targets"])
    assert has_ended(member["pid"])


def test_how_to_has_the_real_addresses_and_ends_with_ready(demos: Demos) -> None:
    code, output, _ = demos.run("--exit-after", "0")
    assert code == 0
    assert output.splitlines()[-1] == "ready"
    for words in (
        f"iscsiadm -m discovery -t sendtargets -p 127.0.0.1:{demos.base_port}",
        f"qemu-img info iscsi://127.0.0.1:{demos.base_port}/iqn.2026-01.example.san:demo/0",
        f"iscsi-ls --show-luns iscsi://127.0.0.1:{demos.base_port}",
        f"http://127.0.0.1:{demos.base_port + ADMIN_OFFSET}/",
        str(demos.directory),
    ):
        assert words in output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_all_members_in_order(demos: Demos, number: signal.Signals) -> None:
    process = demos.start("--members", "1", "--json")
    pid = first_line(process)["members"][0]["pid"]
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "m1: ended in order" in errors
    assert (demos.directory / "m1.log").read_text() == "level=info event=serving\nended in order\n"
    assert "level=info" not in errors
    assert has_ended(pid)


def test_killed_demo_takes_its_members_along(demos: Demos) -> None:
    process = demos.start("--members", "1", "--json")
    pid = first_line(process)["members"][0]["pid"]
    descriptor = os.pidfd_open(pid)
    process.kill()
    process.wait(60)
    # The pipe's end: the member has closed its side, as it has ended.
    assert process.stderr is not None
    process.stderr.read()
    with open(descriptor, "rb", buffering=0) as member:
        import select

        assert select.select([member], [], [], 60)[0]
    assert has_ended(pid)


def test_member_that_cannot_start_ends_the_demo_with_its_words(demos: Demos) -> None:
    code, output, errors = demos.run("--members", "1", fate="refuse")
    assert (code, output) == (1, "")
    assert errors.splitlines()[-1] == "san-target: member m1 ended: the store is damaged"


def test_member_that_dies_ends_the_demo_with_its_words(demos: Demos) -> None:
    code, _, errors = demos.run("--members", "1", fate="die")
    assert code == 1
    assert errors.splitlines()[-1] == "san-target: member m1 ended: the pool is gone"


def test_three_members_unless_told_otherwise(demos: Demos) -> None:
    code, output, _ = demos.run("--json", "--exit-after", "0")
    assert code == 0
    members = json.loads(output)["members"]
    assert [one["name"] for one in members] == ["m1", "m2", "m3"]
    assert [one["portal"] for one in members] == [f"127.0.0.1:{demos.base_port + index}" for index in range(3)]
    assert len({one["pid"] for one in members}) == 3
    assert all(has_ended(one["pid"]) for one in members)


def test_a_member_of_several_that_dies_is_started_again(demos: Demos) -> None:
    process = demos.start("--members", "2", "--json")
    members = first_line(process)["members"]
    os.kill(members[1]["pid"], signal.SIGKILL)
    assert process.stderr is not None
    assert "member m2 ended (-9), and is started again" in process.stderr.readline()
    port = int(members[1]["admin"].rpartition(":")[2])
    for _ in range(600):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.05)
        else:
            break
    else:
        raise AssertionError("m2 did not come back")
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "m1: ended in order" in errors
    assert "m2: ended in order" in errors


@pytest.mark.parametrize("members", ["0", "21"])
def test_how_many_members_there_can_be(demos: Demos, members: str) -> None:
    code, output, errors = demos.run("--members", members)
    assert (code, output) == (2, "")
    assert "1<=x<=20" in errors


@pytest.mark.parametrize("offset", [0, ADMIN_OFFSET, PEER_OFFSET, PEER_OFFSET + 2])
def test_taken_port_is_named(demos: Demos, offset: int) -> None:
    with socket.create_server(("127.0.0.1", demos.base_port + offset)):
        code, output, errors = demos.run()
    assert (code, output) == (1, "")
    assert f"port {demos.base_port + offset} on 127.0.0.1 is taken" in errors
    assert "--base-port" in errors
    assert errors.count("\n") == 1


def test_second_demo_on_a_directory_is_refused(demos: Demos) -> None:
    demos.directory.mkdir()
    with (demos.directory / "demo.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, _, errors = demos.run()
    assert code == 1
    assert f"another demo runs on {demos.directory}" in errors


def plan(directory: Path, **changes: Any) -> Plan:
    values: dict[str, Any] = {
        "directory": directory,
        "base_port": 3260,
        "members": 1,
        "volumes": {},
        "exit_after_s": None,
        "as_json": False,
    }
    return Plan(**(values | changes))


def test_a_volume_that_is_given_twice(demos: Demos) -> None:
    code, output, errors = demos.run("--volume", "disk=1M", "--volume", "disk=2M")
    assert (code, output) == (2, "")
    assert "--volume: a name is given twice" in errors
    assert errors.count("\n") == 1


def test_ports_follow_the_contract(tmp_path: Path) -> None:
    assert ports_of(plan(tmp_path)) == [3260, 3280, 3300]
    assert ports_of(plan(tmp_path, members=2)) == [3260, 3261, 3280, 3281, 3300, 3301]
    command = serve_command(plan(tmp_path, members=2), 1)
    assert command[command.index("--name") + 1] == "m2"
    assert command[command.index("--portal") + 1] == "127.0.0.1:3261"
    assert command[command.index("--admin") + 1] == "127.0.0.1:3281"
    assert command[command.index("--peer") + 1] == "127.0.0.1:3301"
    assert command[command.index("--store") + 1] == f"sqlite://{tmp_path}/group.sqlite"


def test_privileged_port_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket, "create_server", refuse)
    with pytest.raises(click.ClickException, match="Permission denied"):
        check_ports(plan(tmp_path, base_port=80))


def test_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(click.ClickException, match="cannot use"), held(tmp_path / "file" / "demo"):
        pass


@pytest.mark.parametrize(("text", "volume"), [("demo=1G", ("demo", 1 << 30)), ("a=512", ("a", 512))])
def test_volume_option(text: str, volume: tuple[str, int]) -> None:
    assert parse_volume(text) == volume
