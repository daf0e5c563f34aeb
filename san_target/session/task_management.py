"""Task management functions (RFC 7143 11.5 and 11.6, RFC 7144 4; SAM-5 7). Pure.

A function is a row of `FUNCTIONS`: which tasks it takes away, and what it does to the logical unit. Its response is
final: it is sent only when every task taken away has ended, so nothing of them can reach the medium afterwards.
"""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, NamedTuple

from san_target.session.tasks import Task, TaskBarrier
from san_target.wire.opcodes import (
    ABORT_TASK,
    ABORT_TASK_SET,
    CLEAR_ACA,
    CLEAR_TASK_SET,
    FUNCTION_COMPLETE,
    FUNCTION_NOT_SUPPORTED,
    FUNCTION_REJECTED,
    FUNCTION_SUCCEEDED,
    I_T_NEXUS_RESET,
    LOGICAL_UNIT_RESET,
    LUN_DOES_NOT_EXIST,
    QUERY_ASYNC_EVENT,
    QUERY_TASK,
    QUERY_TASK_SET,
    REASSIGN_NOT_SUPPORTED,
    TARGET_COLD_RESET,
    TARGET_WARM_RESET,
    TASK_DOES_NOT_EXIST,
    TASK_REASSIGN,
)

if TYPE_CHECKING:
    from san_target.session.connection import Connection

_BUS_DEVICE_RESET = (0x29, 0x03)


class Request(NamedTuple):
    """What a Task Management Function Request asks; lun None = no such logical unit form. cmd_sn: its own."""

    function: int
    lun: int | None
    referenced_tag: int
    protocol_level: int
    referenced_cmd_sn: int
    cmd_sn: int


class Answer(NamedTuple):
    """response is sent once `tasks` (of any session) have ended; `then` runs just before.

    everywhere: awaited after that, for what other members have to do; False: the function did not reach all of them.
    drop: end all sessions here.
    """

    response: int
    tasks: tuple[tuple["Connection", Task], ...] = ()
    then: Callable[[], None] | None = None
    everywhere: Callable[[], Awaitable[bool]] | None = None
    drop: bool = False


def decide(connection: "Connection", request: Request) -> Answer:
    """What a request does, without doing it."""
    function = FUNCTIONS.get(request.function)
    if function is None:
        return Answer(FUNCTION_REJECTED)
    if function.protocol_level > request.protocol_level:
        return Answer(FUNCTION_NOT_SUPPORTED)
    if function.names_unit and request.lun != 0:
        return Answer(LUN_DOES_NOT_EXIST)
    return function.decide(connection, request)


def carry_out(connection: "Connection", answer: Answer, respond: Callable[[int], None]) -> None:
    """Abort the tasks, wait for their end, change the unit, respond."""

    def finish() -> None:
        if answer.then is not None:
            answer.then()
        if answer.everywhere is None:
            end(answer.response)
        else:
            connection.host.spawn(finish_everywhere(answer.everywhere))

    async def finish_everywhere(everywhere: Callable[[], Awaitable[bool]]) -> None:
        end(answer.response if await everywhere() else FUNCTION_REJECTED)
        connection.host.wake()

    def end(response: int) -> None:
        respond(response)
        if answer.drop:
            _drop_all_sessions(connection)

    # The barrier first: tasks that end at once while being aborted count too.
    TaskBarrier([task for _, task in answer.tasks], finish)
    for _, task in answer.tasks:
        task.command.aborted = True  # all of them, before the end of one gives another its turn
    for owner, task in answer.tasks:
        owner.abort([task])
        owner.host.wake()


def _own_tasks(connection: "Connection", lun: int | None = None) -> tuple[tuple["Connection", Task], ...]:
    return tuple((connection, task) for task in connection.tasks.values() if lun is None or task.command.lun == lun)


def _all_tasks(connection: "Connection") -> tuple[tuple["Connection", Task], ...]:
    session = connection.session
    assert session is not None
    assert session.target is not None
    return tuple(pair for other in session.target.sessions.values() for pair in _own_tasks(other.connection, 0))


def _abort_task(connection: "Connection", request: Request) -> Answer:
    task = connection.tasks.get(request.referenced_tag)
    if task is not None and task.command.lun == request.lun:
        return Answer(FUNCTION_COMPLETE, ((connection, task),))
    cmd_sn = request.referenced_cmd_sn
    if task is None and connection.is_to_come(cmd_sn, request.cmd_sn, request.referenced_tag):
        # RFC 7143 11.6.1: the request has overtaken the command, which was lost or waits behind one that was.
        return Answer(FUNCTION_COMPLETE, (), lambda: connection.take_as_received(cmd_sn))
    return Answer(TASK_DOES_NOT_EXIST)


def _abort_task_set(connection: "Connection", request: Request) -> Answer:
    return Answer(FUNCTION_COMPLETE, _own_tasks(connection, request.lun))


def _clear_task_set(connection: "Connection", request: Request) -> Answer:
    session = connection.session
    assert session is not None
    assert session.target is not None
    tasks = _all_tasks(connection)
    unit = session.target.unit
    # SAM-5 7.3: with TAS = 0 the other nexuses learn of it by a unit attention.
    others = {task.command.nexus for owner, task in tasks if owner is not connection}
    assert session.nexus is not None
    nexus = session.nexus
    return Answer(FUNCTION_COMPLETE, tasks, lambda: unit.commands_cleared(others), lambda: unit.clear_everywhere(nexus))


def _logical_unit_reset(connection: "Connection", request: Request) -> Answer:
    session = connection.session
    assert session is not None
    assert session.target is not None
    unit = session.target.unit
    return Answer(
        FUNCTION_COMPLETE, _all_tasks(connection), everywhere=lambda: unit.reset_everywhere(_BUS_DEVICE_RESET)
    )


def _target_cold_reset(connection: "Connection", request: Request) -> Answer:
    answer = _logical_unit_reset(connection, request)
    assert connection.session is not None
    assert connection.session.target is not None
    unit = connection.session.target.unit
    return answer._replace(everywhere=lambda: unit.reset_everywhere(_BUS_DEVICE_RESET, drop=True), drop=True)


def _i_t_nexus_reset(connection: "Connection", request: Request) -> Answer:
    session = connection.session
    assert session is not None
    assert session.target is not None
    assert session.nexus is not None
    unit, nexus = session.target.unit, session.nexus
    return Answer(
        FUNCTION_COMPLETE,
        _own_tasks(connection),
        lambda: unit.nexus_lost(nexus),
        lambda: unit.reservations.given_up(nexus),
    )


def _query_task(connection: "Connection", request: Request) -> Answer:
    task = connection.tasks.get(request.referenced_tag)
    return Answer(FUNCTION_SUCCEEDED if task is not None and task.command.lun == request.lun else FUNCTION_COMPLETE)


def _query_task_set(connection: "Connection", request: Request) -> Answer:
    return Answer(FUNCTION_SUCCEEDED if _own_tasks(connection, request.lun) else FUNCTION_COMPLETE)


def _query_async_event(connection: "Connection", request: Request) -> Answer:
    session = connection.session
    assert session is not None
    assert session.nexus is not None
    return Answer(FUNCTION_SUCCEEDED if session.nexus.attentions else FUNCTION_COMPLETE)


def _not_supported(connection: "Connection", request: Request) -> Answer:
    return Answer(REASSIGN_NOT_SUPPORTED if request.function == TASK_REASSIGN else FUNCTION_NOT_SUPPORTED)


def _drop_all_sessions(connection: "Connection") -> None:
    session = connection.session
    assert session is not None
    assert session.target is not None
    for other in list(session.target.sessions.values()):
        other.connection.drop("target cold reset")


class Function(NamedTuple):
    """names_unit: the LUN field counts; protocol_level: the iSCSIProtocolLevel it needs (RFC 7144 4.1)."""

    decide: Callable[["Connection", Request], Answer]
    names_unit: bool = True
    protocol_level: int = 1


FUNCTIONS = {
    ABORT_TASK: Function(_abort_task),
    ABORT_TASK_SET: Function(_abort_task_set),
    CLEAR_ACA: Function(_not_supported),  # NormACA = 0: no ACA can be established
    CLEAR_TASK_SET: Function(_clear_task_set),
    LOGICAL_UNIT_RESET: Function(_logical_unit_reset),
    TARGET_WARM_RESET: Function(_logical_unit_reset, names_unit=False),
    TARGET_COLD_RESET: Function(_target_cold_reset, names_unit=False),
    TASK_REASSIGN: Function(_not_supported, names_unit=False),  # ErrorRecoveryLevel 0
    QUERY_TASK: Function(_query_task, protocol_level=2),
    QUERY_TASK_SET: Function(_query_task_set, protocol_level=2),
    I_T_NEXUS_RESET: Function(_i_t_nexus_reset, names_unit=False, protocol_level=2),
    QUERY_ASYNC_EVENT: Function(_query_async_event, protocol_level=2),
}
