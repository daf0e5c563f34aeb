"""A real Linux finds a target and logs in: plain, with CHAP, with mutual CHAP, with digests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.guest.initiator import DIGESTS, REFUSED_BY_INITIATOR, REFUSED_BY_TARGET, Initiator, chap_settings
from tests.e2e.guest.machine import Guest
from tests.support.captures import assert_whole_sessions, captured, decoded, needs_root
from tests.support.member import Member
from tests.support.target import Chap, Options, Target

pytestmark = [pytest.mark.guest, pytest.mark.slow]

MIB = 1 << 20
ALICE = Chap("alice", "open-sesame-1001")
WRONG = Chap("alice", "open-sesame-9999")
TARGET = Chap("the-target", "who-goes-there-1")


@pytest.fixture
def initiator(guest: Guest) -> Initiator:
    return Initiator(guest)


def reads_and_writes(guest: Guest, disk: str) -> None:
    """A megabyte goes out and comes back unchanged, past the guest's cache."""
    guest.check(
        "head -c 1M /dev/urandom >/run/sent && "
        f"dd if=/run/sent of={disk} bs=64k oflag=direct status=none && "
        f"dd if={disk} of=/run/received bs=128k count=8 iflag=direct status=none && "
        "cmp /run/sent /run/received"
    )


def test_discovery_lists_every_volume_at_the_portal(target: Target, initiator: Initiator) -> None:
    volumes = [target.create_volume(name, 16 * MIB) for name in ("one", "two")]
    found = initiator.discover(target.portal)
    assert sorted(found) == sorted((target.portal, volume.iqn) for volume in volumes)


def test_login_without_authentication(target: Target, initiator: Initiator) -> None:
    volume = target.create_volume("plain", 64 * MIB)
    assert (target.portal, volume.iqn) in initiator.discover(target.portal)
    disk = initiator.login(volume)
    assert initiator.guest.check(f"blockdev --getsize64 {disk}").strip() == str(64 * MIB)
    reads_and_writes(initiator.guest, disk)
    initiator.logout(volume)
    initiator.guest.check(f"udevadm settle; ! [ -b {disk} ]")


def test_login_with_block_size_4096(target: Target, initiator: Initiator) -> None:
    volume = target.create_volume("wide", 64 * MIB, Options(block_size=4096))
    disk = initiator.login(volume)
    assert initiator.guest.check(f"blockdev --getss --getsize64 {disk}").split() == ["4096", str(64 * MIB)]
    reads_and_writes(initiator.guest, disk)


def test_login_with_chap(target: Target, initiator: Initiator) -> None:
    volume = target.create_volume("guarded", 16 * MIB, Options(chap=ALICE))
    status, output = initiator.try_login(volume)
    assert status == REFUSED_BY_TARGET, f"login without a secret: status {status}\n{output}"
    status, output = initiator.try_login(volume, chap_settings(WRONG))
    assert status == REFUSED_BY_TARGET, f"login with a wrong secret: status {status}\n{output}"
    reads_and_writes(initiator.guest, initiator.login(volume, chap_settings(ALICE)))


def test_login_with_mutual_chap(target: Target, initiator: Initiator) -> None:
    volume = target.create_volume("mutual", 16 * MIB, Options(chap=ALICE, mutual_chap=TARGET))
    impostor = Chap(TARGET.user, "another-secret-2")
    status, output = initiator.try_login(volume, chap_settings(ALICE, impostor))
    assert status == REFUSED_BY_INITIATOR, f"login to a target that does not know the secret: status {status}\n{output}"
    reads_and_writes(initiator.guest, initiator.login(volume, chap_settings(ALICE, TARGET)))


@pytest.mark.parametrize("algorithm", ["SHA1", "SHA256", "SHA3-256"])
def test_login_with_mutual_chap_and_a_strong_hash(member: Member, initiator: Initiator, algorithm: str) -> None:
    """The initiator offers this algorithm alone, so that a session proves that it was used."""
    volume = member.create_volume("strong", 16 * MIB, Options(chap=ALICE, mutual_chap=TARGET))
    reads_and_writes(initiator.guest, initiator.login(volume, chap_settings(ALICE, TARGET, algorithm)))


def test_login_with_header_and_data_digests(target: Target, initiator: Initiator) -> None:
    volume = target.create_volume("digests", 16 * MIB)
    disk = initiator.login(volume, DIGESTS)
    detail = initiator.session_detail()
    assert "HeaderDigest: CRC32C" in detail, detail
    assert "DataDigest: CRC32C" in detail, detail
    reads_and_writes(initiator.guest, disk)


@needs_root
@pytest.mark.tool("tcpdump")
@pytest.mark.parametrize("settings", [{}, DIGESTS], ids=["plain", "digests"])
def test_a_capture_of_it_is_decoded(
    member: Member, initiator: Initiator, tmp_path: Path, settings: dict[str, str]
) -> None:
    """`initiator-sim pcap` understands every byte that open-iscsi says."""
    volume = member.create_volume("captured", 16 * MIB)
    with captured(tmp_path / "capture.pcap", volume.portal):
        initiator.discover(volume.portal)
        reads_and_writes(initiator.guest, initiator.login(volume, settings))
        initiator.logout(volume)
    names = assert_whole_sessions(decoded(tmp_path / "capture.pcap", volume))
    assert names["Text Response"]
    assert names["SCSI Data-In"]
