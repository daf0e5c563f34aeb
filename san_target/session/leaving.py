"""How a session leaves this member for another one, and how it arrives there, without its initiator noticing. Pure.

The order was measured with real initiators (docs/balancing.md): nothing is executed any more once all that is under
way was answered; then an Asynchronous Message that the target drops the session, with a Time2Wait of 0 (which overrides
the negotiated wait), and one that asks for a logout. The initiator comes back to the portal that it was configured
with, and is sent to where it is expected. What still arrives here meanwhile is thrown away unread: it will be sent
there again.
"""

from typing import TYPE_CHECKING

from san_target.scsi.sense import UNIT_ATTENTION, Condition
from san_target.session.target import Moved
from san_target.wire import hot
from san_target.wire.opcodes import ASYNC_LOGOUT_REQUEST, ASYNC_SESSION_DROP, RESERVED_TAG

if TYPE_CHECKING:
    from san_target.scsi.nexus import Nexus
    from san_target.session.connection import Connection
    from san_target.session.target import Directory, Target


def close_window(connection: "Connection") -> None:
    """Give the initiator no more room for commands; those that it has sent are carried out."""
    connection.window_closes = True
    connection.refresh_hot()


def stay(connection: "Connection") -> None:
    """It does not leave after all."""
    connection.reopen_window()
    connection.refresh_hot()
    # RFC 7143 11.19: a NOP-In that wants no answer tells the new MaxCmdSN.
    connection.send(
        hot.pack_nop_in(
            0, 0, RESERVED_TAG, RESERVED_TAG, connection.stat_sn, connection.exp_cmd_sn, connection.max_cmd_sn
        )
    )
    connection.host.wake()


def is_idle(connection: "Connection") -> bool:
    """Nothing is under way that would have to be answered first."""
    return not connection.tasks and not connection.held


def leave(connection: "Connection", within_s: int) -> Moved:
    """To be called when it is idle: from now on nothing is executed, and the initiator is asked to go.

    It logs out, and the connection is closed then; whoever calls sees to it that it is closed anyway.
    """
    session = connection.session
    if session is None or session.target is None or session.nexus is None or not is_idle(connection):
        raise AssertionError("only an idle session of a target can leave")
    connection.leaving = True
    unit = session.target.unit
    moved = Moved(tuple(session.nexus.attentions), unit.shared.epoch, unit.device.blocks)
    connection.send_async(ASYNC_SESSION_DROP, parameter2=0)
    connection.send_async(ASYNC_LOGOUT_REQUEST, parameter3=within_s)
    return moved


def attach(directory: "Directory", target: "Target", nexus: "Nexus") -> None:
    """A session begins. One that only came from another member owes nothing for that (SAM-5 5.14.6) - unless something
    happened on the way that it has to be told of."""
    unit = target.unit
    moved = directory.arrived(target, nexus.initiator_name, nexus.isid)
    if moved is None or (moved.epoch, moved.blocks) != (unit.shared.epoch, unit.device.blocks):
        unit.attach(nexus)
        return
    unit.attach(nexus, moved=True)
    for asc, ascq in moved.attentions:
        unit.attention(nexus, Condition(UNIT_ATTENTION, asc, ascq))
