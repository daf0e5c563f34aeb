"""`initiator-sim fuzz` at a member: nothing breaks, others do not notice, nothing of it stays."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.member import Member
from tests.support.raw_initiator import RawInitiator, read16, write16
from tests.support.target import Volume, wait_for

SIMULATOR = Path(sys.executable).with_name("initiator-sim")
MIB = 1 << 20
SECONDS = "4"
GROWTH_BYTES_MAX = 96 * MIB  # receive buffers and arenas that a member keeps, whoever used them

pytestmark = pytest.mark.slow


def fuzz(*words: str) -> dict[str, Any]:
    """The report of a fuzz that must find nothing."""
    command = [SIMULATOR, "fuzz", *words, "--patience", "30", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, f"status {done.returncode}\n{done.stdout}{done.stderr}"
    report: dict[str, Any] = json.loads(done.stdout)
    assert report["ok"]
    assert report["cases"] > 50
    assert report["witness"]["operations"] > 10
    return report


def resident_bytes(member: Member) -> int:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{member.pid}/status").read_text())
    assert found is not None
    return int(found[1]) << 10


def assert_unharmed(member: Member, resident_before: int) -> None:
    """No defect was run into, memory is bounded, no session is left."""
    assert "defect" not in member.log
    assert "Traceback" not in member.log
    assert resident_bytes(member) - resident_before < GROWTH_BYTES_MAX
    wait_for(lambda: not member.json("session", "list"), 20, "the sessions of the attackers end")


def write_everywhere(volume: Volume) -> bytes:
    """Fill a MiB of the volume; what it holds then."""
    initiator = RawInitiator(volume.portal)
    assert initiator.login(volume.iqn) == 0
    initiator.ready()
    data = bytes(range(256)) * (MIB // 256)
    for lba in range(0, MIB // 512, 512):
        initiator.good(write16(lba, 512), data[lba * 512 : (lba + 512) * 512])
    initiator.logout()
    return data


def test_the_volume_stays_as_it_was(member: Member) -> None:
    volume = member.create_volume("attacked", MIB)
    written = write_everywhere(volume)
    before = resident_bytes(member)
    fuzz(volume.portal, volume.iqn, "--seconds", SECONDS)
    assert_unharmed(member, before)
    initiator = RawInitiator(volume.portal)
    assert initiator.login(volume.iqn) == 0
    initiator.ready()
    for lba in range(0, MIB // 512, 512):
        assert initiator.good(read16(lba, 512), read_bytes=512 * 512) == written[lba * 512 : (lba + 512) * 512]
    initiator.logout()


def test_with_writes(member: Member) -> None:
    volume = member.create_volume("attacked", 16 * MIB)
    before = resident_bytes(member)
    fuzz(volume.portal, volume.iqn, "--seconds", SECONDS, "--destructive")
    assert_unharmed(member, before)


def test_the_portal_alone(member: Member) -> None:
    before = resident_bytes(member)
    report = fuzz(member.portal, "--seconds", SECONDS)
    assert report["witness"]["task"] == "discoveries"
    assert_unharmed(member, before)


def test_a_guarded_volume(member: Member) -> None:
    """Attackers who know the secret, and a witness with digests."""
    secret = member.directory / "secret"
    secret.write_text("open-sesame-1001\n")
    secret.chmod(0o600)
    member.check("volume", "create", "guarded", "--size", "16M", "--chap", f"alice:{secret}")
    iqn = member.json("volume", "show", "guarded")["iqn"]
    before = resident_bytes(member)
    fuzz(member.portal, iqn, "--seconds", SECONDS, "--chap", f"alice:{secret}", "--digest", "both")
    assert_unharmed(member, before)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--destructive"], "needs a target"),
        (["--case", "3"], "--case needs the --seed"),
        (["--kind", "nonsense"], "no kind of case"),
    ],
)
def test_what_does_not_go_together_is_one_line(words: list[str], complaint: str) -> None:
    done = subprocess.run([SIMULATOR, "fuzz", "127.0.0.1:1", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert complaint in done.stderr
    assert done.stderr.count("\n") == 1
