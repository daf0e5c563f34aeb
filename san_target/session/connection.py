"""One iSCSI connection from the first byte to the last (RFC 7143). Pure: bytes in, buffers out, time is an argument.

The shell feeds PDUs to `receive`, sends what appears in `outgoing`, and calls `tick` about once a second. Login and
rare PDUs are handled here; SCSI commands in `commands`. Errors of the initiator end in a Reject or, where the stream
or the session cannot go on at ErrorRecoveryLevel 0, in the end of this connection; never in anyone else's trouble.
"""

from collections.abc import Callable, Generator
from enum import Enum, auto
from typing import TYPE_CHECKING, Final

from san_target.scsi.nexus import Nexus
from san_target.session import task_management
from san_target.session.commands import ANSWERS_PER_FLUSH
from san_target.session.discovery import TextExchange, TextRequest
from san_target.session.keepalive import Keepalive
from san_target.session.leaving import attach
from san_target.session.login import Login, LoginRefused, LoginRequest, LoginResult, LoginStatus
from san_target.session.pattern import sample
from san_target.session.session import Session
from san_target.session.tasks import TaskBarrier
from san_target.wire import hot, pdus
from san_target.wire.framer import FramingError, Pdu
from san_target.wire.opcodes import (
    ASYNC_SESSION_DROP,
    DATA_OUT,
    IMMEDIATE,
    LOGIN_REQUEST,
    LOGIN_RESPONSE,
    LOGOUT_REQUEST,
    LOGOUT_RESPONSE,
    NOP_OUT,
    OPCODE_MASK,
    REJECT_COMMAND_NOT_SUPPORTED,
    REJECT_DATA_DIGEST_ERROR,
    REJECT_IMMEDIATE_COMMAND,
    REJECT_INVALID_PDU_FIELD,
    REJECT_PROTOCOL_ERROR,
    RESERVED_TAG,
    SCSI_COMMAND,
    SNACK_REQUEST,
    TASK_MANAGEMENT_REQUEST,
    TASK_MANAGEMENT_RESPONSE,
    TEXT_REQUEST,
    TEXT_RESPONSE,
)

if TYPE_CHECKING:
    from san_target.session.host import Host
    from san_target.session.parameters import TargetLimits
    from san_target.session.target import Directory

# Logout (RFC 7143 11.14.1, 11.15.1)
_CLOSE_SESSION, _CLOSE_CONNECTION, _REMOVE_FOR_RECOVERY = 0, 1, 2
_LOGGED_OUT, _CID_NOT_FOUND, _RECOVERY_NOT_SUPPORTED = 0, 1, 2

# What is handled of one receive before other connections have their turn: for so long, and of PDUs that take the slow
# way so many. A rare PDU, which takes some 100 us, counts four.
TURN_S: Final = 0.005
WORK_PER_TURN: Final = 256
_RARE_PDU_WORK: Final = 4
IMMEDIATE_FUNCTIONS_MAX: Final = 32

Handler = Callable[["Connection", Pdu], None]


class Stage(Enum):
    """Where the connection is in its life (RFC 7143 8.1, condensed)."""

    LOGIN = auto()
    DISCOVERY = auto()
    FULL_FEATURE = auto()
    LOGGING_OUT = auto()
    CLOSED = auto()


class Connection(Keepalive):
    """See the module's text. peer_address: of the initiator, portal_address: where it arrived, both "host:port"."""

    def __init__(
        self,
        host: "Host",
        directory: "Directory",
        limits: "TargetLimits",
        portal_address: str,
        peer_address: str,
        weak_chap: bool = True,
    ) -> None:
        super().__init__(host, limits)
        self.directory = directory
        self.portal_address = portal_address
        self.peer_address = peer_address
        self.stage = Stage.LOGIN
        self.close_reason = ""
        self._login = Login(directory, limits, portal_address, host.random_bytes, self._establish, weak_chap)
        self._login_busy = False
        self._login_begun = False
        self.redirected = False
        self._text: TextExchange | None = None
        self._opened_s = host.now()
        self._cid = 0
        self._functions_open = 0  # task management that waits for the end of tasks
        self._ended = False
        self._ended_events: list[Callable[[], None]] = []

    # --- receiving ------------------------------------------------------------------------------------------------

    def receive(self, received: Generator[Pdu, None, None]) -> None:
        """Handle the PDUs of one receive, in order. Answers are left in `outgoing` or were flushed on the way.

        Where they are many and slow, or the initiator does not take the answers, the rest stays with the framer, which
        is `unread` then: the shell calls again without new bytes when the others have had their turn, or when enough
        output is sent. So nobody can hold up the others, or make this side keep more than it takes itself.
        """
        self.received = received
        self.heard_s = now = self.host.now()
        if self.hearers:
            self.tell_hearers()
        self.turn_ends_s = now + TURN_S
        work = 0
        before = last = first = self.last_command
        try:
            for pdu in received:
                self.heard_pdu = True
                header = hot.HEADER.unpack(pdu.bhs)
                if header[0] == SCSI_COMMAND:
                    before, last = last, header
                    if self.hot and self.try_hot(header, pdu):
                        continue
                if self.viewed:
                    self.host.flush()
                if self.trace is not None:
                    self.trace("in", pdu.bhs)
                self._dispatch(pdu)
                if self.stage is Stage.CLOSED:
                    return
                if self.answers >= ANSWERS_PER_FLUSH:
                    self.host.flush()
                work += 1 if header[0] & OPCODE_MASK in _COMMON else _RARE_PDU_WORK
                if work >= WORK_PER_TURN or self.turn_is_over():
                    received.close()
                    break
        except FramingError as error:
            self._on_framing_error(error)
        if last is not first:
            self.last_command = last
            if now >= self.pattern.next_s:
                sample(self, before, last, first)

    def _dispatch(self, pdu: Pdu) -> None:
        opcode = pdu.bhs[0] & OPCODE_MASK
        row = _HANDLERS.get(opcode)
        if row is None:
            self._on_unknown(pdu)
            return
        handler, stages, in_order = row
        if self.stage not in stages:
            self._out_of_stage(pdu)
            return
        if in_order and not self.admit(pdu):
            return
        handler(self, pdu)
        while (held := self.next_held()) is not None and self.stage in stages:
            held_row = _HANDLERS[held.bhs[0] & OPCODE_MASK]
            held_row[0](self, held)

    def _on_unknown(self, pdu: Pdu) -> None:
        if self.stage is Stage.LOGIN:
            self._out_of_stage(pdu)
        else:
            # RFC 7143 7.11.2: the opcode says nothing of a CmdSN, so none is taken.
            self._refuse_pdu(REJECT_COMMAND_NOT_SUPPORTED, pdu)

    def _out_of_stage(self, pdu: Pdu) -> None:
        if self.stage is Stage.LOGIN:
            # RFC 7143 4.2.4: nothing but Login Requests; within a login there is an answer to anything else.
            if self._login_begun and not self._login_busy:
                self.send_status(LOGIN_RESPONSE, b"", **self._login.interrupted().header())
            self.fail(f"opcode 0x{pdu.bhs[0] & OPCODE_MASK:02x} before login")
        elif self.stage is not Stage.LOGGING_OUT:
            self._refuse_pdu(REJECT_PROTOCOL_ERROR, pdu)

    def _refuse_pdu(self, reason: int, pdu: Pdu) -> None:
        self.reject(reason, pdu.bhs)
        if self.session is not None:
            self.session.counters.rejects += 1

    def _on_framing_error(self, error: FramingError) -> None:
        self.host.counters.digest_errors += error.digest
        if error.bhs and self.stage is not Stage.LOGIN:
            self.reject(REJECT_DATA_DIGEST_ERROR if error.digest else REJECT_PROTOCOL_ERROR, error.bhs)
        # RFC 7143 7.8: at ErrorRecoveryLevel 0 the session ends; the initiator logs in again and repeats.
        self.fail(str(error))

    # --- login ----------------------------------------------------------------------------------------------------

    def _on_login(self, pdu: Pdu) -> None:
        if self._login_busy:
            self.fail("a Login Request before the last one was answered")
            return
        request = LoginRequest.parse(pdu.bhs, pdu.keep())
        if not self._login_begun:
            self._login_begun = True
            self.start_sequences(request.cmd_sn, request.exp_stat_sn)
        self._login_busy = True
        self.host.spawn(self._respond_to_login(request))

    async def _respond_to_login(self, request: LoginRequest) -> None:
        response = await self._login.respond(request)
        if self.stage is not Stage.LOGIN:
            return
        self._login_busy = False
        self.send_status(LOGIN_RESPONSE, response.data, **response.header())
        if response.status_class == 1:
            self.redirected = True
            self.host.counters.redirections += 1
        if self._login.failed:
            self.fail(f"login answered 0x{response.status_class:02x}{response.status_detail:02x}: {self._login.reason}")
        elif self._login.result is not None:
            self._enter_full_feature(self._login.result)
        self.host.wake()

    async def _establish(self, result: LoginResult) -> int | None:
        """Make the session, just before the final Login Response. Returns its TSIH, or None if that cannot be."""
        target = result.target
        key = (result.initiator_name, result.isid)
        if target is not None:
            reason = await self.directory.succeed(target, *key, self.peer_address)
            if reason:
                raise LoginRefused(LoginStatus.SERVICE_UNAVAILABLE, reason)
            # RFC 7143 6.3.5: the same initiator port logs in again: the old session ends first, with all its tasks.
            while (old := target.sessions.get(key)) is not None:
                if old.connection.stage is not Stage.CLOSED:
                    self.directory.reinstated(old, self.peer_address, self.host.now())
                await old.connection.terminate("session reinstated")
        if self.stage is not Stage.LOGIN:
            return None
        tsih = self.directory.new_tsih()
        nexus = None
        if target is not None:
            nexus = Nexus(result.initiator_name, result.isid, target.iqn, target.portal_group_tag)
            nexus.user = result.authenticated_user or ""
        session = Session(
            self,
            result.initiator_name,
            result.isid,
            tsih,
            target,
            nexus,
            result.parameters,
            self.peer_address,
            self.host.now(),
        )
        session.initiator_alias = result.initiator_alias
        session.user = result.authenticated_user or ""
        self.session = session
        if target is not None:
            target.sessions[key] = session
        return tsih

    def _enter_full_feature(self, result: LoginResult) -> None:
        session = self.session
        assert session is not None
        self.host.counters.logins += 1
        self.host.began(session)
        self.parameters = result.parameters
        self._cid = result.cid
        self.framer.data_segment_max = result.parameters.max_recv_data_segment_length
        self.header_digest = self.framer.header_digest = result.parameters.header_digest
        self.data_digest = self.framer.data_digest = result.parameters.data_digest
        self._text = TextExchange(
            self.directory, result.parameters, session.initiator_name, session.target, self.portal_address
        )
        if session.target is None:
            self.stage = Stage.DISCOVERY
            return
        self.stage = Stage.FULL_FEATURE
        assert session.nexus is not None
        attach(self.directory, session.target, session.nexus)
        self.refresh_hot()

    # --- full feature phase: everything but SCSI commands ---------------------------------------------------------

    def _on_nop_out(self, pdu: Pdu) -> None:
        header = hot.HEADER.unpack(pdu.bhs)
        itt, ttt = header[5], header[6]
        if itt == RESERVED_TAG:
            # RFC 7143 11.18.1: an answer to our ping, or nothing to answer.
            self.ping_answered(ttt)
        elif ttt != RESERVED_TAG:
            self._refuse_pdu(REJECT_INVALID_PDU_FIELD, pdu)
        else:
            data = bytes(pdu.data[: self.parameters.max_send_data_segment_length])
            stat_sn = self.take_stat_sn()
            self.send(hot.pack_nop_in(len(data), 0, itt, RESERVED_TAG, stat_sn, self.exp_cmd_sn, self.max_cmd_sn), data)
        if not header[0] & IMMEDIATE:
            self.command_ended()

    def _on_text(self, pdu: Pdu) -> None:
        assert self._text is not None
        header = pdus.parse(pdu.bhs)
        answer = self._text.respond(TextRequest.parse(pdu.bhs, pdu.data))
        if answer is None:
            self._refuse_pdu(REJECT_PROTOCOL_ERROR, pdu)
        else:
            self.send_status(
                TEXT_RESPONSE,
                answer.data,
                final=answer.final,
                continue_=answer.continue_,
                initiator_task_tag=header.initiator_task_tag,
                target_transfer_tag=answer.ttt,
                lun=header.lun,
            )
            self.refresh_hot()  # the initiator may have declared another MaxRecvDataSegmentLength
        if not header.immediate:
            self.command_ended()

    def _on_task_management(self, pdu: Pdu) -> None:
        self.host.counters.task_management += 1
        header = pdus.parse(pdu.bhs)
        if header.immediate and self._functions_open >= IMMEDIATE_FUNCTIONS_MAX:
            # RFC 7143 4.2.2.1: the command window does not hold immediate commands back.
            self._refuse_pdu(REJECT_IMMEDIATE_COMMAND, pdu)
            return
        request = task_management.Request(
            header.function,
            pdus.lun_to_int(header.lun),
            header.referenced_task_tag,
            self.parameters.iscsi_protocol_level,
            header.ref_cmd_sn,
            header.cmd_sn,
        )

        def respond(response: int) -> None:
            self._functions_open -= 1
            if self.ending:
                return
            self.send_status(TASK_MANAGEMENT_RESPONSE, response=response, initiator_task_tag=header.initiator_task_tag)
            if not header.immediate:
                self.command_ended()
            self.host.wake()

        self._functions_open += 1
        task_management.carry_out(self, task_management.decide(self, request), respond)

    def _on_snack(self, pdu: Pdu) -> None:
        # RFC 7143 11.16: only at ErrorRecoveryLevel 1 and above.
        self._refuse_pdu(REJECT_PROTOCOL_ERROR, pdu)

    def _on_logout(self, pdu: Pdu) -> None:
        header = pdus.parse(pdu.bhs)
        response = _LOGGED_OUT
        if header.reason == _REMOVE_FOR_RECOVERY:
            response = _RECOVERY_NOT_SUPPORTED
        elif header.reason == _CLOSE_CONNECTION and header.cid != self._cid:
            response = _CID_NOT_FOUND
        elif header.reason not in (_CLOSE_SESSION, _CLOSE_CONNECTION):
            self._refuse_pdu(REJECT_INVALID_PDU_FIELD, pdu)
            if not header.immediate:
                self.command_ended()
            return

        def respond() -> None:
            if self.stage is Stage.CLOSED:
                return
            # Time2Wait 0: nothing of this session is left that a new one would have to wait for.
            self.send_status(
                LOGOUT_RESPONSE, response=response, initiator_task_tag=header.initiator_task_tag, time2wait=0
            )
            if response == _LOGGED_OUT:
                self.close("logged out")
            elif not header.immediate:
                self.command_ended()
            self.host.wake()

        if response == _LOGGED_OUT:
            self.stage = Stage.LOGGING_OUT
            self.stop_asking()
            self.logging_out = True
            self.hot = False
            tasks = list(self.tasks.values())
            session = self.session
            if session is not None and session.target is not None and session.nexus is not None:
                reservations, nexus = session.target.unit.reservations, session.nexus
                TaskBarrier(tasks, lambda: reservations.give_back(nexus, respond))
            else:
                TaskBarrier(tasks, respond)
            self.abort(tasks)
        else:
            respond()

    def drop(self, reason: str) -> None:
        """End the session from our side: async event 3 tells the initiator that it may come back at once."""
        if self.stage is Stage.FULL_FEATURE:
            self.send_async(ASYNC_SESSION_DROP, parameter2=0)
        self.close(reason)

    # --- time -----------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Login deadline, keepalive; to be called about once a second."""
        if self.stage is Stage.CLOSED:
            return
        if self.stage is Stage.LOGIN:
            if now - self._opened_s > self.limits.login_timeout_s:
                self.fail("login took too long")
            return
        reason = self.keep_alive(now)
        if reason:
            self.fail(reason)

    # --- the end --------------------------------------------------------------------------------------------------

    def fail(self, reason: str) -> None:
        """End the connection because of the initiator's behaviour."""
        self.close(reason)

    def close(self, reason: str) -> None:
        """Send what is queued, then close; nothing more is executed."""
        if self.stage is not Stage.CLOSED:
            self._stop(reason)
            self.host.close()

    def lost(self, reason: str = "connection lost") -> None:
        """The shell's word that the network connection is gone."""
        if self.stage is not Stage.CLOSED:
            self._stop(reason)

    async def terminate(self, reason: str) -> None:
        """End the connection now, and return when no task of its session can reach the medium any more."""
        if self.stage is not Stage.CLOSED:
            self._stop(reason)
        self.host.abort()
        if not self._ended:
            event = self.host.event()
            self._ended_events.append(event.set)
            await event.wait()

    def _stop(self, reason: str) -> None:
        """Fence the session at once; it is over when its tasks have ended."""
        if self.stage is Stage.LOGIN and not self.redirected:
            self.host.counters.login_failures += 1
        self.stage = Stage.CLOSED
        self.close_reason = reason
        self.stop_asking()
        self.ending = True
        self.hot = False
        session = self.session
        if session is not None and session.nexus is not None:
            session.nexus.fenced = True
            session.nexus.may_read = session.nexus.may_write = False
        tasks = list(self.tasks.values())
        TaskBarrier(tasks, self._over)
        self.abort(tasks)

    def _over(self) -> None:
        session = self.session
        if session is not None and session.target is not None and session.nexus is not None:
            session.target.unit.detach(session.nexus)
            if session.target.sessions.get(session.key) is session:
                del session.target.sessions[session.key]
        self._ended = True
        events, self._ended_events = self._ended_events, []
        for tell in events:
            tell()


_LOGGED_IN = frozenset({Stage.DISCOVERY, Stage.FULL_FEATURE})
_NORMAL = frozenset({Stage.FULL_FEATURE})
_COMMON = frozenset({SCSI_COMMAND, DATA_OUT})

# Opcode -> handler, the stages in which it is legal, and whether it has its place in CmdSN order.
_HANDLERS: Final[dict[int, tuple[Handler, frozenset[Stage], bool]]] = {
    NOP_OUT: (Connection._on_nop_out, _LOGGED_IN, True),
    SCSI_COMMAND: (Connection.on_scsi_command, _NORMAL, True),
    TASK_MANAGEMENT_REQUEST: (Connection._on_task_management, _NORMAL, True),
    LOGIN_REQUEST: (Connection._on_login, frozenset({Stage.LOGIN}), False),
    TEXT_REQUEST: (Connection._on_text, _LOGGED_IN, True),
    DATA_OUT: (Connection.on_data_out, _NORMAL, False),
    LOGOUT_REQUEST: (Connection._on_logout, _LOGGED_IN, True),
    SNACK_REQUEST: (Connection._on_snack, _NORMAL, False),
}
