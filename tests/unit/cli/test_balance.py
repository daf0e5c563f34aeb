"""`san-target load`, `balance` and `session move` as their reader sees them."""

from tests.unit.admin.fake_service import FakeService
from tests.unit.cli.conftest import Shell


def test_load_is_a_table_of_members(shell: Shell) -> None:
    text = shell.ok("load")
    lines = text.splitlines()
    assert lines[0].split()[:4] == ["MEMBER", "STATE", "SESSIONS", "IOPS"]
    assert lines[1].split()[:4] == ["m1", "fresh", "0", "120"]
    assert "25%" in lines[1]
    assert lines[2].split()[:4] == ["m9", "missing", "-", "-"]


def test_balance_tells_what_and_why(shell: Shell) -> None:
    text = shell.ok("balance", "explain")
    assert "yes  move session m1-1 (disk): m1 -> m2, efficiency 0.5000 -> 0.7500: 90% of what it touches" in text
    assert "no   migrate disk 0-2048: m1 -> m2" in text
    assert "active" in shell.ok("balance", "status")


def test_pause_and_resume(shell: Shell, service: FakeService) -> None:
    shell.ok("balance", "pause")
    assert service.paused
    assert "paused: `balance resume` goes on" in shell.ok("balance", "status")
    shell.ok("balance", "resume")
    assert not service.paused


def test_run_and_dry_run(shell: Shell) -> None:
    assert shell.json("balance", "run")["actions"]
    assert not shell.json("balance", "run", "--dry-run")["actions"]


def test_a_session_is_moved_or_not_with_a_reason(shell: Shell, service: FakeService) -> None:
    shell.ok("volume", "create", "disk", "--size", "1M")
    session = service.log_in("disk")
    assert "does not take it" in shell.error("session", "move", session.id, "--to", "busy")
    assert shell.ok("session", "move", session.id, "--to", "m2") == f"session {session.id} is now m2-1, after 12 ms\n"
    assert "there is no session" in shell.error("session", "move", session.id, "--to", "m2")
    assert shell.json("session", "list")[0]["member"] == "m2"
