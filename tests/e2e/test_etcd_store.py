"""A member whose store is an etcd: the commands and the volumes work as with the store of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from san_target.server.last_known import OLD
from tests.support.etcd import Etcd
from tests.support.member import Member
from tests.support.raw_initiator import RawInitiator, read16, write16
from tests.support.target import PLAIN, Volume, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.tool("etcd")]

BLOCK = 512
BLOCKS = 64


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[Etcd]:
    process = Etcd(tmp_path)
    process.start()
    process.wait_until_healthy()
    yield process
    process.kill()


def logged_in(member: Member, iqn: str) -> RawInitiator:
    initiator = RawInitiator(member.portal)
    assert initiator.login(iqn) == 0
    return initiator.ready()


def health(member: Member) -> str:
    return httpx.get(f"{member.api}/healthz", trust_env=False, timeout=30).text


def test_a_volume_survives_the_member_and_the_member_survives_its_etcd(
    new_member: Callable[..., Member], etcd: Etcd
) -> None:
    member = new_member("--store", f"etcd://{etcd.host}?prefix=/one/")
    member.start()
    volume: Volume = member.create_volume("disk", 64 << 20, PLAIN)
    data = bytes(range(256)) * (BLOCKS * BLOCK // 256)
    initiator = logged_in(member, volume.iqn)
    initiator.good(write16(8, BLOCKS), data)

    member.kill()
    member.start()
    assert member.json("volume", "show", "disk")["size_bytes"] == 64 << 20
    initiator = logged_in(member, volume.iqn)
    assert initiator.good(read16(8, BLOCKS), read_bytes=len(data)) == data

    # Without its etcd the member goes on to serve, says what is wrong, and changes nothing.
    etcd.kill()
    initiator.good(write16(8, BLOCKS), data[::-1])
    refused = member.command("volume", "create", "other", "--size", "64M")
    assert refused.returncode == 1
    assert f"{etcd.host}: Connection refused" in refused.stderr
    wait_for(lambda: "Connection refused" in health(member), 60, "the member says that its etcd is away")
    # Who looks is shown what is known, and told that it may be old.
    assert [(one["name"], one["state"], one["reason"]) for one in member.json("volume", "list")] == [
        ("disk", "ready", OLD)
    ]
    assert member.json("volume", "show", "disk")["reason"] == OLD
    assert [(one["name"], one["state"]) for one in member.json("member", "list")] == [("m0", "active")]
    status = member.json("group", "status")
    assert (status["state"], status["volumes"]) == ("degraded", 1)
    assert OLD in status["reasons"]
    assert any("Connection refused" in reason for reason in status["reasons"])
    etcd.start()
    etcd.wait_until_healthy()
    wait_for(lambda: member.command("volume", "create", "later", "--size", "64M").returncode == 0, 60, "etcd is back")
    assert initiator.good(read16(8, BLOCKS), read_bytes=len(data)) == data[::-1]
    assert {found["name"] for found in member.json("volume", "list")} == {"disk", "later"}
    assert member.stop() == 0


def test_a_member_says_why_it_cannot_start(new_member: Callable[..., Member], etcd: Etcd) -> None:
    where = etcd.host
    for url, reason in (
        (f"etcd://{where}?user=san", "user=NAME and password_file=FILE belong together. Write etcd://HOST:PORT"),
        (f"etcd://{where}?ca=/absent.pem", "the store's ca=/absent.pem cannot be read (No such file or directory)"),
    ):
        assert reason in new_member("--store", url).refusal()
    etcd.kill()
    assert f"{where}: Connection refused" in new_member("--store", f"etcd://{where}").refusal()
