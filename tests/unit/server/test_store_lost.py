"""A group whose store is lost: what its pools hold is all there again, after `store rebuild`."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

from click.testing import CliRunner

from san_target.admin.service import MemberService, VolumeChanges
from san_target.cli.main import main
from san_target.server.environment import Environment
from san_target.server.member import Member
from tests.unit.server.conftest import MIB, Site, run, spec
from tests.unit.server.initiator import NAME, Initiator

NAMES = ("one", "two")
NOT_ALLOWED = 0x0202


@contextlib.asynccontextmanager
async def group(directory: Path) -> AsyncIterator[dict[str, tuple[Member, MemberService]]]:
    async with contextlib.AsyncExitStack() as lives:
        started = {}
        for name in NAMES:
            site = Site(directory / name, Environment())
            options = {"name": name, "store": f"sqlite://{directory}/group.sqlite", "peer": "127.0.0.1:0"}
            started[name] = await lives.enter_async_context(site.started(**options))
        yield started


async def logged_in(member: Member, iqn: str) -> Initiator:
    initiator = await Initiator.connect(member.portals.bound[0])
    assert await initiator.login(iqn) == 0
    await initiator.ready()
    return initiator


def cdb(operation: int, lba: int) -> bytes:
    return bytes([operation, 0]) + lba.to_bytes(4, "big") + b"\0\0\1\0"


def pattern(volume: str, lba: int) -> bytes:
    return f"{volume} {lba}".encode().ljust(512, b".")


async def write(member: Member, iqn: str, volume: str, *lbas: int) -> None:
    initiator = await logged_in(member, iqn)
    for lba in lbas:
        assert await initiator.command(cdb(0x2A, lba), pattern(volume, lba)) == (0, b"")
    initiator.close()


async def check(member: Member, iqn: str, volume: str, *lbas: int) -> None:
    initiator = await logged_in(member, iqn)
    for lba in lbas:
        assert await initiator.command(cdb(0x28, lba), read=512) == (0, pattern(volume, lba))
    initiator.close()


def store(*words: str) -> str:
    result = CliRunner().invoke(main, ["store", *words])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_everything_that_the_pools_hold_is_there_again(tmp_path: Path) -> None:
    """The backup is older than the second volume, and than the growth of the first."""
    url, backup = f"sqlite://{tmp_path}/group.sqlite", str(tmp_path / "backup")
    lbas = (0, 2047, 2048, 4095, 8191)

    async def before_backup() -> str:
        async with group(tmp_path) as members:
            member, service = members["one"]
            volume = await service.create_volume(spec("disk", 2 * MIB, members=NAMES, allow=(NAME,)))
            await write(member, volume.iqn, "disk", *lbas[:4])
            return volume.iqn

    async def after_backup(iqn: str) -> tuple[str, str]:
        async with group(tmp_path) as members:
            member, service = members["two"]
            await service.resize_volume("disk", 4 * MIB, False)
            await write(member, iqn, "disk", lbas[4])
            late = await service.create_volume(spec("late", 2 * MIB, members=NAMES))
            await write(member, late.iqn, "late", *lbas[:4])
            return late.id, late.iqn

    async def after_rebuild(iqn: str, late: str) -> None:
        async with group(tmp_path) as members:
            for member, _ in members.values():
                await check(member, iqn, "disk", *lbas)
            member, service = members["one"]
            refused = await Initiator.connect(member.portals.bound[0])
            assert await refused.login(late) == NOT_ALLOWED  # until the operator has said who
            await service.change_volume("late", VolumeChanges(allow=()))
            await check(member, late, "late", *lbas[:4])
            shown = await service.volume("disk")
            assert (shown.size_bytes, shown.state, shown.members) == (4 * MIB, "ready", ("one", "two"))
            assert shown.allow == (NAME,)
            new = await service.create_volume(spec("new", 2 * MIB, members=NAMES))
            await write(member, new.iqn, "new", *lbas[:4])

    found: list[str] = []

    async def body(step: int) -> None:
        if step == 0:
            found.append(await before_backup())
        elif step == 1:
            found.extend(await after_backup(found[0]))
        else:
            await after_rebuild(found[0], found[2])

    run(lambda: body(0))
    store("backup", backup, "--store", url)
    run(lambda: body(1))
    for path in tmp_path.glob("group.sqlite*"):
        path.unlink()
    pools = [word for name in NAMES for word in ("--pool", f"{name}={tmp_path / name / 'pool'}")]
    words = ["rebuild", "--store", url, "--backup", backup, *pools, "--volume", f"{found[1]}=late", "--json"]
    made = json.loads(store(*words))
    assert {one["name"]: one["lost_bytes"] for one in made["volumes"]} == {"disk": 0, "late": 0}
    run(lambda: body(2))
