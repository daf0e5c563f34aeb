"""What the commands do and show, against a fake member behind a real admin port."""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner

from san_target.admin.app import create_app
from san_target.admin.service import TraceSink
from san_target.admin.trace import PAGE_ENTRIES_MAX
from san_target.cli.main import main
from san_target.wire import opcodes, pdus
from tests.unit.admin.fake_service import INITIATOR, FakeService
from tests.unit.cli.conftest import Port, Shell

TOKEN = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def secrets(tmp_path: Path) -> dict[str, str]:
    """USER:SECRET_FILE values by role."""
    values = {}
    for role in ("host", "san"):
        path = tmp_path / role
        path.write_text(f"the secret of {role}\n")
        path.chmod(0o600)
        values[role] = f"{role}:{path}"
    return values


def test_create_with_everything(shell: Shell, service: FakeService, secrets: dict[str, str]) -> None:
    created = shell.json(
        *("volume", "create", "disk", "--size", "10G", "--block-size", "4096", "--copies", "1", "--members", "m1"),
        *("--allow", INITIATOR, "--allow", "eui.0123456789abcdef", "--chap", secrets["host"]),
        *("--mutual-chap", secrets["san"], "--write-through", "--read-only", "--removable", "--multipath"),
    )
    assert created["size_bytes"] == 10 << 30
    assert created["block_size"] == 4096
    assert created["members"] == ["m1"]
    assert created["allow"] == [INITIATOR, "eui.0123456789abcdef"]
    assert (created["chap"], created["mutual_chap"]) == (["host"], "san")
    assert all(created[flag] for flag in ("write_through", "read_only", "removable", "multipath"))
    assert [user.secret for user in service.secrets["disk"]] == ["the secret of host", "the secret of san"]


def test_create_with_defaults(shell: Shell) -> None:
    created = shell.json("volume", "create", "disk", "--size", "1M")
    assert (created["block_size"], created["copies"], created["members"]) == (512, 1, ["m1"])
    assert (created["allow"], created["chap"], created["mutual_chap"]) == ([], [], None)
    assert not any(created[flag] for flag in ("write_through", "read_only", "removable", "multipath"))


def test_refusals_are_one_line(shell: Shell, service: FakeService) -> None:
    shell.ok("volume", "create", "disk", "--size", "1M")
    service.log_in("disk")
    assert shell.error("volume", "create", "disk", "--size", "1M") == "volume 'disk' exists"
    assert shell.error("volume", "create", "Disk", "--size", "1M").startswith("name: Expected a name of 1 to 64")
    assert shell.error("volume", "create", "other", "--size", "1M", "--copies", "2") == "this version keeps one copy"
    assert shell.error("volume", "show", "none") == "there is no volume 'none'"
    for name in ("../../healthz", "..", ".", ""):
        assert shell.error("volume", "delete", name) == f"{name!r} is no name"
    assert shell.error("volume", "show", "a b?c#d%2e") == "there is no volume 'a b?c#d%2e'"
    assert "sessions" in shell.error("volume", "delete", "disk")
    assert "lose data" in shell.error("volume", "resize", "disk", "--size", "512K")
    assert shell.error("session", "drop", "m1-9") == "there is no session 'm1-9'"
    assert shell.error("member", "show", "m9") == "there is no member 'm9'"
    assert shell.error("portal", "show", "1.2.3.4:5") == "there is no portal '1.2.3.4:5'"


@pytest.mark.parametrize(
    "arguments",
    [
        ("volume", "create", "disk"),
        ("volume", "create", "disk", "--size", "big"),
        ("volume", "create", "disk", "--size", "1G", "--block-size", "520"),
        ("volume", "create", "disk", "--size", "1G", "--chap", "user"),
        ("volume", "create", "disk", "--size", "1G", "--chap", "user:/nonexistent/file"),
        ("volume", "set", "disk"),
        ("volume", "set", "disk", "--allow", INITIATOR, "--allow-all"),
        ("portal", "set"),
        ("portal", "set", "--policy", "random"),
        ("session", "trace", "m1-1", "--seconds", "0"),
        ("volume", "migrate"),
        ("balance", "now"),
        ("demo", "--members", "21"),
        ("demo", "--volume", "demo"),
        ("demo", "--volume", "demo=big"),
        ("demo", "--base-port", "70000"),
        ("serve", "--portal", "localhost"),
        ("--api", "ftp://host", "volume", "list"),
    ],
)
def test_wrong_usage(shell: Shell, arguments: tuple[str, ...]) -> None:
    assert "--help" in shell.error(*arguments, code=2)


def test_set_changes_what_is_given_alone(shell: Shell, secrets: dict[str, str]) -> None:
    shell.ok("volume", "create", "disk", "--size", "1M", "--allow", INITIATOR, "--chap", secrets["host"])
    changed = shell.json("volume", "set", "disk", "--read-only", "--mutual-chap", secrets["san"])
    assert (changed["read_only"], changed["allow"], changed["chap"]) == (True, [INITIATOR], ["host"])
    assert changed["mutual_chap"] == "san"
    changed = shell.json("volume", "set", "disk", "--no-read-only", "--allow-all", "--no-mutual-chap")
    assert (changed["read_only"], changed["allow"], changed["chap"]) == (False, [], ["host"])
    assert changed["mutual_chap"] is None
    changed = shell.json("volume", "set", "disk", "--mutual-chap", secrets["san"], "--multipath")
    changed = shell.json("volume", "set", "disk", "--no-chap", "--allow", "eui.0123456789abcdef")
    assert (changed["chap"], changed["mutual_chap"], changed["multipath"]) == ([], None, True)
    assert changed["allow"] == ["eui.0123456789abcdef"]


def test_resize_and_delete(shell: Shell, service: FakeService) -> None:
    shell.ok("volume", "create", "disk", "--size", "1M")
    assert "2 MiB" in shell.ok("volume", "resize", "disk", "--size", "2M")
    assert shell.json("volume", "resize", "disk", "--size", "1M", "--force")["size_bytes"] == 1 << 20
    service.log_in("disk")
    assert shell.ok("volume", "delete", "disk", "--force") == "volume disk deleted\n"
    assert shell.json("volume", "list") == []
    assert shell.json("session", "list") == []


def test_portal_policy(shell: Shell) -> None:
    assert [one["policy"] for one in shell.json("portal", "set", "--policy", "adaptive")] == ["adaptive"]
    assert "adaptive" in shell.ok("portal", "list")


@pytest.mark.parametrize(
    "command",
    [
        ("session", "list"),
        ("portal", "list"),
        ("portal", "show", "127.0.0.1:3260"),
        ("portal", "set", "--policy", "none"),
        ("volume", "list"),
        ("volume", "show", "disk"),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_members_that_do_not_answer_are_named(
    shell: Shell, service: FakeService, command: tuple[str, ...], as_json: bool
) -> None:
    """Beside the answer: what goes into a pipe stays what it is."""
    shell.ok("volume", "create", "disk", "--size", "1M")
    service.log_in("disk")
    options = ("--json",) if as_json else ()
    before = shell.run(*command, *options)
    assert (before.exit_code, before.stderr) == (0, "")
    service.unreachable = ("m2", "m3")
    after = shell.run(*command, *options)
    assert after.exit_code == 0
    expected = "m2, m3"
    if command[1] == "show" and command[0] == "portal":
        expected = ""  # nothing is missing of this one
    if expected:
        assert after.stderr == f"san-target: no answer from member {expected}: what it knows is missing here\n"
    else:
        assert after.stderr == ""
    if as_json:
        json.loads(after.stdout)


def test_portals_of_members_that_do_not_answer(shell: Shell, service: FakeService) -> None:
    service.unreachable = ("m2",)
    assert [(one["member"], one["state"]) for one in json.loads(shell.run("portal", "list", "--json").stdout)] == [
        ("m1", "active"),
        ("m2", "unreachable"),
    ]


def test_a_session_that_is_not_found_may_be_at_a_member_that_does_not_answer(
    shell: Shell, service: FakeService, port: Port
) -> None:
    import httpx

    service.unreachable = ("m2",)
    answer = httpx.get(f"{port.url}/api/v1/sessions/m2-7", trust_env=False)
    assert answer.status_code == 404
    assert "m2 does not" in answer.json()["error"]["message"]


def test_problems_of_sessions_are_shown_where_there_are_some(shell: Shell, service: FakeService) -> None:
    shell.ok("volume", "create", "disk", "--size", "1M")
    service.log_in("disk")
    assert "PROBLEM" not in shell.ok("session", "list")
    service.log_in("disk", problem="two machines use it")
    assert [one["problem"] for one in shell.json("session", "list")] == ["", "two machines use it"]
    header, *rows = shell.ok("session", "list").splitlines()
    assert rows[1][header.index("PROBLEM") :] == "two machines use it"


def test_tables_are_plain_and_aligned(shell: Shell, service: FakeService) -> None:
    for name, size in (("a", "1M"), ("a-very-long-volume-name", "10G")):
        shell.ok("volume", "create", name, "--size", size)
    service.log_in("a")
    lines = shell.ok("volume", "list").splitlines()
    assert lines[0].split() == ["NAME", "STATE", "SIZE", "ALLOCATED", "SESSIONS", "MEMBERS", "IQN"]
    assert len({line.index("ready") for line in lines[1:]}) == 1
    assert all(line.index("iqn.") == lines[0].index("IQN") for line in lines[1:])
    assert "\x1b" not in "".join(lines)
    assert INITIATOR in shell.ok("session", "list")
    assert INITIATOR in shell.ok("volume", "show", "a")


def test_human_output_of_the_others(shell: Shell, service: FakeService) -> None:
    assert shell.ok("volume", "list").startswith("no volumes yet")
    assert shell.ok("session", "list") == "no sessions\n"
    shell.ok("volume", "create", "disk", "--size", "1M")
    assert shell.ok("volume", "map", "disk").splitlines()[1].split() == ["0", "2048", "m1", "-", "-", "7"]
    assert "512 GiB of 1 TiB used" in shell.ok("group", "status")
    assert "512 GiB of 1 TiB used" in shell.ok("member", "show", "m1")
    assert "m1" in shell.ok("member", "list")
    assert shell.ok("member", "remove", "gone", "--force").splitlines() == [
        "member gone is removed",
        "lost of volume disk: 4 KiB",
    ]
    assert shell.json("member", "remove", "gone", "--force")["lost"][0]["size_bytes"] == 4096
    assert "use --force" in shell.error("member", "remove", "gone")
    assert "portal group tag  1" in shell.ok("portal", "show", "127.0.0.1:3260")
    session = service.log_in("disk")
    assert shell.ok("session", "drop", session.id) == f"session {session.id} dropped\n"


def test_control_characters_of_initiators_do_not_reach_the_terminal(shell: Shell, service: FakeService) -> None:
    shell.ok("volume", "create", "disk", "--size", "1M")
    service.log_in("disk", initiator="iqn.2001-04.com.example:\x1b]0;evil\x07")
    shown = shell.ok("session", "list") + shell.ok("volume", "show", "disk")
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert shown.count("?]0;evil?") == 2


def test_trace_shows_what_comes_until_its_time_is_up(
    shell: Shell, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = service.log_in("disk")
    set_trace = service.set_trace

    def set_trace_on_a_busy_session(session_id: str, sink: TraceSink | None) -> None:
        set_trace(session_id, sink)
        if sink is not None:
            for tag in range(PAGE_ENTRIES_MAX + 5):
                sink("received", pdus.build(opcodes.NOP_OUT, initiator_task_tag=tag))
            sink("sent", pdus.build(opcodes.NOP_IN, initiator_task_tag=7))

    monkeypatch.setattr(service, "set_trace", set_trace_on_a_busy_session)
    lines = shell.ok("session", "trace", session.id, "--seconds", "0.1").splitlines()
    assert " -> NOP-Out: final itt=0x00000000" in lines[0]
    assert " <- NOP-In: final itt=0x00000007" in lines[-1]
    entries = shell.json("session", "trace", session.id, "--seconds", "0.1")
    assert [entry["number"] for entry in entries] == list(range(1, PAGE_ENTRIES_MAX + 7))
    assert entries[0].keys() == {"number", "time", "direction", "pdu", "text"}
    assert service.sinks == {}


def test_api_can_be_named_in_three_ways(port: Port, service: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = CliRunner()
    assert runner.invoke(main, ["volume", "list", "--api", port.url]).exit_code == 0
    assert runner.invoke(main, ["--api", port.url, "volume", "list"]).exit_code == 0
    monkeypatch.setenv("SAN_TARGET_API", port.url + "/")
    assert runner.invoke(main, ["volume", "list"]).exit_code == 0
    # The option nearest to the command wins over the one before it, and that over the environment.
    assert runner.invoke(main, ["--api", "http://127.0.0.1:1", "volume", "list", "--api", port.url]).exit_code == 0
    assert runner.invoke(main, ["--api", "http://127.0.0.1:1", "volume", "list"]).exit_code == 1
    monkeypatch.setenv("SAN_TARGET_API", "no url")
    assert runner.invoke(main, ["volume", "list"]).exit_code == 2


def test_proxies_of_the_environment_are_not_used(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    assert shell.json("volume", "list") == []


def test_token(service: FakeService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port = Port()
    try:
        port.app = create_app(service, TOKEN)
        shell = Shell(port.url)
        assert "--token-file" in shell.error("volume", "list")
        path = tmp_path / "token"
        path.write_text(TOKEN + "\n")
        path.chmod(0o600)
        assert shell.json("volume", "list", "--token-file", str(path)) == []
        assert shell.json("--token-file", str(path), "volume", "list") == []
        monkeypatch.setenv("SAN_TARGET_TOKEN", TOKEN)
        assert shell.json("volume", "list") == []
        monkeypatch.setenv("SAN_TARGET_TOKEN", "wrong" * 8)
        assert "API token" in shell.error("volume", "list")
        assert "cannot read" in shell.error("volume", "list", "--token-file", str(tmp_path / "none"))
    finally:
        port.close()


def test_something_else_on_the_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        shell = Shell(f"http://127.0.0.1:{listener.getsockname()[1]}")

        def answer(body: bytes) -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(body)

        for body in (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", b"\x00" * 100, b""):
            thread = threading.Thread(target=answer, args=(body,))
            thread.start()
            assert shell.url in shell.error("volume", "list")
            thread.join(10)


def test_unicode_in_json_stays_readable(shell: Shell, service: FakeService) -> None:
    service.log_in("disk", initiator="iqn.2001-04.com.example:büro")
    assert "büro" in shell.ok("session", "list", "--json")
    assert json.loads(shell.ok("session", "list", "--json"))[0]["initiator"].endswith("büro")
