"""The full feature phase of a session from the initiator's side (RFC 7143 4.2, 7, 11). Pure, and fast where it counts.

Invariants: a command enters `tasks` when it is sent and leaves it when it ended; CmdSN and StatSN are counted here
only; every byte to send goes through `outgoing`, in order. What a target may not do raises ProtocolError, since a
simulator that overlooks a mistake is of no use; mistakes that real initiators never look at become `remarks`.
"""

from collections import deque
from collections.abc import Callable, Iterable
from struct import Struct
from typing import Any, Final, Protocol

from initiator_sim.login import LoggedIn
from initiator_sim.task import GOOD, NO_STATUS, Failure, Task
from san_target.wire import opcodes, pdus
from san_target.wire.digest import digest
from san_target.wire.framer import Pdu
from san_target.wire.hot import HEADER

ITT_FIRST: Final = 1
_MASK: Final = 0xFFFFFFFF
_HALF: Final = 0x80000000
_FINAL: Final = 0x80
_STATUS: Final = 0x01
_OVERFLOW: Final = 0x04
_UNDERFLOW: Final = 0x02
_RESERVED: Final = opcodes.RESERVED_TAG

_PACK = HEADER.pack
_DATA_OUT: Final = Struct(">BBxxIQII4xI4xII4x").pack  # RFC 7143 11.7
# Data-In (RFC 7143 11.7) from byte 1: flags, status, lengths, ITT, StatSN, ExpCmdSN, MaxCmdSN, DataSN, offset, residual
_DATA_IN: Final = Struct(">xBxBI8xI4xIIIIII").unpack
# SCSI Response (11.4): flags, response, status, lengths, ITT, StatSN, ExpCmdSN, MaxCmdSN, ExpDataSN, residual
_RESPONSE: Final = Struct(">xBBBI8xI4xIIII4xI").unpack
# R2T (11.8): LUN, ITT, TTT, StatSN, ExpCmdSN, MaxCmdSN, R2TSN, offset, length
_R2T: Final = Struct(">8xQIIIIIIII").unpack
# What every target PDU has in common: ITT, TTT, StatSN, ExpCmdSN, MaxCmdSN
_NUMBERS: Final = Struct(">16xIIIII12x").unpack


class ProtocolError(Exception):
    """The target broke a rule of the standard."""


class Reactions(Protocol):
    """What the owner of a session hears about beside the ends of its tasks."""

    def async_message(self, event: int, parameters: tuple[int, int, int, int], data: bytes) -> None:
        """RFC 7143 11.9. parameters: AsyncVCode and Parameter1 to 3, 0 where an event does not define them."""

    def rejected(self, reason: int, bhs: bytes) -> None:
        """A Reject (RFC 7143 11.17) of a PDU that is not a command; bhs is that PDU's header, or less."""


Answered = Callable[[Any, bytes], None]
"""Called with the parsed header and the data of the answer to a NOP, task management, text or logout request."""


class Session:
    """One session with one connection, logged in. `depth_max` commands are outstanding at most."""

    __slots__ = (
        "_digests",
        "_next_itt",
        "_requests",
        "_tasks_waiting",
        "cmd_sn",
        "commands_sent",
        "depth_max",
        "exp_stat_sn",
        "logging_out",
        "max_cmd_sn",
        "outgoing",
        "parameters",
        "reactions",
        "remarks",
        "tasks",
        "tsih",
    )

    def __init__(self, login: LoggedIn, reactions: Reactions, depth_max: int = 128) -> None:
        self.parameters = login.parameters
        self.reactions = reactions
        self.depth_max = depth_max
        self.tsih = login.tsih
        self.cmd_sn = login.cmd_sn
        self.exp_stat_sn = login.exp_stat_sn
        self.max_cmd_sn = login.max_cmd_sn
        self.outgoing: list[bytes | memoryview] = []
        self.tasks: dict[int, Task] = {}
        self.commands_sent = 0
        self.remarks: dict[str, int] = {}
        self.logging_out = False
        self._digests = login.parameters.header_digest or login.parameters.data_digest
        self._tasks_waiting: deque[Task] = deque()
        self._requests: dict[int, tuple[int, Answered]] = {}
        self._next_itt = ITT_FIRST

    # --- sending --------------------------------------------------------------------------------------------------

    @property
    def outstanding(self) -> int:
        """Commands sent or waiting for the command window."""
        return len(self.tasks) + len(self._tasks_waiting)

    def submit(self, task: Task) -> None:
        """Send a command, at once or as soon as the command window (RFC 7143 4.2.2.1) and depth_max allow."""
        if self._tasks_waiting or len(self.tasks) >= self.depth_max or self.max_cmd_sn - self.cmd_sn & _HALF:
            self._tasks_waiting.append(task)
        else:
            self._send_command(task)

    def _send_command(self, task: Task) -> None:
        itt = self._next_itt
        self._next_itt = itt + 1 if itt < 0xFFFFFFF0 else ITT_FIRST
        if task.dirty:
            task.reset()
        else:
            task.status = NO_STATUS
            task.received_bytes = 0
        task.itt = itt
        cmd_sn = task.sent_cmd_sn = self.cmd_sn
        self.cmd_sn = cmd_sn + 1 & _MASK
        self.commands_sent += 1
        self.tasks[itt] = task
        data = task.write_data
        if data is not None:
            self._send_write(task, data)
        elif self._digests:
            self._send(
                _PACK(0x01, task.flags, 0, 0, task.lun, itt, task.read_bytes, cmd_sn, self.exp_stat_sn, task.cdb)
            )
        else:
            self.outgoing.append(
                _PACK(0x01, task.flags, 0, 0, task.lun, itt, task.read_bytes, cmd_sn, self.exp_stat_sn, task.cdb)
            )

    def _send_write(self, task: Task, data: memoryview) -> None:
        """A command with its immediate and unsolicited data (RFC 7143 4.2.5.2, 11.3.1, 11.7)."""
        parameters = self.parameters
        length = len(data)
        first_burst = min(length, parameters.first_burst_length)
        immediate = min(first_burst, parameters.max_send_data_segment_length) if parameters.immediate_data else 0
        unsolicited = first_burst if not parameters.initial_r2t else immediate
        # F says that no unsolicited Data-Out follows.
        flags = task.flags if unsolicited == immediate else task.flags & 0x7F
        bhs = _PACK(0x01, flags, 0, immediate, task.lun, task.itt, length, task.sent_cmd_sn, self.exp_stat_sn, task.cdb)
        if self._digests or immediate & 3:
            self._send(bhs, data[:immediate])
        elif immediate:
            self.outgoing.append(bhs)
            self.outgoing.append(data if immediate == length else data[:immediate])
        else:
            self.outgoing.append(bhs)
        if unsolicited > immediate:
            self._send_data(task, data, _RESERVED, immediate, unsolicited - immediate)

    def _send_data(self, task: Task, data: memoryview, ttt: int, offset: int, length: int) -> None:
        """One sequence of Data-Out PDUs; DataSN counts from 0 in each (RFC 7143 11.7.5)."""
        segment_max = self.parameters.max_send_data_segment_length
        data_sn = 0
        end = offset + length
        while offset < end:
            count = min(segment_max, end - offset)
            final = _FINAL if offset + count == end else 0
            bhs = _DATA_OUT(0x05, final, count, task.lun, task.itt, ttt, self.exp_stat_sn, data_sn, offset)
            self._send(bhs, data[offset : offset + count])
            data_sn += 1
            offset += count

    def _send(self, bhs: bytes, data: "bytes | memoryview" = b"") -> None:
        """Any PDU, with its digests and padding."""
        outgoing = self.outgoing
        outgoing.append(bhs)
        if self.parameters.header_digest:
            outgoing.append(digest(bhs))
        if len(data):
            outgoing.append(data)
            padding = bytes(-len(data) % 4)
            if padding:
                outgoing.append(padding)
            if self.parameters.data_digest:
                outgoing.append(digest(data, padding))

    def _request(self, opcode: int, answered: Answered | None, data: bytes = b"", **fields: Any) -> int:
        """An immediate request other than a SCSI command; returns its initiator task tag."""
        itt = self._next_itt
        self._next_itt = itt + 1 if itt < 0xFFFFFFF0 else ITT_FIRST
        if answered is not None:
            self._requests[itt] = (opcode, answered)
        self._send(
            pdus.build(
                opcode,
                len(data),
                immediate=True,
                initiator_task_tag=itt,
                cmd_sn=self.cmd_sn,
                exp_stat_sn=self.exp_stat_sn,
                **fields,
            ),
            data,
        )
        return itt

    def ping(self, answered: Answered, data: bytes = b"") -> None:
        """NOP-Out that asks for an answer with the same data (RFC 7143 11.18)."""
        self._request(opcodes.NOP_OUT, answered, data)

    def text(self, data: bytes, answered: Answered, ttt: int = _RESERVED) -> None:
        """One Text Request with all of `data` (RFC 7143 11.10)."""
        self._request(opcodes.TEXT_REQUEST, answered, data, final=True, target_transfer_tag=ttt)

    def logout(self, answered: Answered, reason: int = 0) -> None:
        """Close the session (reason 0) or its connection (1); nothing else may be sent afterwards (RFC 7143 11.14)."""
        self.logging_out = True
        self._request(opcodes.LOGOUT_REQUEST, answered, reason=reason)

    def task_management(self, function: int, answered: Answered, lun: int = 0, task: Task | None = None) -> None:
        """RFC 7143 11.5. `task` is the one that ABORT TASK and QUERY TASK name.

        Tasks that a successful function ends are ended here with Failure.ABORTED, before answered() is called.
        """
        reached = self._reached_by(function, lun, task)

        def confirmed(header: Any, data: bytes) -> None:
            if header.response == opcodes.FUNCTION_COMPLETE:
                for each in reached:
                    if self.tasks.get(each.itt) is each:
                        self._fail(each, Failure.ABORTED)
            answered(header, data)

        fields: dict[str, Any] = {"function": function, "lun": lun.to_bytes(8, "big")}
        if task is not None:
            fields |= {"referenced_task_tag": task.itt, "ref_cmd_sn": task.sent_cmd_sn}
        self._request(opcodes.TASK_MANAGEMENT_REQUEST, confirmed, **fields)

    def remark(self, text: str) -> None:
        """The target broke a rule that no initiator at ErrorRecoveryLevel 0 depends on."""
        self.remarks[text] = self.remarks.get(text, 0) + 1

    def _reached_by(self, function: int, lun: int, task: Task | None) -> list[Task]:
        if function == opcodes.ABORT_TASK:
            return [] if task is None else [task]
        if function in (opcodes.ABORT_TASK_SET, opcodes.CLEAR_TASK_SET, opcodes.LOGICAL_UNIT_RESET):
            return [each for each in self.tasks.values() if each.lun == lun]
        if function in (opcodes.TARGET_WARM_RESET, opcodes.TARGET_COLD_RESET, opcodes.I_T_NEXUS_RESET):
            return list(self.tasks.values())
        return []

    # --- receiving ------------------------------------------------------------------------------------------------

    def receive(self, batch: Iterable[Pdu]) -> None:
        """Handle the PDUs of one receive. Raises ProtocolError, PduError, FramingError: then the connection ends."""
        tasks = self.tasks
        for pdu in batch:
            bhs = pdu.bhs
            opcode = bhs[0]
            if opcode == 0x25:
                flags, status, lengths, itt, stat_sn, _, max_cmd_sn, data_sn, offset, residual = _DATA_IN(bhs)
                task = tasks.get(itt)
                if task is None:
                    raise ProtocolError(f"Data-In for a task that does not exist: {itt}")
                if data_sn != task.data_sn or offset != task.received_bytes or offset + lengths > task.read_bytes:
                    self._wrong_data_in(task, data_sn, offset, lengths)
                if max_cmd_sn != self.max_cmd_sn:
                    self._window(max_cmd_sn)
                if not flags & _STATUS:
                    task.data_sn += 1
                    task.take_part(pdu.data)
                    continue
                if stat_sn != self.exp_stat_sn:
                    raise ProtocolError(f"StatSN {stat_sn}, expected {self.exp_stat_sn} (RFC 7143 4.2.2.2)")
                self.exp_stat_sn = stat_sn + 1 & _MASK
                task.take_last(pdu.data)
                if task.received_bytes != task.read_bytes or residual:
                    self._residual(task, flags, status, residual)
                task.status = status
                del tasks[itt]
                task.on_done(task)
            elif opcode == 0x21:
                self._scsi_response(bhs, pdu)
            elif opcode == 0x31:
                self._r2t(bhs)
            else:
                self._other(opcode, bhs, pdu)
        if self._tasks_waiting:
            self._send_waiting()

    def _send_waiting(self) -> None:
        waiting = self._tasks_waiting
        while waiting and len(self.tasks) < self.depth_max and not self.max_cmd_sn - self.cmd_sn & _HALF:
            self._send_command(waiting.popleft())

    def _window(self, max_cmd_sn: int) -> None:
        # RFC 7143 4.2.2.1: a MaxCmdSN below the known one comes from a PDU that was overtaken; it is ignored.
        if not max_cmd_sn - self.max_cmd_sn & _HALF:
            self.max_cmd_sn = max_cmd_sn

    def _status_number(self, stat_sn: int) -> None:
        if stat_sn != self.exp_stat_sn:
            raise ProtocolError(f"StatSN {stat_sn}, expected {self.exp_stat_sn} (RFC 7143 4.2.2.2)")
        self.exp_stat_sn = stat_sn + 1 & _MASK

    def _wrong_data_in(self, task: Task, data_sn: int, offset: int, count: int) -> None:
        if data_sn != task.data_sn:
            raise ProtocolError(f"DataSN {data_sn}, expected {task.data_sn} (RFC 7143 11.7.5)")
        if offset != task.received_bytes:
            raise ProtocolError(f"Data-In at offset {offset}, expected {task.received_bytes} (DataPDUInOrder=Yes)")
        raise ProtocolError(f"Data-In up to {offset + count}, beyond the expected {task.read_bytes} bytes")

    def _residual(self, task: Task, flags: int, status: int, residual: int) -> None:
        """RFC 7143 11.4.5: U and O say which way the transfer missed the expected length; never both."""
        if flags & _UNDERFLOW and flags & _OVERFLOW:
            raise ProtocolError("residual underflow and overflow at once (RFC 7143 11.4.1)")
        task.dirty = True
        task.residual = residual if flags & _UNDERFLOW else -residual if flags & _OVERFLOW else 0
        missing = task.read_bytes - task.received_bytes
        if task.read_bytes and flags & _UNDERFLOW and residual != missing:
            raise ProtocolError(f"residual of {residual} bytes, but {missing} did not come")
        if status == GOOD and missing and not flags & _UNDERFLOW:
            raise ProtocolError(f"{missing} bytes did not come, and no residual says so (RFC 7143 11.4.5.1)")

    def _scsi_response(self, bhs: bytes, pdu: Pdu) -> None:
        flags, response, status, _, itt, stat_sn, _, max_cmd_sn, exp_data_sn, residual = _RESPONSE(bhs)
        task = self.tasks.pop(itt, None)
        if task is None:
            raise ProtocolError(f"SCSI Response for a task that does not exist: {itt}")
        if stat_sn != self.exp_stat_sn:
            raise ProtocolError(f"StatSN {stat_sn}, expected {self.exp_stat_sn} (RFC 7143 4.2.2.2)")
        self.exp_stat_sn = stat_sn + 1 & _MASK
        if max_cmd_sn != self.max_cmd_sn:
            self._window(max_cmd_sn)
        task.gathered()
        if task.read_bytes or flags & 6:
            self._residual(task, flags, status, residual)
            # 11.4.8: the number of Data-In (and R2T) PDUs that were sent for the command.
            if exp_data_sn != task.data_sn and task.read_bytes:
                self.remark("SCSI Response: ExpDataSN is not the number of Data-In PDUs (RFC 7143 11.4.8)")
        if response != 0:
            self._finish_failed(task, Failure.TARGET_FAILURE)
            return
        if pdu.data:
            data = bytes(pdu.data)
            length = int.from_bytes(data[:2], "big")  # 11.4.7.1: SenseLength, then the sense data
            if length + 2 > len(data):
                raise ProtocolError(f"SenseLength {length} in a data segment of {len(data)} bytes")
            task.dirty = True
            task.sense = data[2 : 2 + length]
        task.status = status
        task.on_done(task)

    def _r2t(self, bhs: bytes) -> None:
        lun, itt, ttt, _, _, max_cmd_sn, r2t_sn, offset, length = _R2T(bhs)
        task = self.tasks.get(itt)
        self._window(max_cmd_sn)
        if task is None or task.write_data is None:
            raise ProtocolError(f"R2T for a task that writes nothing or does not exist: {itt}")
        if r2t_sn != task.r2t_sn:
            raise ProtocolError(f"R2TSN {r2t_sn}, expected {task.r2t_sn} (RFC 7143 11.8.3)")
        task.dirty = True
        task.r2t_sn += 1
        if ttt == _RESERVED or length == 0 or offset + length > len(task.write_data):
            raise ProtocolError(f"R2T with tag {ttt:#x} for {length} bytes at {offset} of {len(task.write_data)}")
        if length > self.parameters.max_burst_length:
            raise ProtocolError(f"R2T for {length} bytes, above MaxBurstLength (RFC 7143 11.8.4)")
        if lun not in (task.lun, 0):
            raise ProtocolError("R2T with the LUN of another task")
        self._send_data(task, task.write_data, ttt, offset, length)

    def _other(self, opcode: int, bhs: bytes, pdu: Pdu) -> None:
        opcode &= opcodes.OPCODE_MASK
        header = pdus.parse(bhs)
        self._window(header.max_cmd_sn)
        if opcode == opcodes.NOP_IN:
            self._nop_in(header, bytes(pdu.data))
            return
        self._status_number(header.stat_sn)
        if opcode == opcodes.ASYNC_MESSAGE:
            parameters = header.async_vcode, header.parameter1, header.parameter2, header.parameter3
            self.reactions.async_message(header.async_event, parameters, bytes(pdu.data))
        elif opcode == opcodes.REJECT:
            self._rejected(header.reason, bytes(pdu.data))
        else:
            self._answer(header, bytes(pdu.data))

    def _nop_in(self, header: Any, data: bytes) -> None:
        if header.initiator_task_tag != _RESERVED:
            self._status_number(header.stat_sn)
            self._answer(header, data)
            return
        # 11.19.2: the target's own NOP-In does not advance StatSN.
        if header.stat_sn != self.exp_stat_sn:
            raise ProtocolError(f"NOP-In with StatSN {header.stat_sn}, the next is {self.exp_stat_sn}")
        if header.target_transfer_tag != _RESERVED and not self.logging_out:
            self._send(
                pdus.build(
                    opcodes.NOP_OUT,
                    immediate=True,
                    lun=header.lun,
                    initiator_task_tag=_RESERVED,
                    target_transfer_tag=header.target_transfer_tag,
                    cmd_sn=self.cmd_sn,
                    exp_stat_sn=self.exp_stat_sn,
                )
            )

    def _answer(self, header: Any, data: bytes) -> None:
        request = self._requests.get(header.initiator_task_tag)
        if request is None or header.opcode != request[0] | 0x20:
            raise ProtocolError(f"PDU 0x{header.opcode:02x} answers no request of ours")
        del self._requests[header.initiator_task_tag]
        request[1](header, data)

    def _rejected(self, reason: int, bhs: bytes) -> None:
        if len(bhs) >= opcodes.BHS_BYTES and bhs[0] & opcodes.OPCODE_MASK in (opcodes.SCSI_COMMAND, opcodes.DATA_OUT):
            task = self.tasks.get(int.from_bytes(bhs[16:20], "big"))
            if task is not None:
                self._fail(task, Failure.REJECTED)
                return
        self.reactions.rejected(reason, bhs)

    def _fail(self, task: Task, failure: Failure) -> None:
        self.tasks.pop(task.itt, None)
        self._finish_failed(task, failure)

    def _finish_failed(self, task: Task, failure: Failure) -> None:
        task.dirty = True
        task.failure = failure
        task.on_done(task)

    def lost(self) -> list[Task]:
        """The connection ended: the tasks without an answer, in the order they were submitted."""
        unfinished = [*self.tasks.values(), *self._tasks_waiting]
        self.tasks.clear()
        self._tasks_waiting.clear()
        self._requests.clear()
        self.outgoing.clear()
        return unfinished
