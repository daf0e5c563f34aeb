"""Everything of a connection but commands: NOP, logout, task management, reinstatement, time, framing errors."""

import asyncio
import struct

import pytest

from san_target.session.connection import Stage
from san_target.session.parameters import TargetLimits
from san_target.wire import opcodes
from san_target.wire.text import decode_pairs, encode_pairs
from tests.support.session_driver import INITIATOR, IQN, Driver, OneTarget
from tests.unit.session.conftest import PausedDevice
from tests.unit.session.test_connection_commands import BLOCK, logged_in, pattern, read_16, write_16

TASK_MANAGEMENT = opcodes.TASK_MANAGEMENT_REQUEST


def test_ping_is_answered_with_its_data(directory: OneTarget) -> None:
    async def scenario() -> None:
        driver = await logged_in(directory)
        tag = driver.send(opcodes.NOP_OUT, b"hello", immediate=True, in_order=False, cmd_sn=driver.cmd_sn)
        [(answer, data)] = driver.answers()
        assert (answer.opcode, answer.initiator_task_tag, data) == (opcodes.NOP_IN, tag, b"hello")
        assert answer.target_transfer_tag == opcodes.RESERVED_TAG

    asyncio.run(scenario())


def test_silent_initiators_are_pinged_then_dropped(directory: OneTarget) -> None:
    async def scenario() -> None:
        driver = await logged_in(directory, limits=TargetLimits(nop_interval_s=15, nop_timeout_s=15))
        connection, now = driver.connection, driver.host.time_s
        connection.tick(now + 1)
        connection.tick(now + 17)
        [(ping, _)] = driver.answers()
        assert ping.opcode == opcodes.NOP_IN
        assert ping.initiator_task_tag == opcodes.RESERVED_TAG
        driver.send(
            opcodes.NOP_OUT,
            immediate=True,
            in_order=False,
            initiator_task_tag=opcodes.RESERVED_TAG,
            target_transfer_tag=ping.target_transfer_tag,
        )
        assert driver.answers() == []
        connection.tick(now + 33)
        connection.tick(now + 50)
        assert len(driver.answers()) == 1
        connection.tick(now + 66)
        assert connection.stage is Stage.CLOSED
        assert connection.close_reason == "the initiator does not answer"

    asyncio.run(scenario())


def test_half_open_logins_end(directory: OneTarget) -> None:
    async def scenario() -> None:
        driver = Driver(directory)
        driver.connection.tick(driver.host.time_s + 16)
        assert driver.connection.stage is Stage.CLOSED

    asyncio.run(scenario())


@pytest.mark.parametrize("opcode", [opcodes.SCSI_COMMAND, opcodes.NOP_OUT, opcodes.DATA_OUT, opcodes.LOGOUT_REQUEST])
def test_nothing_but_login_before_login(directory: OneTarget, opcode: int) -> None:
    async def scenario() -> None:
        driver = Driver(directory)
        driver.feed(bytes([opcode]) + bytes(47))
        assert driver.connection.stage is Stage.CLOSED
        assert driver.answers() == []

    asyncio.run(scenario())


@pytest.mark.parametrize("opcode", [opcodes.SCSI_COMMAND, opcodes.NOP_OUT, opcodes.LOGOUT_REQUEST, 0x0B])
def test_another_pdu_within_a_login_is_told_so(directory: OneTarget, opcode: int) -> None:
    async def scenario() -> None:
        driver = Driver(directory)
        keys = encode_pairs([("InitiatorName", INITIATOR), ("TargetName", IQN), ("AuthMethod", "None")])
        fields = {"isid": driver.isid, "initiator_task_tag": 5}
        driver.send(opcodes.LOGIN_REQUEST, keys, in_order=False, transit=True, next_stage=1, **fields)
        [(answer, _)] = await driver.settle()
        assert (answer.status_class, answer.next_stage) == (0, 1)
        driver.feed(bytes([opcode]) + bytes(47))
        [(answer, _)] = driver.answers()
        assert (answer.opcode, answer.status_class, answer.status_detail) == (opcodes.LOGIN_RESPONSE, 2, 0x0B)
        assert (bytes(answer.isid), answer.initiator_task_tag) == (driver.isid, 5)
        assert driver.connection.stage is Stage.CLOSED

    asyncio.run(scenario())


def test_logout_is_answered_when_open_commands_have_ended(directory: OneTarget, device: PausedDevice) -> None:
    async def scenario() -> None:
        driver = await logged_in(directory)
        device.at_once = False
        device.pause()
        driver.command(write_16(0, 1), pattern(1), write=BLOCK)
        await asyncio.sleep(0.01)
        driver.send(opcodes.LOGOUT_REQUEST, immediate=True, in_order=False, reason=0)
        await asyncio.sleep(0.01)
        assert driver.answers() == []
        device.resume()
        [(answer, _)] = await driver.settle()
        assert (answer.opcode, answer.response) == (opcodes.LOGOUT_RESPONSE, 0)
        assert driver.host.closed
        assert not directory.target.sessions

    asyncio.run(scenario())


def test_logout_for_recovery_is_not_supported(directory: OneTarget) -> None:
    async def scenario() -> None:
        driver = await logged_in(directory)
        driver.send(opcodes.LOGOUT_REQUEST, immediate=True, in_order=False, reason=2)
        [(answer, _)] = driver.answers()
        assert answer.response == 2
        assert driver.connection.stage is Stage.FULL_FEATURE

    asyncio.run(scenario())


def test_abort_task_ends_the_task_without_response(directory: OneTarget, device: PausedDevice) -> None:
    async def scenario() -> None:
        driver = await logged_in(directory)
        device.at_once = False
        device.pause()
        tag = driver.command(read_16(0, 1), read=BLOCK)
        await asyncio.sleep(0.01)
        abort = driver.send(
            TASK_MANAGEMENT, immediate=True, in_order=False, function=opcodes.ABORT_TASK, referenced_task_tag=tag
        )
        await asyncio.sleep(0.01)
        assert driver.answers() == []
        device.resume()
        [(answer, _)] = await driver.settle()
        assert (answer.opcode, answer.initiator_task_tag) == (opcodes.TASK_MANAGEMENT_RESPONSE, abort)
        assert answer.response == opcodes.FUNCTION_COMPLETE

    asyncio.run(scenario())


def test_abort_of_a_task_that_collects_data_is_immediate(directory: OneTarget) -> None:
    async def scenario() -> None:
        driver = await logged_in(directory)
        tag = driver.command(write_16(0, 1), write=BLOCK)
        [(r2t, _)] = driver.answers()
        driver.send(
            TASK_MANAGEMENT, immediate=True, in_order=False, function=opcodes.ABORT_TASK, referenced_task_tag=tag
        )
        [(answer, _)] = driver.answers()
        assert answer.response == opcodes.FUNCTION_COMPLETE
        driver.send(
            opcodes.DATA_OUT,
            pattern(1, 9),
            in_order=False,
            initiator_task_tag=tag,
            target_transfer_tag=r2t.target_transfer_tag,
            final=True,
        )
        driver.command(read_16(0, 1), read=BLOCK)
        [(_, data)] = await driver.settle()
        assert data == bytes(BLOCK)

    asyncio.run(scenario())


def abort(driver: Driver, tag: int, cmd_sn: int) -> int:
    """The response to an immediate ABORT TASK of a command with that tag and CmdSN."""
    fields = {"function": opcodes.ABORT_TASK, "referenced_task_tag": tag, "ref_cmd_sn": cmd_sn}
    driver.send(TASK_MANAGEMENT, immediate=True, in_order=False, cmd_sn=driver.cmd_sn, **fields)
    [(answer, _)] = driver.answers()
    return int(answer.response)


def test_abort_before_the_command_came_uses_up_its_number(directory: OneTarget) -> None:
    async def scenario() -> None:
        driver = await logged_in(directory)
        lost = driver.cmd_sn
        driver.cmd_sn += 1
        window = driver.max_cmd_sn - lost
        assert abort(driver, 77, lost) == opcodes.FUNCTION_COMPLETE
        assert driver.connection.exp_cmd_sn == lost + 1
        assert driver.max_cmd_sn == lost + 1 + window  # the window is as wide as before
        driver.command(bytes(6), cmd_sn=lost, initiator_task_tag=77)
        assert await driver.settle() == []
        assert abort(driver, 77, lost) == opcodes.TASK_DOES_NOT_EXIST
        driver.command(bytes(6))
        [(answer, _)] = await driver.settle()
        assert answer.status == 0

    asyncio.run(scenario())


def test_abort_of_commands_behind_a_gap(directory: OneTarget) -> None:
    """2 and 3 wait for 1, 4 did not come: 2 and 4 are aborted, then 1 comes, and 3 and 5 are executed."""

    async def scenario() -> None:
        driver = await logged_in(directory)
        one = driver.cmd_sn
        for number in (2, 3):
            driver.command(bytes(6), cmd_sn=one + number - 1, initiator_task_tag=number)
        driver.cmd_sn = one + 4
        assert abort(driver, 2, one + 2) == opcodes.TASK_DOES_NOT_EXIST  # that is the number of task 3
        assert abort(driver, 2, one + 1) == opcodes.FUNCTION_COMPLETE
        assert abort(driver, 4, one + 3) == opcodes.FUNCTION_COMPLETE
        assert driver.connection.exp_cmd_sn == one
        assert driver.connection.held_bytes == 0
        driver.command(bytes(6), initiator_task_tag=5)
        driver.command(bytes(6), cmd_sn=one, initiator_task_tag=1)
        answers = await driver.settle()
        assert [(answer.initiator_task_tag, answer.status) for answer, _ in answers] == [(1, 0), (3, 0), (5, 0)]
        assert driver.connection.exp_cmd_sn == one + 5
        assert not driver.connection.held

    asyncio.run(scenario())


def test_abort_of_what_can_never_come_finds_nothing(directory: OneTarget) -> None:
    async def scenario() -> None:
        driver = await logged_in(directory)
        for named in (driver.cmd_sn, driver.cmd_sn + 1, driver.cmd_sn - 1, driver.max_cmd_sn + 1, 0x80000000):
            assert abort(driver, 77, named) == opcodes.TASK_DOES_NOT_EXIST
        assert not driver.connection.held

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("function", "level", "response"),
    [
        (opcodes.ABORT_TASK, "1", opcodes.TASK_DOES_NOT_EXIST),
        (opcodes.ABORT_TASK_SET, "1", opcodes.FUNCTION_COMPLETE),
        (opcodes.CLEAR_ACA, "1", opcodes.FUNCTION_NOT_SUPPORTED),
        (opcodes.CLEAR_TASK_SET, "1", opcodes.FUNCTION_COMPLETE),
        (opcodes.LOGICAL_UNIT_RESET, "1", opcodes.FUNCTION_COMPLETE),
        (opcodes.TARGET_WARM_RESET, "1", opcodes.FUNCTION_COMPLETE),
        (opcodes.TASK_REASSIGN, "1", opcodes.REASSIGN_NOT_SUPPORTED),
        (opcodes.QUERY_TASK, "1", opcodes.FUNCTION_NOT_SUPPORTED),
        (opcodes.QUERY_TASK, "2", opcodes.FUNCTION_COMPLETE),
        (opcodes.QUERY_TASK_SET, "2", opcodes.FUNCTION_COMPLETE),
        (opcodes.I_T_NEXUS_RESET, "2", opcodes.FUNCTION_COMPLETE),
        (opcodes.QUERY_ASYNC_EVENT, "2", opcodes.FUNCTION_COMPLETE),
        (99, "2", opcodes.FUNCTION_REJECTED),
    ],
)
def test_task_management_responses(directory: OneTarget, function: int, level: str, response: int) -> None:
    async def scenario() -> None:
        driver = await logged_in(directory, ("iSCSIProtocolLevel", level))
        driver.send(TASK_MANAGEMENT, immediate=True, in_order=False, function=function, referenced_task_tag=1)
        [(answer, _)] = await driver.settle()
        assert answer.response == response

    asyncio.run(scenario())


def test_task_management_of_another_lun(directory: OneTarget) -> None:
    async def scenario() -> None:
        driver = await logged_in(directory)
        driver.send(
            TASK_MANAGEMENT,
            immediate=True,
            in_order=False,
            function=opcodes.LOGICAL_UNIT_RESET,
            lun=bytes([0, 5, 0, 0, 0, 0, 0, 0]),
        )
        [(answer, _)] = await driver.settle()
        assert answer.response == opcodes.LUN_DOES_NOT_EXIST

    asyncio.run(scenario())


def test_logical_unit_reset_takes_the_tasks_of_all_sessions(directory: OneTarget, device: PausedDevice) -> None:
    async def scenario() -> None:
        one = await logged_in(directory)
        two = Driver(directory, isid=b"\x80\0\0\0\0\x02")
        await two.login()
        await two.clear_attentions()
        victim = two.command(write_16(0, 1), write=BLOCK)
        assert victim in two.connection.tasks
        one.send(TASK_MANAGEMENT, immediate=True, in_order=False, function=opcodes.LOGICAL_UNIT_RESET)
        [(answer, _)] = await one.settle()
        assert answer.response == opcodes.FUNCTION_COMPLETE
        assert not two.connection.tasks
        two.answers()
        two.command(bytes(6))
        [(status, sense)] = await two.settle()
        assert status.status == 2
        assert sense[14] == 0x29

    asyncio.run(scenario())


def test_cold_reset_ends_all_sessions(directory: OneTarget) -> None:
    async def scenario() -> None:
        one = await logged_in(directory)
        two = Driver(directory, isid=b"\x80\0\0\0\0\x02")
        await two.login()
        one.send(TASK_MANAGEMENT, immediate=True, in_order=False, function=opcodes.TARGET_COLD_RESET)
        answers = await one.settle()
        assert answers[0][0].response == opcodes.FUNCTION_COMPLETE
        assert one.host.closed
        assert two.host.closed
        assert not directory.target.sessions

    asyncio.run(scenario())


def test_the_same_initiator_port_replaces_its_session_after_its_tasks(
    directory: OneTarget, device: PausedDevice
) -> None:
    async def scenario() -> None:
        old = await logged_in(directory)
        device.at_once = False
        device.pause()
        old.command(write_16(0, 1), pattern(1, 1), write=BLOCK)
        await asyncio.sleep(0.01)
        new = Driver(directory)
        login = asyncio.get_running_loop().create_task(new.login())
        await asyncio.sleep(0.05)
        assert old.host.aborted
        assert not login.done()  # the old write is still with the storage
        device.resume()
        await login
        assert list(directory.target.sessions.values()) == [new.connection.session]
        old_nexus = old.connection.session.nexus if old.connection.session else None
        assert old_nexus is not None
        assert old_nexus.fenced

    asyncio.run(scenario())


def test_another_initiator_port_lives_beside(directory: OneTarget) -> None:
    async def scenario() -> None:
        one = await logged_in(directory)
        two = Driver(directory, isid=b"\x80\0\0\0\0\x02")
        await two.login()
        assert len(directory.target.sessions) == 2
        one.command(bytes(6))
        assert one.answers()[0][0].status == 0

    asyncio.run(scenario())


def test_discovery_session_lists_targets_and_runs_no_commands(directory: OneTarget) -> None:
    async def scenario() -> None:
        driver = Driver(directory)
        driver.send(
            opcodes.LOGIN_REQUEST,
            encode_pairs([("InitiatorName", INITIATOR), ("SessionType", "Discovery")]),
            in_order=False,
            transit=True,
            current_stage=1,
            next_stage=3,
            isid=driver.isid,
            cmd_sn=1,
        )
        await driver.settle()
        driver.send(opcodes.TEXT_REQUEST, encode_pairs([("SendTargets", "All")]), final=True)
        [(answer, data)] = await driver.settle()
        assert answer.final
        assert decode_pairs(data) == [("TargetName", IQN), ("TargetAddress", "127.0.0.1:3260,1")]
        driver.command(bytes(6))
        [(reject, _)] = await driver.settle()
        assert reject.reason == opcodes.REJECT_PROTOCOL_ERROR

    asyncio.run(scenario())


def test_snack_is_refused_at_error_recovery_level_0(directory: OneTarget) -> None:
    async def scenario() -> None:
        driver = await logged_in(directory)
        driver.send(opcodes.SNACK_REQUEST, in_order=False)
        [(reject, _)] = driver.answers()
        assert reject.reason == opcodes.REJECT_PROTOCOL_ERROR

    asyncio.run(scenario())


def test_a_header_digest_error_ends_the_session(directory: OneTarget) -> None:
    async def scenario() -> None:
        driver = await logged_in(directory, ("HeaderDigest", "CRC32C"))
        driver.feed(bytes(48) + b"\1\2\3\4")
        assert driver.connection.stage is Stage.CLOSED
        assert not directory.target.sessions

    asyncio.run(scenario())


def test_a_data_digest_error_is_rejected_and_nothing_is_written(directory: OneTarget) -> None:
    async def scenario() -> None:
        driver = await logged_in(directory, ("DataDigest", "CRC32C"))
        frame = bytearray(driver.frame(_write_bhs(driver), pattern(1)))
        frame[100] ^= 1
        driver.feed(bytes(frame))
        [(reject, _)] = driver.answers()
        assert reject.reason == opcodes.REJECT_DATA_DIGEST_ERROR
        assert driver.connection.stage is Stage.CLOSED
        assert await directory.target.unit.device.read(0, 1) == bytes(BLOCK)

    asyncio.run(scenario())


def _write_bhs(driver: Driver) -> bytes:
    header = struct.pack(">BBHIQIIII", 0x01, 0xA1, 0, BLOCK, 0, 77, BLOCK, driver.cmd_sn, 0)
    return header + write_16(0, 1).ljust(16, b"\0")


def test_a_data_segment_above_the_declared_maximum_ends_the_session(directory: OneTarget) -> None:
    async def scenario() -> None:
        driver = await logged_in(directory)
        driver.feed(struct.pack(">BBHI", 0x40, 0x80, 0, 0xFFFFFF) + bytes(40))
        assert driver.connection.stage is Stage.CLOSED
        [(reject, _)] = driver.answers()
        assert reject.reason == opcodes.REJECT_PROTOCOL_ERROR

    asyncio.run(scenario())
