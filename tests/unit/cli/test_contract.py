"""The commands, options, JSON keys and exit codes that scripts rely on: these lists change only on purpose."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from san_target.cli.main import main
from tests.unit.admin.fake_service import FakeService
from tests.unit.cli.conftest import Shell

ROOT = Path(__file__).resolve().parents[3]
API = {"--api", "--token-file"}
ACCESS = {"--allow", "--chap", "--mutual-chap"}
FLAGS = {"--write-through", "--read-only", "--removable", "--multipath"}

# Command -> its options. Arguments are in ARGUMENTS.
OPTIONS: dict[str, set[str]] = {
    "serve": {
        *("--config", "--name", "--dir", "--portal", "--peer", "--admin", "--store", "--group", "--advertise"),
        *("--api-token-file", "--busy-poll"),
    },
    "demo": {"--members", "--dir", "--base-port", "--volume", "--exit-after", "--json"},
    "group status": {"--json"} | API,
    "member list": {"--json"} | API,
    "member show": {"--json"} | API,
    "member remove": {"--force", "--json"} | API,
    "member drain": {"--wait", "--json"} | API,
    "member activate": {"--json"} | API,
    "volume create": {"--size", "--block-size", "--copies", "--members", "--json"} | ACCESS | FLAGS | API,
    "volume list": {"--json"} | API,
    "volume show": {"--json"} | API,
    "volume resize": {"--size", "--force", "--json"} | API,
    "volume delete": {"--force"} | API,
    "volume map": {"--json"} | API,
    "volume set": {"--allow-all", "--no-chap", "--no-mutual-chap", "--json"} | ACCESS | FLAGS | API,
    "portal list": {"--json"} | API,
    "portal show": {"--json"} | API,
    "portal set": {"--policy", "--json"} | API,
    "session list": {"--json"} | API,
    "session drop": API,
    "session move": {"--to", "--json"} | API,
    "session trace": {"--seconds", "--json"} | API,
    "store backup": {"--store"},
    "store restore": {"--store", "--force"},
    "store held": set(),
    "store rebuild": {
        *("--store", "--pool", "--backup", "--group", "--volume", "--dry-run", "--force", "--json"),
    },
    "load": {"--watch", "--json"} | API,
    "balance status": {"--json"} | API,
    "balance explain": {"--json"} | API,
    "balance run": {"--dry-run", "--json"} | API,
    "balance pause": API,
    "balance resume": API,
    "migrate start": {"--to", "--range", "--rate", "--wait", "--json"} | API,
    "migrate list": {"--json"} | API,
    "migrate show": {"--json"} | API,
    "migrate pause": {"--json"} | API,
    "migrate resume": {"--json"} | API,
    "migrate cancel": {"--json"} | API,
}
ARGUMENTS = {
    "member show": ["name"],
    "member remove": ["name"],
    "member drain": ["name"],
    "member activate": ["name"],
    "volume create": ["name"],
    "volume show": ["name"],
    "volume resize": ["name"],
    "volume delete": ["name"],
    "volume map": ["name"],
    "volume set": ["name"],
    "portal show": ["address"],
    "session drop": ["session_id"],
    "session move": ["session_id"],
    "session trace": ["session_id"],
    "store backup": ["file"],
    "store restore": ["file"],
    "store held": ["pool"],
    "migrate start": ["volume"],
    "migrate show": ["migration_id"],
    "migrate pause": ["migration_id"],
    "migrate resume": ["migration_id"],
    "migrate cancel": ["migration_id"],
}
# Listing command -> keys that its JSON has at least.
KEYS: dict[str, set[str]] = {
    "volume list": {"name", "iqn", "size_bytes", "block_size", "members", "sessions"},
    "volume show disk": {"name", "iqn", "size_bytes", "block_size", "members", "sessions"},
    "volume map disk": {"start_lba", "end_lba", "owner", "copies", "joining", "generation"},
    "session list": {
        *("id", "initiator", "isid", "volume", "member", "address", "since", "iops", "bytes_per_second", "owners"),
    },
    "member list": {"name", "state", "portals", "admin", "pool"},
    "member show m1": {"name", "state", "portals", "admin", "pool"},
    "portal list": {"address", "advertised", "member", "portal_group_tag", "policy"},
    "portal show 127.0.0.1:3260": {"address", "advertised", "member", "portal_group_tag", "policy"},
    "migrate list": {
        *("id", "volume", "range", "source", "destination", "state", "pieces_done", "pieces_total", "restarts"),
        *("mirrored_writes", "reason"),
    },
    "load": {"member", "state", "age_s", "report"},
    "balance status": {"decider", "state", "efficiency", "actions", "decisions"},
    "balance explain": {
        *("kind", "taken", "reason", "volume", "source", "destination", "efficiency_before", "efficiency_after"),
    },
    "group status": {"id", "name", "state", "store", "members", "volumes", "sessions"},
}


def leaves(group: click.Group, prefix: str = "") -> dict[str, click.Command]:
    """Every command by its full name."""
    found: dict[str, click.Command] = {}
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            found |= leaves(command, f"{prefix}{name} ")
        else:
            found[prefix + name] = command
    return found


def test_commands_are_exactly_these() -> None:
    assert leaves(main).keys() == OPTIONS.keys()


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_options_and_arguments(name: str) -> None:
    command = leaves(main)[name]
    options = {one.opts[0] for one in command.params if isinstance(one, click.Option)}
    assert options == OPTIONS[name]
    arguments = [one.name for one in command.params if isinstance(one, click.Argument)]
    assert arguments == ARGUMENTS.get(name, [])
    assert all(one.help for one in command.params if isinstance(one, click.Option))
    assert command.help


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_commands_and_their_options_are_documented(name: str) -> None:
    text = (ROOT / "docs" / "cli.md").read_text()
    words = set(re.findall(r"--[a-z-]+", text.replace("--[no-]", "--")))
    assert f"san-target {name}" in text
    assert words >= OPTIONS[name]


@pytest.mark.parametrize("command", sorted(KEYS))
def test_json_is_one_document_with_the_keys(command: str, shell: Shell, service: FakeService) -> None:
    shell.ok("volume", "create", "disk", "--size", "1M")
    service.log_in("disk")
    if command.startswith("migrate"):
        shell.ok("migrate", "start", "disk", "--to", "m2")
    value: Any = shell.json(*command.split())
    rows = value if isinstance(value, list) else [value]
    assert rows
    assert isinstance(value, list) == (command.split()[-1] in {"list", "load", "explain"} or "map" in command)
    for row in rows:
        assert row.keys() >= KEYS[command]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "san_target.cli", *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def test_exit_codes_of_the_real_program() -> None:
    nowhere = run("--api", "http://127.0.0.1:1", "volume", "list")
    assert (nowhere.returncode, nowhere.stdout) == (1, "")
    assert nowhere.stderr.startswith("san-target: no member answers at http://127.0.0.1:1: start one with")
    assert nowhere.stderr.count("\n") == 1
    usage = run("volume", "create")
    assert (usage.returncode, usage.stdout, usage.stderr.count("\n")) == (2, "", 1)
    version = run("--version")
    assert (version.returncode, version.stderr) == (0, "")
    assert version.stdout.startswith("san-target ")


def test_help_loads_nothing_heavy() -> None:
    program = (
        "import sys\n"
        "from san_target.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: status = end.code\n"
        "heavy = {'httpx', 'asyncio', 'starlette', 'uvicorn', 'construct', 'prometheus_client', 'structlog', 'scapy'}\n"
        "print(status, sorted(heavy & sys.modules.keys()), file=sys.stderr)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert result.stderr.strip() == "0 []"


@pytest.mark.parametrize("name", sorted({name.split()[0] for name in OPTIONS} | OPTIONS.keys()))
def test_every_command_has_help(name: str, shell: Shell) -> None:
    assert "Usage:" in shell.ok(*name.split(), "--help")
