"""Checks of session reinstatement, at one portal and across portals: the old session is over, with all its tasks.

RFC 7143 6.3.5: a login with the name and ISID of a session ends that session first. "Over" is the word that matters: a
write of the old session that lands after one of the new session is the loss of data that nobody notices.
"""

import asyncio
from typing import Final

from initiator_sim import cdb as cdbs
from initiator_sim.conformance.bench import Bench
from initiator_sim.conformance.check import Check, NotApplicable, expect
from initiator_sim.conformance.login_rules import join_refused
from initiator_sim.conformance.raw_session import RawSession
from initiator_sim.conformance.tasks import WITHHELD, late_data, waiting_write
from initiator_sim.conformance.wire import Gone, Silence
from initiator_sim.sense import ILLEGAL_REQUEST, Sense
from initiator_sim.task import CHECK_CONDITION
from san_target.wire import opcodes

OLD_WRITES: Final = 64
ROUNDS: Final = 4
LOGINS: Final = 8
LATER_S: Final = 0.1
LOGICAL_UNIT_NOT_SUPPORTED: Final = Sense(ILLEGAL_REQUEST, 0x25, 0x00)


async def _replaced(bench: Bench, first: str, second: str) -> tuple[RawSession, RawSession]:
    """A session at one portal, and the one at another that took its place."""
    old = await bench.ready(first, keys=WITHHELD)
    new = await bench.ready(second, isid=old.isid)
    if new.tag != old.tag:
        raise NotApplicable(f"{old.address} and {new.address} are different portal groups, so different ports")
    return old, new


async def _old_session_ends(bench: Bench, first: str, second: str) -> None:
    old, new = await _replaced(bench, first, second)
    where = f"{old.address} after a login at {new.address}"
    expect(await old.ended(), f"the old session's connection stays open: {where}", "closed by the target")
    await new.ping()


async def same_portal(bench: Bench) -> None:
    await _old_session_ends(bench, bench.portal, bench.portal)


async def other_portal(bench: Bench) -> str:
    for first, second in bench.different_portals():
        await _old_session_ends(bench, first, second)
    return bench.across()


async def _waiting_write_is_over(bench: Bench, first: str, second: str) -> None:
    """The old session had a write that waited for its data; the data comes after the login."""
    old = await bench.ready(first, keys=WITHHELD)
    before = await bench.read(old, bench.scratch_lba)
    command, r2t, data = await waiting_write(bench, old, bench.scratch_lba, 79)
    new = await bench.ready(second, isid=old.isid)
    await late_data(old, command, r2t, data)
    await asyncio.sleep(LATER_S)
    found = await bench.read(new, bench.scratch_lba)
    expect(found == before, f"a write of the session at {old.address} was executed after its end", "nothing executed")


async def waiting_write_same_portal(bench: Bench) -> None:
    await _waiting_write_is_over(bench, bench.portal, bench.portal)


async def waiting_write_other_portal(bench: Bench) -> str:
    for first, second in bench.different_portals():
        await _waiting_write_is_over(bench, first, second)
    return bench.across()


async def _flood_is_over(bench: Bench, first: str, second: str) -> None:
    """The old session has writes under way, of which any may or may not be executed, but none after the new login."""
    lba = bench.scratch_lba
    old = await bench.ready(first)
    for number in range(OLD_WRITES):
        await old.begin(cdbs.write16(lba + number, 1), data=bench.pattern(83))
    new = await bench.ready(second, isid=old.isid)
    ours = bench.pattern(89, OLD_WRITES)
    await bench.write(new, lba, ours)
    for _ in range(2):
        found = await bench.read(new, lba, OLD_WRITES)
        expect(found == ours, f"a write of the session at {old.address} landed after its end", "nothing executed")
        await asyncio.sleep(LATER_S)


async def flood_same_portal(bench: Bench) -> None:
    for _ in range(ROUNDS):
        await _flood_is_over(bench, bench.portal, bench.portal)


async def flood_other_portal(bench: Bench) -> str:
    for first, second in bench.different_portals():
        await _flood_is_over(bench, first, second)
    return bench.across()


async def other_isid(bench: Bench) -> None:
    """A session with another ISID, or of another initiator with the same ISID, is another session."""
    first = await bench.ready()
    second = await bench.ready()
    third = await bench.ready(isid=first.isid, name=f"{bench.setting.name}:other")
    for session in (first, second, third):
        await session.ping()
        outcome = await session.command(cdbs.TEST_UNIT_READY)
        expect(outcome.good, f"a session beside others: {outcome}", "GOOD: they are different nexuses")


async def new_tsih(bench: Bench) -> None:
    old, new = await _replaced(bench, bench.portal, bench.portal)
    expect(new.tsih != 0, "TSIH 0", "a TSIH")
    if old.tsih != new.tsih:
        await join_refused(bench, new.address, old.isid, old.tsih, 0x020A)
        await new.ping()


async def never_unsupported(bench: Bench) -> str:
    """While a session changes its place, no command meets a target without its logical unit."""
    portals = bench.setting.portals
    session = await bench.ready()
    for number in range(LOGINS):
        for _ in range(4):
            await session.begin(cdbs.read16(0, 1), read_bytes=bench.block_bytes)
        following = await bench.login(portals[number % len(portals)], isid=session.isid)
        await _look_at_what_comes(session)
        for _ in range(4):
            outcome = await following.command(cdbs.read16(0, 1), read_bytes=bench.block_bytes)
            expect_unit(outcome.sense, following.address)
        session = following
    return f"{LOGINS} logins"


async def _look_at_what_comes(session: RawSession) -> None:
    """The answers that a session still gets while it ends."""
    try:
        while True:
            pdu = await session.receive(LATER_S)
            if pdu.opcode == opcodes.SCSI_RESPONSE and pdu.status == CHECK_CONDITION:
                expect_unit(Sense.parse(pdu.data[2:]), session.address)
    except (Gone, Silence):
        pass


def expect_unit(sense: Sense | None, address: str) -> None:
    """The command did not end with LOGICAL UNIT NOT SUPPORTED."""
    wanted = "anything that a host tries again: it gives up a disk that is not supported"
    expect(sense != LOGICAL_UNIT_NOT_SUPPORTED, f"{address}: {sense}", wanted)


RFC: Final = "RFC 7143 6.3.5"
CHECKS: Final = (
    Check("reinstate-same-portal", RFC, "The same ISID again ends the old session", same_portal),
    Check("reinstate-other-portal", RFC, "The same ISID at another portal ends the old session", other_portal),
    Check("reinstate-tsih", f"{RFC}, 11.12.6", "The old session's TSIH is not valid any more", new_tsih),
    Check("reinstate-other-isid", f"{RFC}, 4.4.3", "Another ISID or name is another session", other_isid),
    Check(
        "reinstate-waiting-write",
        RFC,
        "Data for a write of the old session is not used",
        waiting_write_same_portal,
        True,
    ),
    Check(
        "reinstate-waiting-write-across",
        RFC,
        "The same when the new session is at another portal",
        waiting_write_other_portal,
        writes=True,
    ),
    Check("reinstate-fenced", RFC, "No write of the old session lands after the login", flood_same_portal, True),
    Check("reinstate-fenced-across", RFC, "The same at another portal", flood_other_portal, writes=True),
    Check(
        "reinstate-unit-there",
        "SAM-5 4.7, SPC-4 4.5; practice",
        "No 5/25h LOGICAL UNIT NOT SUPPORTED while a session changes its place",
        never_unsupported,
    ),
)
