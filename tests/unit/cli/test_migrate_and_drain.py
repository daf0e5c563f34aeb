"""The commands that move data: what they say, and how a wait ends."""

import pytest

from san_target.cli import group as group_commands
from tests.unit.admin.fake_service import FakeService
from tests.unit.cli.conftest import Shell


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_commands, "DRAIN_POLL_S", 0.0)


def test_a_migration_from_its_start_to_its_end(shell: Shell) -> None:
    shell.ok("volume", "create", "disk", "--size", "8M")
    assert "migration g1: m1 -> m2, running" in shell.ok("migrate", "start", "disk", "--to", "m2", "--rate", "50M")
    shown = shell.json("migrate", "show", "g1")
    assert shown["range"] == {"start_lba": 0, "end_lba": 16384}
    assert shown["limit_bytes_per_second"] == 50 << 20
    text = shell.ok("migrate", "list")
    assert "3/8" in text
    assert "paused" in shell.ok("migrate", "pause", "g1")
    assert "running" in shell.ok("migrate", "resume", "g1")
    assert "cancelled" in shell.ok("migrate", "cancel", "g1")
    refused = shell.run("migrate", "cancel", "g1")
    assert refused.exit_code == 1
    assert "cancelled already" in refused.stderr


def test_a_range(shell: Shell) -> None:
    shell.ok("volume", "create", "disk", "--size", "8M")
    started = shell.json("migrate", "start", "disk", "--to", "m2", "--range", "2048:4096")
    assert started[0]["range"] == {"start_lba": 2048, "end_lba": 4096}
    for wrong in ("2048", "a:b", "1:", "-1:5"):
        refused = shell.run("migrate", "start", "disk", "--to", "m2", "--range", wrong)
        assert refused.exit_code in (1, 2)


def test_a_wait_that_does_not_end_well_fails(shell: Shell) -> None:
    shell.ok("volume", "create", "disk", "--size", "8M")
    shell.ok("migrate", "start", "disk", "--to", "m2")
    shell.ok("migrate", "pause", "g1")
    from san_target.cli.migrate import check

    with pytest.raises(Exception, match="g1 is paused"):
        check([shell.json("migrate", "show", "g1")])


def test_a_drain_waits_until_nothing_is_left(shell: Shell) -> None:
    assert "left of volume disk: 4" in shell.ok("member", "drain", "m1")
    assert "nothing is left" in shell.ok("member", "drain", "m1", "--wait")
    assert "m1 is" in shell.ok("member", "activate", "m1")


def test_a_drain_tells_which_sessions_stay(shell: Shell, service: FakeService) -> None:
    shell.ok("volume", "create", "disk", "--size", "8M")
    session = service.log_in("disk")
    done = shell.run("member", "drain", "m1", "--wait")
    assert done.exit_code == 1
    assert f"session {session.id} of" in done.stdout
    assert "it holds RESERVE(6)" in done.stdout
    assert "1 of its sessions cannot be moved" in done.stderr
