"""Checks of task management: what is answered, and that an aborted task is over (RFC 7143 11.5, 11.6; RFC 7144)."""

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from initiator_sim import cdb as cdbs
from initiator_sim.conformance.bench import Bench, offer
from initiator_sim.conformance.check import Check, NotApplicable, expect
from initiator_sim.conformance.raw_session import MASK, Command, RawSession
from initiator_sim.conformance.wire import Gone, named
from initiator_sim.nexus import lun_value
from initiator_sim.packets import ISCSI_NopOut, ISCSI_TaskManagementRequest
from initiator_sim.task import CHECK_CONDITION
from san_target.wire import opcodes

Reply = TypeVar("Reply")
WAITS_FOR_DATA_S: Final = 1.0
NO_TASK: Final = 0x7FFF0001
NO_FUNCTION: Final = 0x7E
NO_LUN: Final = 250
WITHHELD: Final = offer(ImmediateData="No")
RESPONSES: Final = {
    opcodes.FUNCTION_COMPLETE: "function complete",
    opcodes.TASK_DOES_NOT_EXIST: "task does not exist",
    opcodes.LUN_DOES_NOT_EXIST: "LUN does not exist",
    opcodes.REASSIGN_NOT_SUPPORTED: "task allegiance reassignment not supported",
    opcodes.FUNCTION_NOT_SUPPORTED: "function not supported",
    opcodes.FUNCTION_SUCCEEDED: "function succeeded",
    opcodes.FUNCTION_REJECTED: "function rejected",
}


def _answer(pdu: Any) -> str:
    if pdu.opcode != opcodes.TASK_MANAGEMENT_RESPONSE:
        return named(pdu)
    return f"response {pdu.response} ({RESPONSES.get(pdu.response, 'unknown')})"


def answered(pdu: Any, *responses: int) -> None:
    """The request was answered with one of these responses."""
    right = pdu.opcode == opcodes.TASK_MANAGEMENT_RESPONSE and pdu.response in responses
    wanted = " or ".join(f"{each} ({RESPONSES[each]})" for each in responses)
    expect(right, _answer(pdu), f"response {wanted}")


async def waiting_write(bench: Bench, session: RawSession, lba: int, seed: int) -> tuple[Command, Any, bytes]:
    """A write of one block that has been asked for its data and does not get it: (command, R2T, the data withheld)."""
    data = bench.pattern(seed)
    command = await session.begin(cdbs.write16(lba, 1), data=data, withhold=True)
    r2t = await session.next_for(command.itt)
    expect(r2t.opcode == opcodes.R2T, f"{named(r2t)} for a write without its data", "an R2T")
    return command, r2t, data


async def late_data(session: RawSession, command: Command, r2t: Any, data: bytes) -> None:
    """Send the data of a task that is over; the target may take any offence but must not use it."""
    try:
        await session.send(*session.data_out(command.itt, r2t, data))
        await session.settle()
    except Gone:
        pass


async def reply_in_spite_of(
    reply: Coroutine[Any, Any, Reply], holder: RawSession, command: Command, r2t: Any, data: bytes
) -> tuple[Reply, bool]:
    """The answer to a request that ends `command` of `holder`, whose data is withheld; and whether it came first.

    If so, the data is sent afterwards, too late to be used. RFC 7143 4.2.3.3 has a target wait for the data of tasks
    that it is about to end, and lets it wait for other sessions'; such a target gets it before, and may have used it.
    """
    waiting = asyncio.ensure_future(reply)
    try:
        await asyncio.wait([waiting], timeout=WAITS_FOR_DATA_S)
        first = waiting.done()
        if not first:
            await holder.send(*holder.data_out(command.itt, r2t, data))
        answer = await waiting
    finally:
        waiting.cancel()
    if first:
        await late_data(holder, command, r2t, data)
    return answer, first


async def unknown_lun(bench: Bench) -> None:
    session = await bench.ready()
    luns = await session.good(cdbs.report_luns(), read_bytes=4096)
    there = {int.from_bytes(luns[at : at + 8], "big") for at in range(8, len(luns), 8)}
    if lun_value(NO_LUN) in there:
        raise NotApplicable(f"LUN {NO_LUN} exists")
    for function in (opcodes.LOGICAL_UNIT_RESET, opcodes.ABORT_TASK_SET):
        answered(await session.task_management(function, lun=lun_value(NO_LUN)), opcodes.LUN_DOES_NOT_EXIST)


async def unknown_task(bench: Bench) -> None:
    session = await bench.ready()
    outside = session.exp_cmd_sn - 1000 & MASK
    fields = {"referenced_task_tag": NO_TASK, "ref_cmd_sn": outside}
    answered(await session.task_management(opcodes.ABORT_TASK, **fields), opcodes.TASK_DOES_NOT_EXIST)


async def task_not_arrived(bench: Bench) -> None:
    """ABORT TASK overtakes its command: the target takes the command's CmdSN as received."""
    session = await bench.ready()
    number = session.cmd_sn
    session.cmd_sn = number + 1 & MASK
    fields = {"referenced_task_tag": NO_TASK, "ref_cmd_sn": number}
    answered(await session.task_management(opcodes.ABORT_TASK, **fields), opcodes.FUNCTION_COMPLETE)
    answer = await session.ping(immediate=False)
    wanted = number + 2 & MASK
    expect(answer.exp_cmd_sn == wanted, f"ExpCmdSN {answer.exp_cmd_sn}", f"{wanted}: CmdSN {number} is taken")
    late = session.make(ISCSI_NopOut, initiator_task_tag=NO_TASK, cmd_sn=number)
    await session.send(late)
    await session.settle()
    expect(not session.heard(NO_TASK), "the command was executed when it came", "ignored: its CmdSN is used up")


async def abort_task(bench: Bench) -> None:
    session = await bench.ready(keys=WITHHELD)
    before = await bench.read(session, bench.scratch_lba)
    command, r2t, data = await waiting_write(bench, session, bench.scratch_lba, 41)
    fields = {"referenced_task_tag": command.itt, "ref_cmd_sn": command.cmd_sn}
    abort = session.task_management(opcodes.ABORT_TASK, **fields)
    answer, first = await reply_in_spite_of(abort, session, command, r2t, data)
    answered(answer, opcodes.FUNCTION_COMPLETE)
    late = any(pdu.opcode == opcodes.SCSI_RESPONSE for pdu in session.heard(command.itt))
    expect(not late, "an aborted task has a SCSI Response after the function was complete", "none")
    found = await bench.read(await bench.ready(), bench.scratch_lba)
    expect(found == before or not first, "data of the aborted write reached the disk", "nothing written")


async def abort_task_set(bench: Bench) -> None:
    """Own tasks end, those of another nexus do not."""
    session, other = await bench.ready(keys=WITHHELD), await bench.ready(keys=WITHHELD)
    lba = bench.scratch_lba
    before = await bench.read(session, lba)
    mine = await waiting_write(bench, session, lba, 43)
    command, r2t, data = await waiting_write(bench, other, lba + 1, 47)
    abort = session.task_management(opcodes.ABORT_TASK_SET)
    answer, first = await reply_in_spite_of(abort, session, *mine)
    answered(answer, opcodes.FUNCTION_COMPLETE)
    await other.send(*other.data_out(command.itt, r2t, data))
    outcome = await other.end(command)
    expect(outcome.good, f"a write of another nexus ended with {outcome}", "GOOD: only the own tasks are aborted")
    found = await bench.read(await bench.ready(), lba)
    expect(found == before or not first, "data of an aborted write reached the disk", "nothing written")


async def no_such_function(bench: Bench) -> None:
    session = await bench.ready()
    pdu = await session.task_management(NO_FUNCTION)
    if pdu.opcode != opcodes.REJECT:
        answered(pdu, opcodes.FUNCTION_REJECTED, opcodes.FUNCTION_NOT_SUPPORTED)


async def reassign(bench: Bench) -> None:
    session = await bench.ready()
    if session.parameters.error_recovery_level >= 2:
        raise NotApplicable("ErrorRecoveryLevel 2 was agreed")
    fields = {"referenced_task_tag": NO_TASK, "ref_cmd_sn": session.exp_cmd_sn - 1 & MASK}
    pdu = await session.task_management(opcodes.TASK_REASSIGN, **fields)
    answered(pdu, opcodes.REASSIGN_NOT_SUPPORTED, opcodes.FUNCTION_NOT_SUPPORTED)


async def query_task(bench: Bench) -> None:
    session = await bench.ready(keys=offer(ImmediateData="No", iSCSIProtocolLevel="2"))
    if session.parameters.iscsi_protocol_level < 2:
        raise NotApplicable(f"iSCSIProtocolLevel {session.parameters.iscsi_protocol_level} was agreed")
    command, r2t, data = await waiting_write(bench, session, bench.scratch_lba, 53)
    fields = {"referenced_task_tag": command.itt, "ref_cmd_sn": command.cmd_sn}
    answered(await session.task_management(opcodes.QUERY_TASK, **fields), opcodes.FUNCTION_SUCCEEDED)
    await session.send(*session.data_out(command.itt, r2t, data))
    await session.end(command)
    pdu = await session.task_management(opcodes.QUERY_TASK, **fields)
    answered(pdu, opcodes.FUNCTION_COMPLETE, opcodes.TASK_DOES_NOT_EXIST)


async def commands_after_reset(bench: Bench) -> None:
    """A reset's own nexus is not told of it, and goes on."""
    session = await bench.ready()
    answered(await session.task_management(opcodes.LOGICAL_UNIT_RESET), opcodes.FUNCTION_COMPLETE)
    outcome = await session.command(cdbs.TEST_UNIT_READY)
    reset = outcome.status == CHECK_CONDITION and outcome.sense is not None and outcome.sense.asc == 0x29
    expect(outcome.good or reset, f"the next command ended with {outcome}", "GOOD, or the unit attention of a reset")
    if reset:
        await session.ready()


async def not_immediate(bench: Bench) -> None:
    """A task management request with a CmdSN of its own has its turn like any other."""
    session = await bench.ready()
    request = session.make(ISCSI_TaskManagementRequest, function=opcodes.ABORT_TASK_SET, lun=session.lun)
    answered(await session.ask(request), opcodes.FUNCTION_COMPLETE)
    answer = await session.ping()
    expect(answer.exp_cmd_sn == session.cmd_sn, f"ExpCmdSN {answer.exp_cmd_sn}", f"{session.cmd_sn}")


RFC: Final = "RFC 7143 11.6.1"
CHECKS: Final = (
    Check("tmf-unknown-lun", RFC, "A function for a LUN that is not there: response 2", unknown_lun),
    Check("tmf-unknown-task", RFC, "ABORT TASK of a task that never was: response 1", unknown_task),
    Check("tmf-task-not-arrived", RFC, "ABORT TASK that overtakes its command: response 0", task_not_arrived),
    Check("tmf-abort-task", "RFC 7143 11.5.1", "An aborted task is over", abort_task, writes=True),
    Check("tmf-abort-task-set", "RFC 7143 11.5.1", "ABORT TASK SET ends the own tasks only", abort_task_set, True),
    Check("tmf-no-function", RFC, "A function that does not exist is refused", no_such_function),
    Check("tmf-reassign", RFC, "TASK REASSIGN without ErrorRecoveryLevel 2: response 4", reassign),
    Check("tmf-query-task", "RFC 7144 4.1", "QUERY TASK finds a task", query_task, writes=True),
    Check("tmf-after-reset", "RFC 7143 11.5.1", "After LOGICAL UNIT RESET commands go on", commands_after_reset),
    Check("tmf-not-immediate", "RFC 7143 11.5, 4.2.2.1", "A function may have a CmdSN of its own", not_immediate),
)
