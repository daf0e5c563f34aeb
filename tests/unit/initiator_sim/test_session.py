"""The initiator's side of a session: numbers, windows, data both ways, and which mistakes of a target it notices."""

from __future__ import annotations

from typing import Any

import pytest

from initiator_sim.session import ProtocolError
from initiator_sim.task import CHECK_CONDITION, GOOD, Failure
from san_target.wire import opcodes
from san_target.wire.framer import Pdu
from tests.unit.initiator_sim.pdu_stream import Driver, pdu


def finish_read(driver: Driver, itt: int, data: bytes, **fields: Any) -> None:
    driver.receive(opcodes.DATA_IN, data, initiator_task_tag=itt, final=True, status_present=True, **fields)


def test_a_read_in_one_pdu() -> None:
    driver = Driver()
    task = driver.task(read_bytes=8)
    driver.session.submit(task)
    [(header, _)] = driver.sent()
    assert (header.read, header.write, header.final, header.cmd_sn, header.exp_stat_sn) == (True, False, True, 1, 100)
    finish_read(driver, header.initiator_task_tag, b"12345678")
    assert driver.done == [task]
    assert (task.status, bytes(task.data), task.residual) == (GOOD, b"12345678", 0)
    driver.session.submit(task)
    assert driver.sent()[0][0].exp_stat_sn == 101


def test_a_read_in_three_pdus_with_the_status_apart() -> None:
    driver = Driver()
    task = driver.task(read_bytes=12)
    driver.session.submit(task)
    for number, part in enumerate((b"aaaa", b"bbbb", b"cccc")):
        driver.receive(
            opcodes.DATA_IN, part, counts=False, initiator_task_tag=task.itt, data_sn=number, buffer_offset=4 * number
        )
    driver.receive(opcodes.SCSI_RESPONSE, initiator_task_tag=task.itt, exp_data_sn=3)
    assert bytes(task.data) == b"aaaabbbbcccc"


def test_a_short_read_says_so() -> None:
    driver = Driver()
    task = driver.task(read_bytes=12)
    driver.session.submit(task)
    finish_read(driver, task.itt, b"1234", residual_underflow=True, residual_count=8)
    assert (task.residual, bytes(task.data)) == (8, b"1234")


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"data_sn": 1}, "DataSN 1, expected 0"),
        ({"buffer_offset": 4}, "offset 4, expected 0"),
        ({"stat_sn": 99}, "StatSN 99, expected 100"),
        ({"initiator_task_tag": 77}, "does not exist"),
        ({"residual_underflow": True, "residual_count": 3}, "residual of 3"),
        ({"residual_underflow": True, "residual_overflow": True, "residual_count": 3}, "at once"),
    ],
)
def test_a_wrong_data_in_is_noticed(fields: dict[str, Any], complaint: str) -> None:
    driver = Driver()
    task = driver.task(read_bytes=8)
    driver.session.submit(task)
    with pytest.raises(ProtocolError, match=complaint):
        finish_read(driver, fields.pop("initiator_task_tag", task.itt), b"12345678", **fields)


def test_more_data_than_asked_for_is_noticed() -> None:
    driver = Driver()
    task = driver.task(read_bytes=4)
    driver.session.submit(task)
    with pytest.raises(ProtocolError, match="beyond the expected 4"):
        finish_read(driver, task.itt, b"12345678")


def test_missing_data_without_a_residual_is_noticed() -> None:
    driver = Driver()
    task = driver.task(read_bytes=12)
    driver.session.submit(task)
    with pytest.raises(ProtocolError, match="8 bytes did not come"):
        finish_read(driver, task.itt, b"1234")


def test_immediate_unsolicited_and_solicited_data() -> None:
    data = bytes(range(256)) * 5  # 1280 bytes
    driver = Driver(initial_r2t=False, max_send_data_segment_length=512, first_burst_length=768, max_burst_length=512)
    task = driver.task(cdb=b"\x8a", write_data=data)
    driver.session.submit(task)
    (command, immediate), (unsolicited, second) = driver.sent()
    assert not command.final
    assert (immediate, second) == (data[:512], data[512:768])
    assert (unsolicited.final, unsolicited.target_transfer_tag, unsolicited.buffer_offset) == (True, 0xFFFFFFFF, 512)
    r2t: dict[str, Any] = {"initiator_task_tag": task.itt, "target_transfer_tag": 5}
    driver.receive(opcodes.R2T, counts=False, buffer_offset=768, desired_data_transfer_length=512, **r2t)
    [(solicited, third)] = driver.sent()
    assert (solicited.target_transfer_tag, solicited.data_sn, solicited.final, third) == (5, 0, True, data[768:])
    driver.receive(opcodes.SCSI_RESPONSE, initiator_task_tag=task.itt)
    assert task.good


@pytest.mark.parametrize(
    ("parameters", "immediate_bytes", "final"),
    [
        ({"initial_r2t": True, "immediate_data": True}, 1024, True),
        ({"initial_r2t": True, "immediate_data": False}, 0, True),
        ({"initial_r2t": False, "immediate_data": False}, 0, False),
    ],
)
def test_what_goes_out_without_being_asked_for(parameters: dict[str, Any], immediate_bytes: int, final: bool) -> None:
    driver = Driver(**parameters)
    driver.session.submit(driver.task(cdb=b"\x8a", write_data=bytes(1024)))
    header, data = driver.sent()[0]
    assert (len(data), header.final) == (immediate_bytes, final)


def test_an_r2t_with_several_data_out() -> None:
    driver = Driver(immediate_data=False, max_send_data_segment_length=512)
    task = driver.task(cdb=b"\x8a", write_data=bytes(1100))
    driver.session.submit(task)
    driver.sent()
    r2t: dict[str, Any] = {"initiator_task_tag": task.itt, "target_transfer_tag": 9}
    driver.receive(opcodes.R2T, counts=False, desired_data_transfer_length=1100, **r2t)
    assert [(header.data_sn, header.buffer_offset, len(data), header.final) for header, data in driver.sent()] == [
        (0, 0, 512, False),
        (1, 512, 512, False),
        (2, 1024, 76, True),
    ]


@pytest.mark.parametrize(
    "fields",
    [
        {"desired_data_transfer_length": 0},
        {"desired_data_transfer_length": 2000},
        {"desired_data_transfer_length": 512, "buffer_offset": 1000},
        {"desired_data_transfer_length": 512, "r2t_sn": 3},
        {"desired_data_transfer_length": 512, "target_transfer_tag": 0xFFFFFFFF},
        {"desired_data_transfer_length": 1024},  # above MaxBurstLength
    ],
)
def test_a_wrong_r2t_is_noticed(fields: dict[str, Any]) -> None:
    driver = Driver(immediate_data=False, max_burst_length=512)
    task = driver.task(cdb=b"\x8a", write_data=bytes(1024))
    driver.session.submit(task)
    with pytest.raises(ProtocolError, match="R2T"):
        driver.receive(
            opcodes.R2T, counts=False, **({"initiator_task_tag": task.itt, "target_transfer_tag": 1} | fields)
        )


def test_the_command_window_holds_commands_back_until_it_opens() -> None:
    driver = Driver(window=2)
    tasks = [driver.task(read_bytes=4) for _ in range(4)]
    for task in tasks:
        driver.session.submit(task)
    assert [header.cmd_sn for header, _ in driver.sent()] == [1, 2]
    driver.max_cmd_sn += 1
    finish_read(driver, tasks[0].itt, b"1234")
    assert [header.cmd_sn for header, _ in driver.sent()] == [3]
    driver.max_cmd_sn += 5
    finish_read(driver, tasks[1].itt, b"1234")
    assert [header.cmd_sn for header, _ in driver.sent()] == [4]


def test_a_window_that_goes_back_is_ignored() -> None:
    driver = Driver(window=2)
    driver.session.submit(driver.task(read_bytes=4))
    finish_read(driver, 1, b"1234", max_cmd_sn=0)
    driver.session.submit(driver.task(read_bytes=4))
    assert len(driver.sent()) == 2


def test_numbers_wrap_around() -> None:
    driver = Driver(first_cmd_sn=0xFFFFFFFF)
    first, second = driver.task(read_bytes=4), driver.task(read_bytes=4)
    driver.session.submit(first)
    driver.session.submit(second)
    assert [header.cmd_sn for header, _ in driver.sent()] == [0xFFFFFFFF, 0]


def test_the_depth_is_a_limit() -> None:
    driver = Driver(depth=1)
    tasks = [driver.task(read_bytes=4) for _ in range(2)]
    for task in tasks:
        driver.session.submit(task)
    assert len(driver.sent()) == 1
    finish_read(driver, tasks[0].itt, b"1234")
    assert len(driver.sent()) == 1


def test_sense_data_comes_with_a_check_condition() -> None:
    driver = Driver()
    task = driver.task(cdb=b"\0")
    driver.session.submit(task)
    sense = bytes.fromhex("70000600000000 0a00000000 2900 00000000")
    driver.session.receive(iter([check_condition(driver, task.itt, sense)]))
    assert (task.status, task.sense) == (CHECK_CONDITION, sense)


def check_condition(driver: Driver, itt: int, sense: bytes) -> Pdu:
    return pdu(
        opcodes.SCSI_RESPONSE,
        len(sense).to_bytes(2, "big") + sense,
        initiator_task_tag=itt,
        status=CHECK_CONDITION,
        stat_sn=driver.stat_sn,
        exp_cmd_sn=1,
        max_cmd_sn=driver.max_cmd_sn,
    )


def test_a_ping_of_the_target_is_answered() -> None:
    driver = Driver()
    lun = b"\0\1" + bytes(6)
    driver.receive(opcodes.NOP_IN, counts=False, target_transfer_tag=7, lun=lun)
    [(header, data)] = driver.sent()
    assert header.opcode == opcodes.NOP_OUT
    assert (header.immediate, header.initiator_task_tag, header.target_transfer_tag) == (True, 0xFFFFFFFF, 7)
    assert (bytes(header.lun), data) == (lun, b"")
    driver.receive(opcodes.NOP_IN, counts=False)  # wants no answer
    assert driver.sent() == []


def test_our_ping_is_answered_once() -> None:
    driver = Driver()
    answers: list[bytes] = []
    driver.session.ping(lambda header, data: answers.append(data), b"echo")
    [(header, data)] = driver.sent()
    assert data == b"echo"
    driver.receive(opcodes.NOP_IN, b"echo", initiator_task_tag=header.initiator_task_tag)
    assert answers == [b"echo"]
    with pytest.raises(ProtocolError, match="answers no request"):
        driver.receive(opcodes.NOP_IN, b"echo", initiator_task_tag=header.initiator_task_tag)


def test_an_abort_names_the_task_and_ends_it() -> None:
    driver = Driver()
    task, other = driver.task(read_bytes=4), driver.task(read_bytes=4)
    driver.session.submit(other)
    driver.session.submit(task)
    driver.sent()
    responses: list[int] = []
    driver.session.task_management(
        opcodes.ABORT_TASK, lambda header, data: responses.append(header.response), task=task
    )
    [(header, _)] = driver.sent()
    assert (header.function, header.referenced_task_tag, header.ref_cmd_sn) == (1, task.itt, 2)
    assert header.immediate
    driver.receive(opcodes.TASK_MANAGEMENT_RESPONSE, initiator_task_tag=header.initiator_task_tag, response=0)
    assert responses == [0]
    assert (driver.done, task.failure) == ([task], Failure.ABORTED)


def test_an_abort_that_failed_ends_nothing() -> None:
    driver = Driver()
    task = driver.task(read_bytes=4)
    driver.session.submit(task)
    driver.session.task_management(opcodes.ABORT_TASK, lambda header, data: None, task=task)
    header, _ = driver.sent()[-1]
    driver.receive(opcodes.TASK_MANAGEMENT_RESPONSE, initiator_task_tag=header.initiator_task_tag, response=1)
    assert driver.done == []


def test_async_messages_are_handed_on() -> None:
    driver = Driver()
    driver.receive(opcodes.ASYNC_MESSAGE, async_event=3, parameter2=5)
    driver.receive(opcodes.ASYNC_MESSAGE, b"\0\0", async_event=0)
    assert driver.heard.messages == [(3, (0, 0, 5, 0), b""), (0, (0, 0, 0, 0), b"\0\0")]


def test_a_rejected_command_ends() -> None:
    driver = Driver()
    task = driver.task(read_bytes=4)
    driver.session.submit(task)
    bhs = bytes(driver.session.outgoing[0])
    driver.receive(opcodes.REJECT, bhs, reason=4)
    assert (driver.done, task.failure) == ([task], Failure.REJECTED)


def test_what_is_lost_comes_back_in_order() -> None:
    driver = Driver(window=2)
    tasks = [driver.task(read_bytes=4) for _ in range(4)]
    for task in tasks:
        driver.session.submit(task)
    assert driver.session.lost() == tasks
    assert driver.session.outstanding == 0


def test_a_task_used_again_remembers_nothing() -> None:
    """Whatever its last end was: a status with sense, parts of data, a residual, an abort."""
    driver = Driver()
    task = driver.task(read_bytes=8)
    sense = b"\0\x12" + bytes((0x70, 0, 6, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x29, 0, 0, 0, 0, 0))

    def submit() -> dict[str, int]:
        driver.session.submit(task)
        return {"initiator_task_tag": task.itt}

    driver.receive(opcodes.SCSI_RESPONSE, sense, status=CHECK_CONDITION, **submit())
    assert (task.status, bool(task.sense)) == (CHECK_CONDITION, True)
    tag = submit()
    driver.receive(opcodes.DATA_IN, b"half", counts=False, **tag)
    driver.receive(opcodes.DATA_IN, b"full", final=True, status_present=True, data_sn=1, buffer_offset=4, **tag)
    assert (task.status, task.sense, bytes(task.data)) == (GOOD, b"", b"halffull")
    driver.receive(
        opcodes.DATA_IN, b"part", final=True, status_present=True, residual_underflow=True, residual_count=4, **submit()
    )
    assert (bytes(task.data), task.residual) == (b"part", 4)
    submit()
    driver.session.task_management(opcodes.ABORT_TASK, lambda header, data: None, task=task)
    header, _ = driver.sent()[-1]
    driver.receive(opcodes.TASK_MANAGEMENT_RESPONSE, initiator_task_tag=header.initiator_task_tag, response=0)
    assert (task.failure, task.residual, bytes(task.data)) == (Failure.ABORTED, 0, b"")
    driver.receive(opcodes.DATA_IN, b"complete", final=True, status_present=True, **submit())
    assert (task.status, task.failure, bytes(task.data)) == (GOOD, None, b"complete")
    driver.receive(opcodes.SCSI_RESPONSE, status=GOOD, residual_underflow=True, residual_count=8, **submit())
    assert (task.status, bytes(task.data), task.residual) == (GOOD, b"", 8)
