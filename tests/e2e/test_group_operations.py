"""What befalls a group in its first months, and what its operator does then: clones, a member that never comes back, a
store that is lost. And a group of which every connection but the initiators' is secured."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.certificates import CLIENT, SERVER, Authority
from tests.support.etcd import Etcd
from tests.support.group import Group, GroupMember, running
from tests.support.group_trial import Trial
from tests.support.member import COMMAND
from tests.support.raw_initiator import GOOD, RawInitiator, read16, write16
from tests.support.target import Volume, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

MIB = 1 << 20
BLOCK = 512
MEDIUM_ERROR = 3
NOT_ALLOWED = 0x0202
SETTINGS = "do both members have the same peer_tls_* settings?"


@pytest.fixture
def own_group(tmp_path: Path) -> Iterator[Group]:
    """A group that this test may harm."""
    with running(Group(tmp_path / "group")) as group:
        yield group


def log_in(portal: str, volume: Volume, **options: str) -> RawInitiator:
    initiator = RawInitiator(portal, **options)  # type: ignore[arg-type]
    assert initiator.login(volume.iqn) == 0
    return initiator.ready()


def pattern(lba: int) -> bytes:
    return f"block {lba} ".encode().ljust(BLOCK, b".")


def fill(group: Group, volume: Volume) -> list[int]:
    """Write the first block of each range; their LBAs."""
    lbas = [part.start for parts in group.owners(volume).values() for part in parts]
    initiator = log_in(volume.portal, volume)
    for lba in lbas:
        initiator.good(write16(lba, 1), pattern(lba))
    initiator.logout()
    return lbas


def check(initiator: RawInitiator, lbas: Sequence[int]) -> None:
    for lba in lbas:
        assert initiator.good(read16(lba, 1), read_bytes=BLOCK) == pattern(lba)


# --- clones -----------------------------------------------------------------------------------------------------------


def test_clones_that_log_in_through_different_members_are_told(own_group: Group) -> None:
    """Two machines with one initiator name and ISID end each other's sessions, wherever they log in."""
    group = own_group
    volume = group.create_volume("cloned", 3 * MIB)
    # Kept, so that each session is ended by the other machine's.
    machines = [log_in(group[number % 2].portal, volume, source=f"127.0.0.{21 + number % 2}") for number in range(8)]
    assert machines[-1].command(bytes(6)).status == GOOD
    told = "logs in from 127.0.0.21 and 127.0.0.22 in turn, each time ending the other's session: they are clones"
    for member in group:
        assert told in member.ask("GET", f"/volumes/{volume.name}")["reason"]
        assert any(told in one["problem"] for one in member.ask("GET", "/sessions"))
        assert any(told in reason for reason in member.ask("GET", "/group")["reasons"])
    assert sum("two machines use one initiator port" in member.log for member in group) > 0


# --- a member that never comes back -----------------------------------------------------------------------------------


def test_a_member_that_never_comes_back(own_group: Group) -> None:
    group = own_group
    volume = group.create_volume("disk", 6 * MIB)
    owners = group.owners(volume)
    lbas = fill(group, volume)
    theirs = [part.start for part in owners["m3"]]
    kept = sorted(set(lbas) - set(theirs))
    group[2].kill()

    refused = group[0].command("member", "remove", "m3")
    assert refused.returncode == 1
    assert len(refused.stderr.strip().splitlines()) == 1
    removal = group[0].json("member", "remove", "m3", "--force")
    assert removal["lost"] == [
        {"volume": "disk", "ranges": len(theirs), "size_bytes": sum(len(part) for part in owners["m3"]) * BLOCK}
    ]
    for member in group.members[:2]:
        wait_for(lambda: "" in group.owners(volume), 30, "the map shows it")
        initiator = log_in(member.portal, volume)
        check(initiator, kept)
        for lba in theirs:
            result = initiator.command(read16(lba, 1), read_bytes=BLOCK)
            assert result.condition is not None
            assert result.condition[0] == MEDIUM_ERROR
        assert initiator.command(bytes(6)).status == GOOD  # TEST UNIT READY
        initiator.logout()

    assert "was removed from the group" in group[2].refusal()
    shutil.rmtree(group[2].pool)
    group[2].start()
    group.wait_until_active()
    later = group.create_volume("later", 6 * MIB)
    assert "m3" in group.owners(later)
    filled = fill(group, later)
    check(log_in(group[2].portal, later), filled)


# --- a store that is lost ---------------------------------------------------------------------------------------------


def store(*words: str) -> str:
    """The output of a `san-target store` command that must succeed."""
    done = subprocess.run([str(COMMAND), "store", *words], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def remove_store(group: Group) -> None:
    path = Path(group.store_url.removeprefix("sqlite://"))
    for one in path.parent.glob(f"{path.name}*"):
        one.unlink()


def volume_id(group: Group, volume: Volume) -> str:
    return str(group.any_running().json("volume", "show", volume.name)["id"])


def test_a_store_that_is_lost_is_made_of_what_the_pools_hold(own_group: Group, tmp_path: Path) -> None:
    """The backup is older than a volume, and than a migration."""
    group, backup = own_group, str(tmp_path / "backup")
    before = group.create_volume("before", 6 * MIB)
    written = {before.name: fill(group, before)}
    store("backup", backup, "--store", group.store_url)
    after = group.create_volume("after", 6 * MIB)
    written[after.name] = fill(group, after)
    group[0].check("migrate", "start", before.name, "--to", "m2", "--wait")
    assert list(group.owners(before)) == ["m2"]
    name = f"{volume_id(group, after)}={after.name}"
    assert [member.stop() for member in group] == [0, 0, 0]

    remove_store(group)
    for member in group:
        assert "is empty, but the pool" in member.refusal()
    remove_store(group)
    store("restore", backup, "--store", group.store_url)
    assert "the store is older than the pool" in group[1].refusal()
    pools = [word for member in group for word in ("--pool", f"{member.member_name}={member.pool}")]
    words = ["rebuild", "--store", group.store_url, "--backup", backup, "--volume", name, *pools, "--force"]
    shown: dict[str, Any] = json.loads(store(*words, "--dry-run", "--json"))
    assert shown
    store(*words)

    group.start()
    group.wait_until_active()
    assert list(group.owners(before)) == ["m2"]
    # Who may use what the backup does not know is for the operator to say.
    assert RawInitiator(after.portal).login(after.iqn) == NOT_ALLOWED
    group[0].check("volume", "set", after.name, "--allow-all")
    for volume in (before, after):
        for member in group:
            initiator = log_in(member.portal, volume)
            check(initiator, written[volume.name])
            initiator.logout()


# --- everything secured -----------------------------------------------------------------------------------------------


@pytest.mark.tool("etcd", "openssl")
def test_members_and_their_etcd_over_tls(tmp_path: Path) -> None:
    """etcd wants certificates and a user; members want each other's. One without any is not talked to."""
    authority = Authority(tmp_path)
    server, client = authority.issue("etcd", SERVER, CLIENT), authority.issue("san", CLIENT)
    peer = authority.issue("peer", SERVER, CLIENT)
    configuration, password = tmp_path / "peers.toml", tmp_path / "password"
    configuration.write_text(
        f'peer_tls_ca = "{authority.certificate}"\npeer_tls_cert = "{peer.certificate}"\npeer_tls_key = "{peer.key}"\n'
    )
    password.write_text("secret")
    etcd = Etcd(tmp_path, scheme="https")
    try:
        etcd.tls = authority.context(client)
        files = ["--cert-file", str(server.certificate), "--key-file", str(server.key)]
        files += ["--trusted-ca-file", str(authority.certificate), "--client-cert-auth", "--bcrypt-cost", "4"]
        etcd.start(*files)
        etcd.wait_until_listening()
        etcd.make_user("group", "secret", "/group/")
        etcd.enable_users()
        where = f"ca={authority.certificate}&cert={client.certificate}&key={client.key}"
        url = f"etcd://{etcd.host}?{where}&user=group&password_file={password}&prefix=/group/"
        group = Group(tmp_path / "group", store_url=url, options=["--config", str(configuration)])
        plain = GroupMember(tmp_path / "plain", "m4", url)
        try:
            group.start()
            group.wait_until_active()

            async def story(trial: Trial) -> None:
                await trial.work(1.0)
                await trial.flows()

            Trial(group).play(story)
            plain.start()
            wait_for(lambda: plain.log.count(SETTINGS) == len(group.members), 60, "it tells why nobody talks to it")
            assert "peer link up" not in plain.log
            assert all(f'peer link up" peer={plain.member_name}' not in member.log for member in group)
        finally:
            plain.kill()
            group.kill()
    finally:
        etcd.kill()
