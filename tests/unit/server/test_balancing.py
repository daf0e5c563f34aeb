"""Load reports between members of one process, who decides, what placement makes of it, and pauses."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import msgspec

from san_target.group.load import STALE_S
from san_target.peer.messages import LoadReport
from san_target.server.load_monitor import regions_of
from san_target.session.pattern import REGION_BLOCKS
from tests.unit.group.load_kit import load, session
from tests.unit.server.conftest import run, spec
from tests.unit.server.group_kit import HOST_A, HOST_B, OTHER_ISID, Group, group

MIB = 1 << 20


READS = 2000  # one after the other, within what one member has


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.02)


def fresh(made: Group, at: str) -> list[str]:
    member = made.members[at]
    return list(member.balancing.monitor.reports.fresh(member.environment.now_s()))


def decider(made: Group) -> str:
    return next(iter(made.members.values())).balancing.balancer.decider


def test_every_member_hears_of_the_load_of_all(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with group(tmp_path, "one", "two", "three") as made:
            for name in made.members:
                await until(lambda: fresh(made, name) == ["one", "three", "two"])  # noqa: B023
            initiator = await made.log_in("one")
            far = made.first_lba_of("two", "one")

            def told() -> bool:
                details = made.members["three"].balancing.monitor.reports.all()["one"].load.details
                # A first sample also stands for what was asked before the reads.
                return bool(details and details[0].owners and details[0].sequential_share > 0.9)

            for index in range(READS):
                cdb = bytes((0x28, 0)) + (far + index).to_bytes(4, "big") + bytes((0, 0, 1, 0))
                assert (await initiator.command(cdb, read=512))[0] == 0
                if told():
                    break
                await asyncio.sleep(0.01)
            await until(told)
            loads = {one.member: one for one in made.services["three"].loads()}
            assert {one.state for one in loads.values()} == {"fresh"}
            assert [one.member for one in loads.values() if one.is_own] == ["three"]
            report = loads["one"].report
            assert report is not None
            assert report.details[0].owners == {"two": 1.0}
            assert report.details[0].sequential_share > 0.9
            assert report.details[0].read_share == 1.0
            assert {one.volume_id for one in report.ranges} == {report.details[0].volume_id}
            await until(lambda: made.members["one"].balancing.monitor.reports.all()["two"].load.served_iops > 0)
            (shown,) = (await made.services["two"].sessions()).sessions
            assert shown.owners == {"two": 1.0}

    run(scenario)


def test_reports_of_others_than_the_present_life_do_not_count(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with group(tmp_path, "one", "two") as made:
            await until(lambda: fresh(made, "one") == ["one", "two"])
            monitor = made.members["one"].balancing.monitor
            known = monitor.reports.all()["two"].load
            note = monitor.handlers()[LoadReport]
            note(LoadReport(msgspec.structs.replace(known, incarnation=99, number=1)))
            note(LoadReport(msgspec.structs.replace(known, member="nobody")))
            assert monitor.reports.all()["two"].load.incarnation == known.incarnation
            assert "nobody" not in monitor.reports.all()

    run(scenario)


def test_a_member_that_falls_silent_is_stale_and_another_one_decides(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with group(tmp_path, "one", "two", "three") as made:
            await until(lambda: bool(decider(made)) and len(fresh(made, "one")) == 3)
            first = decider(made)
            others = [name for name in made.members if name != first]
            await made.members[first].stop()
            await until(lambda: made.members[others[0]].balancing.balancer.decider in others)
            both = {made.members[name].balancing.balancer.decider for name in others}
            await until(lambda: len({made.members[name].balancing.balancer.decider for name in others}) == 1)
            assert both <= set(others)
            await until(lambda: first not in fresh(made, others[0]))
            states = {one.member: one.state for one in made.services[others[0]].loads()}
            assert states[first] in {"stale", "missing"}
            assert STALE_S == 3.0

    run(scenario)


def test_pauses_hold_for_all_and_every_member_can_be_asked(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with group(tmp_path, "one", "two") as made:
            await until(lambda: bool(decider(made)))
            for name in made.services:
                report = await made.services[name].balance("plan")
                assert (report.state, report.decider) == ("idle", decider(made))
            await made.services["two"].pause_balancing(True)
            await until(lambda: made.members["one"].balancing.balancer.paused)
            assert (await made.services["one"].balance("explain")).state == "paused"
            await made.services["one"].pause_balancing(False)
            await until(lambda: not made.members["two"].balancing.balancer.paused)
            await made.services["one"].set_portal_policy("adaptive")
            await until(lambda: made.members["two"].exports.group.portal_policy == "adaptive")
            assert (await made.services["two"].balance("explain")).state == "active"

    run(scenario)


def test_adaptive_logins_go_to_where_the_volume_is_and_siblings_apart(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with group(tmp_path, "one", "two") as made:
            await made.services["one"].create_volume(spec("far", size_bytes=8 * MIB, members=("two",)))
            await made.services["one"].set_portal_policy("adaptive")
            placement = made.members["one"].balancing
            target = None
            async with asyncio.timeout(20):
                while target is None or not target.ready:
                    await asyncio.sleep(0.02)
                    target = made.members["one"].directory.find("iqn.2026-01.io.san-target:far")
            await until(lambda: fresh(made, "one") == ["one", "two"])
            assert placement._order(target, HOST_A, ["two"], 0) == ["two"]
            reports = placement.monitor.reports
            volume_id = target.unit.identity.volume_id
            there = session("two-9", 10.0, volume=volume_id, initiator=HOST_B)
            known = reports.all()["two"].load
            replaced = msgspec.structs.replace(
                load("two", there), incarnation=known.incarnation, number=known.number + 50
            )
            reports.note(replaced, made.members["one"].environment.now_s())
            assert placement._order(target, HOST_B, ["two"], 0) == []
            assert OTHER_ISID

    run(scenario)


def test_regions_are_cut_at_owners() -> None:
    from tests.unit.group.test_view import BLOCKS, made_map

    snapshot = made_map()
    last = BLOCKS // REGION_BLOCKS - 1
    found = regions_of(snapshot, {0: 5, 15: 1, 16: 2, last: 3, last + 9: 7})
    assert found == {
        (0, REGION_BLOCKS): 5,
        (15 * REGION_BLOCKS, 32768): 1,
        (32768, 32768 + REGION_BLOCKS): 2,
        (last * REGION_BLOCKS, BLOCKS): 3,
    }
