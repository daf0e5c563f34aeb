"""Checks of CmdSN with its window, and of StatSN (RFC 7143 4.2.2)."""

from typing import Any, Final

from initiator_sim import cdb as cdbs
from initiator_sim.conformance.bench import Bench, offer
from initiator_sim.conformance.check import Check, expect
from initiator_sim.conformance.raw_session import MASK, RawSession
from initiator_sim.conformance.wire import named
from initiator_sim.packets import ISCSI_NopOut, ISCSI_ScsiCommand
from initiator_sim.task import ORDERED

BURST: Final = 64
BURSTS: Final = 4
NEAR_THE_END: Final = 0xFFFFFFF0


async def _ignored(session: RawSession, stray: Any) -> None:
    """The target says nothing to `stray` and goes on."""
    await session.send(stray)
    await session.settle()
    await session.ping(immediate=False)
    await session.settle()
    heard = session.heard(stray.initiator_task_tag)
    expect(not heard, f"{named(heard[0]) if heard else ''} answers a command with CmdSN {stray.cmd_sn}", "no answer")


async def beyond_the_window(bench: Bench) -> None:
    session = await bench.login()
    await _ignored(session, session.make(ISCSI_NopOut, cmd_sn=session.max_cmd_sn + 1 & MASK))


async def below_the_window(bench: Bench) -> None:
    session = await bench.login()
    await session.ping(immediate=False)
    await _ignored(session, session.make(ISCSI_NopOut, cmd_sn=session.cmd_sn - 1 & MASK))


async def duplicate(bench: Bench) -> None:
    session = await bench.login()
    number = session.cmd_sn + 1 & MASK
    first, second = (session.make(ISCSI_NopOut, cmd_sn=number, data=data) for data in (b"first", b"second"))
    await session.send(first, second)
    await session.ping(immediate=False)
    session.cmd_sn = number + 1 & MASK
    await session.next_for(first.initiator_task_tag)
    await session.settle()
    heard = session.heard(second.initiator_task_tag)
    expect(not heard, f"both commands with CmdSN {number} were answered", "the duplicate ignored")


async def held_until_its_turn(bench: Bench) -> None:
    session = await bench.login()
    early = session.make(ISCSI_NopOut, cmd_sn=session.cmd_sn + 1 & MASK, data=b"early")
    await session.send(early)
    await session.settle()
    expect(not session.heard(early.initiator_task_tag), "a command was answered ahead of its turn", "it waits")
    expect(session.exp_cmd_sn == session.cmd_sn, f"ExpCmdSN {session.exp_cmd_sn} with a gap at {session.cmd_sn}")
    await session.ping(immediate=False)
    answer = await session.next_for(early.initiator_task_tag)
    session.cmd_sn = session.cmd_sn + 1 & MASK
    expect(bytes(answer.data[:5]) == b"early", "its answer has other data", "the command executed in its turn")
    await session.ping(immediate=False)


async def in_order(bench: Bench) -> None:
    """Three ordered writes to one block, sent as 3, 2, 1: the third is the last."""
    session = await bench.ready()
    base, lba = session.cmd_sn, bench.scratch_lba
    numbers = (2, 1, 0)
    writes = [
        await session.begin(
            cdbs.write16(lba, 1), data=bench.pattern(number), cmd_sn=base + number & MASK, attribute=ORDERED
        )
        for number in numbers
    ]
    session.cmd_sn = base + len(numbers) & MASK
    for write in reversed(writes):
        outcome = await session.end(write)
        expect(outcome.good, f"a write ended with {outcome}", "GOOD for each")
    found = await bench.read(session, lba)
    expect(found == bench.pattern(2), "the block has the data of an earlier CmdSN", "execution in the order of CmdSN")


async def immediate_takes_none(bench: Bench) -> None:
    session = await bench.login()
    before = session.cmd_sn
    for _ in range(3):
        answer = await session.ping()
        expect(answer.exp_cmd_sn == before, f"ExpCmdSN {answer.exp_cmd_sn} after {before}", "ExpCmdSN stays")
    answer = await session.ping(immediate=False)
    wanted = before + 1 & MASK
    expect(answer.exp_cmd_sn == wanted, f"ExpCmdSN {answer.exp_cmd_sn} after a command with {before}", str(wanted))


async def immediate_outside(bench: Bench) -> None:
    session = await bench.login()
    outside = session.make(ISCSI_NopOut, immediate=1, cmd_sn=session.max_cmd_sn + 5 & MASK, data=b"outside")
    answer = await session.ask(outside)
    expect(bytes(answer.data[:7]) == b"outside", "no echo", "an immediate command is executed whatever its CmdSN")


async def _many_commands(bench: Bench, session: RawSession) -> None:
    """Commands of several kinds, as many at once as the window allows."""
    for _ in range(BURSTS):
        room = (session.max_cmd_sn - session.cmd_sn + 1) & MASK
        commands = [
            await session.begin(cdb, read_bytes=read_bytes)
            for cdb, read_bytes in [
                (cdbs.TEST_UNIT_READY, 0),
                (cdbs.read16(0, 1), bench.block_bytes),
                (cdbs.inquiry(), 255),
            ]
            * (min(room, BURST) // 3)
        ]
        for command in commands:
            await session.end(command)
        await session.ping(immediate=False)


async def window(bench: Bench) -> str:
    session = await bench.ready()
    room = session.max_cmd_sn - session.cmd_sn + 1 & MASK
    await _many_commands(bench, session)
    expect(not session.window_faults, "; ".join(session.window_faults[:3]), "MaxCmdSN never shrinks")
    return f"a window of {room} commands"


async def stat_sn(bench: Bench) -> None:
    session = await bench.ready(keys=offer(ImmediateData="No", MaxBurstLength="4096"))
    await _many_commands(bench, session)
    await bench.write(session, bench.scratch_lba, bench.pattern(7, 16))  # with several R2Ts, which take no StatSN
    await session.ping(b"immediate")
    await session.logout()
    expect(not session.number_faults, "; ".join(session.number_faults[:3]), "one more with each PDU of status")


async def late_acknowledgement(bench: Bench) -> None:
    session = await bench.ready()
    behind = session.exp_stat_sn
    commands = [
        await session.begin(cdbs.read16(0, 1), read_bytes=bench.block_bytes, exp_stat_sn=behind) for _ in range(20)
    ]
    for command in commands:
        outcome = await session.end(command)
        expect(outcome.good, f"a command with an old ExpStatSN ended with {outcome}", "GOOD")


async def wraps_around(bench: Bench) -> None:
    session = await bench.login(cmd_sn=NEAR_THE_END)
    expect(
        session.exp_cmd_sn == NEAR_THE_END,
        f"ExpCmdSN {session.exp_cmd_sn} after a login with CmdSN {NEAR_THE_END}",
        "the session's numbers begin with the login's CmdSN",
    )
    await session.ready()
    for _ in range(40):
        outcome = await session.command(cdbs.read16(0, 1), read_bytes=bench.block_bytes)
        expect(outcome.good, f"CmdSN {session.cmd_sn - 1 & MASK}: {outcome}", "GOOD")
    expect(not session.window_faults, "; ".join(session.window_faults[:3]), "a window that wraps around")
    expect(session.exp_cmd_sn == session.cmd_sn, f"ExpCmdSN {session.exp_cmd_sn}", str(session.cmd_sn))


async def wraps_around_out_of_order(bench: Bench) -> None:
    session = await bench.login(cmd_sn=MASK)
    after = session.make(ISCSI_NopOut, cmd_sn=0, data=b"behind the wrap")
    await session.send(after)
    await session.settle()
    expect(not session.heard(after.initiator_task_tag), "CmdSN 0 was executed before 0xffffffff", "0 comes next")
    await session.ping(immediate=False)
    await session.next_for(after.initiator_task_tag)


async def full_window(bench: Bench) -> str:
    """As many commands as MaxCmdSN allows, in one go, are all executed."""
    session = await bench.ready()
    room = min((session.max_cmd_sn - session.cmd_sn + 1) & MASK, 1024)
    commands = [
        session.make(ISCSI_ScsiCommand, final=1, attribute=1, lun=session.lun, cdb=bytes(16)) for _ in range(room)
    ]
    await session.send(*commands)
    for command in commands:
        answer = await session.next_for(command.initiator_task_tag)
        expect(answer.fields.get("status") == 0, f"{named(answer)} with status {answer.fields.get('status')}", "GOOD")
    return f"{room} commands at once"


RFC: Final = "RFC 7143 4.2.2.1"
CHECKS: Final = (
    Check("cmdsn-beyond-window", RFC, "A command beyond MaxCmdSN is ignored", beyond_the_window),
    Check("cmdsn-below-window", RFC, "A command below ExpCmdSN is ignored", below_the_window),
    Check("cmdsn-duplicate", RFC, "A second command with the same CmdSN is ignored", duplicate),
    Check("cmdsn-held", RFC, "A command that comes early waits for its turn", held_until_its_turn),
    Check("cmdsn-in-order", RFC, "Commands are executed in the order of CmdSN", in_order, writes=True),
    Check("cmdsn-immediate", RFC, "An immediate command does not advance CmdSN", immediate_takes_none),
    Check("cmdsn-immediate-outside", RFC, "An immediate command may lie outside the window", immediate_outside),
    Check("cmdsn-wrap", f"{RFC}, RFC 1982", "CmdSN goes on with 0 after 0xffffffff", wraps_around),
    Check("cmdsn-wrap-held", f"{RFC}, RFC 1982", "CmdSN 0 waits for 0xffffffff", wraps_around_out_of_order),
    Check("window-never-shrinks", RFC, "ExpCmdSN and MaxCmdSN never go back", window),
    Check("window-full", RFC, "As many commands as the window holds are taken", full_window),
    Check("statsn", "RFC 7143 4.2.2.2", "StatSN grows by one with each status", stat_sn, writes=True),
    Check("expstatsn-late", "RFC 7143 4.2.2.2", "A late ExpStatSN is no error", late_acknowledgement),
)
