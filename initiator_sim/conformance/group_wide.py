"""Checks of state that belongs to the logical unit, not to a portal: each through every pair of portals.

With one portal they are checks of two nexuses at it, which is where every target has to be right first.
"""

from collections.abc import Awaitable, Callable
from typing import Final

from initiator_sim import cdb as cdbs
from initiator_sim.conformance.bench import Bench
from initiator_sim.conformance.check import Check, Failed, NotApplicable, expect
from initiator_sim.conformance.raw_session import Outcome, RawSession
from initiator_sim.conformance.tasks import WITHHELD, answered, reply_in_spite_of, waiting_write
from initiator_sim.inspection import designators
from initiator_sim.sense import ILLEGAL_REQUEST, UNIT_ATTENTION
from initiator_sim.task import CHECK_CONDITION, RESERVATION_CONFLICT
from san_target.wire import opcodes

REGISTER: Final = 0
RESERVE: Final = 1
CLEAR: Final = 3
PREEMPT_AND_ABORT: Final = 5
REGISTER_AND_IGNORE: Final = 6
WRITE_EXCLUSIVE: Final = 1
EXCLUSIVE_ACCESS: Final = 3
KEY: Final = 0x5A5A5A5A00000001
OTHER_KEY: Final = 0x5A5A5A5A00000002
RESET_ASC: Final = 0x29
PARAMETERS_CHANGED_ASC: Final = 0x2A
CONTROL_PAGE: Final = 0x0A
D_SENSE: Final = 0x04


async def _through_all(bench: Bench, work: Callable[[Bench, str, str], Awaitable[None]]) -> str:
    """Do the work for every pair of portals; says where sessions were."""
    for one, other in bench.pairs():
        await work(bench, one, other)
    return "sessions at " + ", ".join(sorted(bench.places))


async def _two(bench: Bench, one: str, other: str) -> tuple[RawSession, RawSession]:
    """Two nexuses of two hosts, ready."""
    first = await bench.ready(one, name=f"{bench.setting.name}:a", keys=WITHHELD)
    second = await bench.ready(other, name=f"{bench.setting.name}:b", keys=WITHHELD)
    return first, second


def _between(first: RawSession, second: RawSession) -> str:
    return f"{first.address} to {second.address}"


# --- one unit ---------------------------------------------------------------------------------------------------------


async def same_unit(bench: Bench) -> str:
    """Who the unit is, and how large, is the same everywhere."""
    seen = {}
    for portal in bench.setting.portals:
        session = await bench.ready(portal)
        page = await session.good(cdbs.inquiry(0x83), read_bytes=255)
        names = [each for each in designators(page[4:]) if each["of"] == "logical unit"]
        serial = await session.good(cdbs.inquiry(0x80), read_bytes=255)
        size = (await session.good(cdbs.read_capacity16(), read_bytes=32))[:12]
        seen[portal] = (str(names), serial, size)
    expect(len(set(seen.values())) == 1, f"{len(set(seen.values()))} different units", "one unit behind all portals")
    names = designators(page[4:])
    expect(names, "no designators in page 83h", "at least one that names the unit")
    return f"{len(seen)} portals"


async def _seen_at_once(bench: Bench, one: str, other: str) -> None:
    first, second = await _two(bench, one, other)
    for seed in (97, 101):
        data = bench.pattern(seed)
        await bench.write(first, bench.scratch_lba, data)
        found = await bench.read(second, bench.scratch_lba)
        expect(found == data, f"an acknowledged write is not seen, {_between(first, second)}", "what was written")


async def seen_at_once(bench: Bench) -> str:
    return await _through_all(bench, _seen_at_once)


# --- reservations -----------------------------------------------------------------------------------------------------


async def _reserve_out(session: RawSession, action: int, kind: int, key: int, service_key: int = 0) -> Outcome:
    parameters = cdbs.persistent_reserve_parameters(key, service_key)
    return await session.command(cdbs.persistent_reserve_out(action, kind), data=parameters)


async def _must(session: RawSession, action: int, kind: int, key: int, service_key: int = 0) -> None:
    outcome = await _reserve_out(session, action, kind, key, service_key)
    expect(outcome.good, f"PERSISTENT RESERVE OUT {action:02x}h at {session.address}: {outcome}", "GOOD")


async def _prepare_reservations(bench: Bench) -> None:
    """Look that nobody has a registration that a check would disturb, and see to it that none of ours stays."""
    session = await bench.ready()
    outcome = await session.command(cdbs.persistent_reserve_in(0), read_bytes=4096)
    if not outcome.good:
        raise NotApplicable(f"PERSISTENT RESERVE IN ended with {outcome}")
    if int.from_bytes(outcome.data[4:8], "big"):
        raise NotApplicable("somebody has registered with the disk already")
    bench.at_end(lambda: _clear(bench))


async def _clear(bench: Bench) -> None:
    session = await bench.ready(name=f"{bench.setting.name}:cleaner")
    await _must(session, REGISTER_AND_IGNORE, 0, 0, KEY)
    await _must(session, CLEAR, 0, KEY)
    await session.logout()


def _conflict(outcome: Outcome, what: str) -> None:
    expect(outcome.status == RESERVATION_CONFLICT, f"{what}: {outcome}", "RESERVATION CONFLICT")


async def _write(bench: Bench, session: RawSession, seed: int) -> Outcome:
    return await session.command(cdbs.write16(bench.scratch_lba, 1), data=bench.pattern(seed))


async def _read(bench: Bench, session: RawSession) -> Outcome:
    return await session.command(cdbs.read16(bench.scratch_lba, 1), read_bytes=bench.block_bytes)


async def _enforced(bench: Bench, one: str, other: str) -> None:
    first, second = await _two(bench, one, other)
    where = _between(first, second)
    await _must(first, REGISTER, 0, 0, KEY)
    await _must(first, RESERVE, WRITE_EXCLUSIVE, KEY)
    _conflict(await _write(bench, second, 103), f"a write against Write Exclusive, {where}")
    outcome = await _read(bench, second)
    expect(outcome.good, f"a read with Write Exclusive, {where}: {outcome}", "GOOD")
    outcome = await _write(bench, first, 107)
    expect(outcome.good, f"a write of the holder: {outcome}", "GOOD")
    await _must(first, CLEAR, 0, KEY)
    await _must(first, REGISTER, 0, 0, KEY)
    await _must(first, RESERVE, EXCLUSIVE_ACCESS, KEY)
    _conflict(await _read(bench, second), f"a read against Exclusive Access, {where}")
    await _must(first, CLEAR, 0, KEY)
    await second.ready()
    outcome = await _write(bench, second, 109)
    expect(outcome.good, f"a write after CLEAR, {where}: {outcome}", "GOOD")


async def reservation_enforced(bench: Bench) -> str:
    await _prepare_reservations(bench)
    return await _through_all(bench, _enforced)


async def _follows(bench: Bench, one: str, other: str) -> None:
    first = await bench.ready(one)
    await _must(first, REGISTER, 0, 0, KEY)
    await _must(first, RESERVE, WRITE_EXCLUSIVE, KEY)
    await first.logout()
    again = await bench.ready(other, isid=first.isid)
    if again.tag != first.tag:
        raise NotApplicable(f"{first.address} and {again.address} are different portal groups, so different ports")
    outcome = await _write(bench, again, 113)
    expect(outcome.good, f"the holder's write after it moved, {_between(first, again)}: {outcome}", "GOOD")
    await _must(again, CLEAR, 0, KEY)


async def reservation_follows(bench: Bench) -> str:
    """The same initiator port at another portal of the group is the same nexus: its registration is there."""
    await _prepare_reservations(bench)
    return await _through_all(bench, _follows)


async def _preempted(bench: Bench, one: str, other: str) -> None:
    first, second = await _two(bench, one, other)
    where = _between(second, first)
    await _must(first, REGISTER, 0, 0, KEY)
    await _must(first, RESERVE, WRITE_EXCLUSIVE, KEY)
    before = await bench.read(first, bench.scratch_lba)
    write = await waiting_write(bench, first, bench.scratch_lba, 127)
    await _must(second, REGISTER, 0, 0, OTHER_KEY)
    preempt = _reserve_out(second, PREEMPT_AND_ABORT, WRITE_EXCLUSIVE, OTHER_KEY, KEY)
    outcome, at_once = await reply_in_spite_of(preempt, first, *write)
    if outcome.sense is not None and outcome.sense.key == ILLEGAL_REQUEST:
        raise NotApplicable(f"PREEMPT AND ABORT is not supported: {outcome}")
    expect(outcome.good, f"PREEMPT AND ABORT, {where}: {outcome}", "GOOD")
    found = await bench.read(second, bench.scratch_lba)
    unused = found == before or not at_once
    expect(unused, f"a preempted nexus wrote, {where}", "nothing, from PREEMPT AND ABORT on")
    again = await bench.ready(one, name=first.name, isid=first.isid)
    _conflict(await _write(bench, again, 131), f"a write of the preempted nexus, {where}")
    await _must(second, CLEAR, 0, OTHER_KEY)


async def preempted(bench: Bench) -> str:
    await _prepare_reservations(bench)
    return await _through_all(bench, _preempted)


# --- resets and unit attentions ---------------------------------------------------------------------------------------


async def _attention(session: RawSession, asc: int, what: str) -> None:
    """The next command meets this unit attention, and the one after it does not meet it again."""
    outcome = await session.command(cdbs.TEST_UNIT_READY)
    sense = outcome.sense
    met = outcome.status == CHECK_CONDITION and sense is not None and (sense.key, sense.asc) == (UNIT_ATTENTION, asc)
    expect(met, f"{what}: {outcome}", f"UNIT ATTENTION {asc:02x}h")
    later = await session.ready()
    expect(all(each.asc != asc for each in later), f"{what}: the same unit attention again", "once for each nexus")


async def _reset_told(bench: Bench, one: str, other: str) -> None:
    first, second = await _two(bench, one, other)
    third = await bench.ready(one, name=f"{bench.setting.name}:c")
    answered(await first.task_management(opcodes.LOGICAL_UNIT_RESET), opcodes.FUNCTION_COMPLETE)
    await _attention(second, RESET_ASC, f"after LOGICAL UNIT RESET, {_between(first, second)}")
    await _attention(third, RESET_ASC, f"after LOGICAL UNIT RESET, {_between(first, third)}")


async def reset_told(bench: Bench) -> str:
    return await _through_all(bench, _reset_told)


async def _reset_ends(bench: Bench, one: str, other: str) -> None:
    first, second = await _two(bench, one, other)
    before = await bench.read(first, bench.scratch_lba)
    write = await waiting_write(bench, second, bench.scratch_lba, 137)
    reset = first.task_management(opcodes.LOGICAL_UNIT_RESET)
    answer, at_once = await reply_in_spite_of(reset, second, *write)
    answered(answer, opcodes.FUNCTION_COMPLETE)
    await first.ready()
    found = await bench.read(first, bench.scratch_lba)
    unused = found == before or not at_once
    where = _between(first, second)
    expect(unused, f"a write of another nexus was executed after LOGICAL UNIT RESET, {where}", "it is over")


async def reset_ends_tasks(bench: Bench) -> str:
    return await _through_all(bench, _reset_ends)


async def _reset_keeps(bench: Bench, one: str, other: str) -> None:
    first, second = await _two(bench, one, other)
    await _must(first, REGISTER, 0, 0, KEY)
    await _must(first, RESERVE, WRITE_EXCLUSIVE, KEY)
    answered(await second.task_management(opcodes.LOGICAL_UNIT_RESET), opcodes.FUNCTION_COMPLETE)
    await second.ready()
    _conflict(await _write(bench, second, 139), f"a write after LOGICAL UNIT RESET, {_between(first, second)}")
    await first.ready()
    await _must(first, CLEAR, 0, KEY)


async def reset_keeps_reservations(bench: Bench) -> str:
    await _prepare_reservations(bench)
    return await _through_all(bench, _reset_keeps)


async def _mode_page(session: RawSession, changeable: bool = False) -> bytearray:
    """The control mode page: its current values, or the mask of those that can be changed."""
    cdb = bytearray(cdbs.mode_sense10(CONTROL_PAGE | (0x40 if changeable else 0), length=255))
    data = await session.good(bytes(cdb), read_bytes=255)
    page = bytearray(data[8 + int.from_bytes(data[6:8], "big") :])
    if len(page) < 3 or page[0] & 0x3F != CONTROL_PAGE:
        raise Failed("MODE SENSE (10) has no control mode page", "page 0Ah (SPC-4 7.5.8)")
    return page


async def _select(session: RawSession, page: bytearray) -> Outcome:
    page[0] &= 0x3F  # PS is reserved in MODE SELECT
    data = bytes(8) + bytes(page)
    return await session.command(b"\x55\x10" + bytes(5) + len(data).to_bytes(2, "big") + b"\0", data=data)


async def _mode_told(bench: Bench, one: str, other: str) -> None:
    first, second = await _two(bench, one, other)
    page = await _mode_page(first)
    original = bytearray(page)
    if not (await _mode_page(first, changeable=True))[2] & D_SENSE:
        raise NotApplicable("D_SENSE cannot be changed")
    page[2] ^= D_SENSE
    outcome = await _select(first, page)
    expect(outcome.good, f"MODE SELECT: {outcome}", "GOOD")
    try:
        where = _between(first, second)
        await _attention(second, PARAMETERS_CHANGED_ASC, f"after MODE SELECT, {where}")
        found = (await _mode_page(second))[2] & D_SENSE
        expect(found == page[2] & D_SENSE, f"the old value of D_SENSE, {where}", "the new one: the unit has one page")
    finally:
        await _select(first, original)


async def mode_told(bench: Bench) -> str:
    return await _through_all(bench, _mode_told)


CHECKS: Final = (
    Check("group-same-unit", "SPC-4 7.8.6", "All portals show one and the same unit", same_unit),
    Check("group-writes-seen", "RFC 7143 4.4.3", "A write is seen through every portal at once", seen_at_once, True),
    Check(
        "group-reservation",
        "SPC-4 5.13, RFC 7143 4.4.3.2",
        "A persistent reservation holds against other nexuses, through each portal",
        reservation_enforced,
        writes=True,
    ),
    Check(
        "group-reservation-follows",
        "SPC-4 5.13.5, RFC 7143 4.4.3.2",
        "A registration belongs to the nexus, whichever portal it uses",
        reservation_follows,
        writes=True,
    ),
    Check(
        "group-preempt",
        "SPC-4 5.13.11.5",
        "PREEMPT AND ABORT ends a nexus, through each portal",
        preempted,
        writes=True,
    ),
    Check("group-reset-told", "SAM-5 6.3.3, 5.14", "A reset is told to every other nexus, once", reset_told),
    Check(
        "group-reset-ends-tasks", "SAM-5 6.3.3, 7.7", "A reset ends the tasks of all nexuses", reset_ends_tasks, True
    ),
    Check(
        "group-reset-keeps-reservation",
        "SPC-4 5.13.1",
        "A reset leaves persistent reservations as they are",
        reset_keeps_reservations,
        writes=True,
    ),
    Check(
        "group-mode-told", "SPC-4 6.11, SAM-5 5.14", "Changed mode parameters are told to every other nexus", mode_told
    ),
)
