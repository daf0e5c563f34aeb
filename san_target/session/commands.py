"""SCSI commands of a connection in full feature phase: the hot path, data transfer, execution, responses. Pure.

Two ways through: `_try_hot` serves a plain READ or WRITE of cached blocks in one go, without a task; everything else
becomes a `Task`, collects its data, and is executed at once if the logical unit can, else in the background.
"""

from collections import deque
from collections.abc import Generator, Iterator
from functools import partial
from typing import TYPE_CHECKING

from san_target.scsi.command import HEAD_OF_QUEUE, ORDERED, OUTCOME_GOOD, Command, Outcome
from san_target.scsi.hot import decode_read_write
from san_target.scsi.logical_unit import execute_without_unit
from san_target.scsi.sense import CheckCondition, Condition
from san_target.session.pattern import Pattern
from san_target.session.responses import Responses
from san_target.session.tasks import Task
from san_target.session.transfer import DataOutTransfer, Grants
from san_target.wire import hot, pdus
from san_target.wire.ahs import ExtendedCdb, parse_ahs
from san_target.wire.errors import PduError
from san_target.wire.opcodes import (
    FINAL,
    IMMEDIATE,
    REJECT_IMMEDIATE_COMMAND,
    REJECT_INVALID_PDU_FIELD,
    REJECT_PROTOCOL_ERROR,
    REJECT_TASK_IN_PROGRESS,
    RESERVED_TAG,
)

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from san_target.scsi.nexus import Nexus
    from san_target.session.host import Host
    from san_target.session.parameters import TargetLimits
    from san_target.session.session import Counters, Session
    from san_target.volume.device import BlockDevice, Resume
    from san_target.wire.framer import Pdu

# Answers per flush: enough to make a system call cheap, few enough that the initiator works while we do.
ANSWERS_PER_FLUSH = 16
LARGE_ANSWER_BYTES = 65536  # worth a system call of its own, and then its memory is still in the cache
# From this size on, data is sent from where it lies. More of it at once spares the initiator wake-ups.
VIEWED_BYTES_MIN = 65536
VIEWED_BYTES_PER_FLUSH = 2 << 20
IMMEDIATE_TASKS_MAX = 32
_OTHER_DATA_IN_BYTES_MAX = 1 << 20  # of commands other than READ
_READ, _WRITE = 0x40, 0x20
RawHeader = tuple[int, int, int, int, int, int, int, int, int, bytes]  # the fields of wire.hot.Header
_NO_COMMAND: RawHeader = (0, 0, 0, 0, 0, 0, 0, 0, 0, bytes(16))
_INTERNAL_TARGET_FAILURE = Condition(0x4, 0x44, 0x00)


def _tags() -> Iterator[int]:
    """Target transfer tags: any 32-bit number but the reserved one."""
    while True:
        yield from range(1, RESERVED_TAG)


class Commands(Responses):
    """The SCSI side of a connection. `session` is None before login and for discovery sessions stays without target."""

    def __init__(self, host: "Host", limits: "TargetLimits") -> None:
        super().__init__(host, limits)
        self.session: Session | None = None
        self.tasks: dict[int, Task] = {}
        self.hot = False  # the hot path may be taken; see refresh_hot
        self.received: Generator[Pdu, None, None]  # what is being handled
        self.turn_ends_s = 0.0
        self.heard_s = 0.0  # when the initiator was last heard
        self.logging_out = False  # no command is taken any more
        self.ending = False  # nothing is executed any more
        self.leaving = False  # it goes elsewhere, and what still comes will be sent there again
        self.last_command: RawHeader = _NO_COMMAND  # the last SCSI Command PDU
        self.pattern = Pattern()
        # Buffers in `outgoing` that show blocks where they lie (view, LBA, blocks): sent before anything is changed.
        self.viewed: list[tuple[memoryview, int, int]] = []
        self._device: BlockDevice
        self._nexus: Nexus
        self._counters: Counters
        self._block_size = 0
        self._read_max = 0
        self._immediate_max = 0
        self._waiting: deque[Task] = deque()
        self._executing = 0
        self._executing_bytes = 0
        self._grants = Grants(limits.buffered_bytes_max)
        self._ordered_executing = False
        self._tags = _tags()

    # --- the hot path ---------------------------------------------------------------------------------------------

    def refresh_hot(self) -> None:
        """The hot path needs: a target, no digests, no trace, and no command that must go first."""
        session = self.session
        self.hot = (
            session is not None
            and session.target is not None
            and not (self.header_digest or self.data_digest or self.logging_out or self.ending)
            and self.trace is None
            and not self.window_closes
            and not self._waiting
            and not self._ordered_executing
        )
        if session is not None and session.target is not None and session.nexus is not None:
            self._device = session.target.unit.device
            self._block_size = self._device.block_size
            self._nexus = session.nexus
            self._counters = session.counters
            self._read_max = min(self.parameters.max_send_data_segment_length, self.parameters.max_burst_length)
            self._immediate_max = self.parameters.first_burst_length if self.parameters.immediate_data else 0

    def try_hot(self, header: RawHeader, pdu: "Pdu") -> bool:
        """Serve a plain READ or WRITE of cached, unlocked, local blocks; False = nothing was done.

        Written out flat, without helpers: each call would cost a hundredth of what the whole command does.
        """
        _, flags, _, lengths, lun, itt, expected, cmd_sn, _, cdb = header
        if lun or cmd_sn != self.exp_cmd_sn or not 0 < cmd_sn <= self.max_cmd_sn or itt in self.tasks or self.held:
            return False  # (a window that wraps around takes the slow way)
        decoded = decode_read_write(cdb)
        if decoded is None:
            return False
        lba, blocks, is_write, fua = decoded
        device = self._device
        if fua or not blocks or blocks * self._block_size != expected or lba + blocks > device.blocks:
            return False
        if itt == RESERVED_TAG:
            return False
        counters = self._counters
        into = None
        # An ORDERED command takes the slow way, so the attribute (the low bits) must be untagged or SIMPLE.
        if is_write:
            # F and W, no R, and all data must be immediate, within what was agreed.
            most = self._immediate_max
            if lengths != expected or expected > most or flags & 0xE6 != 0xA0 or not self._nexus.may_write:
                return False
            if self.viewed:
                self.host.flush()
            if not device.try_write(lba, blocks, pdu.data):
                self._go_on(header, pdu, is_write)
                return True
            counters.writes += 1
            counters.bytes_written += expected
        else:
            if lengths or flags & 0xE6 != 0xC0 or not self._nexus.may_read or expected > self._read_max:
                return False
            if expected >= VIEWED_BYTES_MIN and (into := device.try_view(lba, blocks)) is not None:
                self.viewed.append((into, lba, blocks))
            else:
                into = self.host.arena.take(expected) or self._take_after_flush(expected)
                if into is None:
                    return False
                if not device.try_read_into(lba, blocks, into):
                    self.host.arena.give_back(expected)
                    self._go_on(header, pdu, is_write)
                    return True
            counters.reads += 1
            counters.bytes_read += expected
        counters.commands += 1
        # The command came and went: both ends of the window move by one, and the answer takes a StatSN.
        self.exp_cmd_sn = exp_cmd_sn = cmd_sn + 1 & 0xFFFFFFFF
        self.max_cmd_sn = max_cmd_sn = self.max_cmd_sn + 1 & 0xFFFFFFFF
        stat_sn = self.stat_sn
        self.stat_sn = stat_sn + 1 & 0xFFFFFFFF
        if into is None:
            self.outgoing.append(hot.pack_good_response(itt, stat_sn, exp_cmd_sn, max_cmd_sn))
        else:
            # Whole blocks need no padding.
            self.outgoing += (hot.pack_read_answer(expected, itt, stat_sn, exp_cmd_sn, max_cmd_sn), into)
        self.answers += 1
        if self.answers >= ANSWERS_PER_FLUSH or expected >= LARGE_ANSWER_BYTES:
            self._flush_after(expected)
        return True

    def _flush_after(self, size_bytes: int) -> None:
        """Send: there are many answers, or the last was large. Shown blocks wait until there is enough of them."""
        if self.answers < ANSWERS_PER_FLUSH and 0 < len(self.viewed) * size_bytes < VIEWED_BYTES_PER_FLUSH:
            return
        self.host.flush()
        if self.turn_is_over():
            self.received.close()

    def reread(self, lba: int, blocks: int, into: memoryview) -> None:
        """For the shell: blocks in `viewed` again, as a copy. VolumeError."""
        self._device.reread(lba, blocks, into)

    def turn_is_over(self) -> bool:
        """What is left of this receive has to wait: for other connections, or until the initiator takes its answers."""
        return self.host.now() > self.turn_ends_s or self.host.unsent_bytes > self.limits.unsent_bytes_max

    def _take_after_flush(self, size_bytes: int) -> memoryview | None:
        self.host.flush()
        return self.host.arena.take(size_bytes)

    def _go_on(self, header: RawHeader, pdu: "Pdu", is_write: bool) -> None:
        """With a command that could not be served at once. (`try_write` may have locked the range for exactly this
        write: it must go on, and not be tried again.)"""
        _, flags, _, _, _, itt, expected, cmd_sn, _, cdb = header
        self.exp_cmd_sn = cmd_sn + 1 & 0xFFFFFFFF
        command = Command(self._nexus, cdb, pdu.keep() if is_write else b"", 0, flags & 0x07)
        task = Task(command, itt, 0, False)
        if is_write:
            command.data_out_expected = task.write_expected = task.write_wanted = expected
        else:
            command.data_out_expected = 0
            task.read_expected = task.read_bytes = expected
        self.tasks[itt] = task
        self._counters.commands += 1
        task.skip_now = True
        self._begin(task)

    # --- SCSI Command and Data-Out --------------------------------------------------------------------------------

    def on_scsi_command(self, pdu: "Pdu") -> None:
        """A SCSI Command PDU whose turn has come (RFC 7143 11.3)."""
        if self.leaving:
            return
        header = hot.HEADER.unpack(pdu.bhs)
        fault = self._command_fault(header, pdu)
        if fault:
            self._refuse(fault, header[0], pdu)
            return
        task = self._new_task(header, pdu)
        final = bool(header[1] & FINAL)
        if task.write_expected or not final:
            task.transfer = DataOutTransfer(task.write_expected, task.write_wanted, self.parameters)
            task.transfer.begin(pdu.data, pdu.owned, final)
            self._advance(task)
        else:
            self._start(task)

    def _command_fault(self, header: RawHeader, pdu: "Pdu") -> int:
        """The Reject reason for a SCSI Command PDU that breaks the rules, or 0."""
        opcode, flags, _, lengths, _, itt, _, _, _, _ = header
        if self.session is None or self.session.target is None:
            return REJECT_PROTOCOL_ERROR  # RFC 7143 4.3: a discovery session carries no SCSI commands
        if itt == RESERVED_TAG:
            return REJECT_INVALID_PDU_FIELD
        if itt in self.tasks:
            return REJECT_TASK_IN_PROGRESS
        if not flags & _WRITE and (lengths & 0xFFFFFF or not flags & FINAL):
            # RFC 7143 11.3.1: without W there is neither immediate nor unsolicited data.
            return REJECT_PROTOCOL_ERROR
        if opcode & IMMEDIATE and len(self.tasks) >= self.limits.command_window + IMMEDIATE_TASKS_MAX:
            return REJECT_IMMEDIATE_COMMAND
        try:
            parse_ahs(pdu.ahs)
        except PduError:
            return REJECT_INVALID_PDU_FIELD
        return 0

    def _refuse(self, reason: int, opcode: int, pdu: "Pdu") -> None:
        self.reject(reason, pdu.bhs)
        if self.session is not None:
            self.session.counters.rejects += 1
        if not opcode & IMMEDIATE:
            self.command_ended()

    def _new_task(self, header: RawHeader, pdu: "Pdu") -> Task:
        opcode, flags, _, _, lun_field, itt, expected, _, _, cdb = header
        session = self.session
        assert session is not None
        assert session.target is not None
        assert session.nexus is not None
        lun = pdus.lun_to_int(lun_field.to_bytes(8, "big")) if lun_field else 0
        bidirectional_read = 0
        for additional in parse_ahs(pdu.ahs) if pdu.ahs else ():
            if isinstance(additional, ExtendedCdb):
                cdb += additional.cdb_tail
            else:
                bidirectional_read = additional.expected_read_data_length
        command = Command(session.nexus, cdb, b"", -1 if lun is None else lun, flags & 0x07)
        task = Task(command, itt, lun_field, bool(opcode & IMMEDIATE))
        command.data_out_expected = expected if flags & _WRITE else 0
        if flags & _WRITE:
            task.write_expected = expected
            task.read_expected = bidirectional_read if flags & _READ else 0
        elif flags & _READ:
            task.read_expected = expected
        if task.read_expected:
            task.read_bytes = self._data_in_bytes(cdb, task.read_expected)
        if lun == 0:
            task.write_wanted = session.target.unit.data_out_length(cdb)
        self.tasks[itt] = task
        session.counters.commands += 1
        return task

    def _data_in_bytes(self, cdb: bytes, expected: int) -> int:
        """What a command reads into memory: all that a READ names, however little the initiator expects."""
        decoded = decode_read_write(cdb)
        if decoded is None:
            return min(expected, _OTHER_DATA_IN_BYTES_MAX)
        return min(decoded[1] * self._block_size, self.limits.buffered_bytes_max)

    def on_data_out(self, pdu: "Pdu") -> None:
        """SCSI Data-Out (RFC 7143 11.7). Data for a task that is gone, or has all it needs, is dropped silently."""
        header = hot.HEADER.unpack(pdu.bhs)
        task = self.tasks.get(header[5])
        if task is None or task.transfer is None or task.transfer.complete:
            return
        data_sn, offset = hot.DATA_OUT_TAIL.unpack(header[9])
        ttt = None if header[6] == RESERVED_TAG else header[6]
        task.transfer.receive(ttt, data_sn, offset, pdu.data, bool(header[1] & FINAL))
        self._advance(task)

    def _advance(self, task: Task) -> None:
        """Ask for more data, or start the command if it has all."""
        transfer = task.transfer
        assert transfer is not None
        if transfer.complete:
            if task.command.aborted:
                self._end(task)
            elif transfer.failure is not None:
                self._finish(task, CheckCondition(transfer.failure).outcome(task.command.nexus.d_sense))
            else:
                task.command.data_out = transfer.data()
                self._start(task)
            return
        if transfer.may_solicit and self._grants.ask(task):
            self._solicit(task)

    def _solicit(self, task: Task) -> None:
        assert task.transfer is not None
        for request in task.transfer.solicit(self._tags):
            self.send(
                hot.pack_r2t(
                    task.lun_field,
                    task.itt,
                    request.ttt,
                    self.stat_sn,
                    self.exp_cmd_sn,
                    self.max_cmd_sn,
                    request.r2t_sn,
                    request.offset,
                    request.length,
                )
            )

    # --- execution ------------------------------------------------------------------------------------------------

    def _start(self, task: Task) -> None:
        """Execute now, or queue behind what must go first."""
        if task.command.attribute == HEAD_OF_QUEUE or self._may_start(task):
            self._execute(task)
        else:
            self._waiting.append(task)
            self.refresh_hot()

    def _may_start(self, task: Task) -> bool:
        if self._waiting or self._ordered_executing:
            return False
        if task.command.attribute == ORDERED and self._executing:
            return False  # SAM-5 8.8: after everything older
        pending = self._executing_bytes + self.host.unsent_bytes
        return not pending or pending + task.buffered_bytes <= self.limits.buffered_bytes_max

    def start_waiting(self) -> None:
        """Start queued commands whose turn has come; called when a task ended or output was sent."""
        if not self._waiting:
            return
        queue = self._waiting
        while queue and not self.ending:
            task = queue.popleft()
            held, self._waiting = self._waiting, deque()
            may_start = self._may_start(task)
            self._waiting = held
            if not may_start:
                queue.appendleft(task)
                break
            self._execute(task)
        self.refresh_hot()

    def _execute(self, task: Task) -> None:
        session = self.session
        assert session is not None
        command = task.command
        target = session.target
        assert target is not None
        if command.aborted or self.ending:
            self._end(task)
            return
        if command.lun != 0:
            self._finish(task, execute_without_unit(command, [target.iqn]))
            return
        outcome = None
        if not task.skip_now:
            try:
                outcome = target.unit.execute_now(command)
            except Exception as error:
                outcome = self._our_failure(error)
        if outcome is not None:
            self._finish(task, outcome)
            return
        self._begin(task)

    def _begin(self, task: Task) -> None:
        """Give the command to the logical unit, which will take its time."""
        session, command = self.session, task.command
        assert session is not None
        assert session.target is not None
        command.heard_s = self.heard_s
        command.hear_again = self.hear_again
        task.executing = True
        self._executing += 1
        self._executing_bytes += task.buffered_bytes
        if command.attribute == ORDERED:
            self._ordered_executing = True
            self.refresh_hot()
        if not session.target.unit.start(command, partial(self._begun_ended, task)):
            self.host.spawn(self._run(task))

    def _begun_ended(self, task: Task, data: "Buffer | None", resume: "Resume | None") -> None:
        """What was begun without a task is done, or needs one to go on."""
        if data is None:
            self.host.spawn(self._run(task, resume))
            return
        self._let_go(task)
        self._finish(task, Outcome(data_in=bytes(data)) if data else OUTCOME_GOOD)
        if self._waiting:
            self.start_waiting()
        self.host.wake()

    def _let_go(self, task: Task) -> None:
        self._executing -= 1
        self._executing_bytes -= task.buffered_bytes
        if task.command.attribute == ORDERED:
            self._ordered_executing = False
            self.refresh_hot()

    async def _run(self, task: Task, resume: "Resume | None" = None) -> None:
        session = self.session
        assert session is not None
        assert session.target is not None
        outcome = Outcome()
        try:
            if resume is not None:
                outcome = await session.target.unit.resume(task.command, resume)
            elif not task.command.aborted or task.skip_now:
                outcome = await session.target.unit.execute(task.command)
        except Exception as error:
            outcome = self._our_failure(error)
        finally:
            self._let_go(task)
        self._finish(task, outcome)
        self.start_waiting()
        self.host.wake()

    async def hear_again(self) -> float:
        """Ask the initiator for a sign of life; when it came. At the latest when the session ends."""
        raise NotImplementedError

    def _our_failure(self, error: Exception) -> Outcome:
        self.host.failed(error)
        return CheckCondition(_INTERNAL_TARGET_FAILURE).outcome(False)

    # --- the end of a command -------------------------------------------------------------------------------------

    def _finish(self, task: Task, outcome: Outcome) -> None:
        """Send the outcome, unless task management took the command away, and forget the task."""
        if task.command.aborted or self.ending:
            self._end(task)
            return
        self._forget(task)
        self.respond(task, outcome)
        self._counters.count(task, outcome)
        task.ended()
        if self.answers >= ANSWERS_PER_FLUSH:
            self.host.flush()

    def _end(self, task: Task) -> None:
        """Forget an aborted task: no response (RFC 7143 11.5.1). One that has ended stays as it is."""
        if self.tasks.get(task.itt) is task:
            self._forget(task)
            task.ended()

    def _forget(self, task: Task) -> None:
        self.tasks.pop(task.itt, None)
        if not task.immediate:
            self.command_ended()
        if task.transfer is not None:
            for granted in self._grants.release(task):
                self._solicit(granted)

    def abort(self, tasks: list[Task]) -> None:
        """Mark tasks as aborted. Those not with the logical unit end here, the others when it lets go of them."""
        for task in tasks:
            task.command.aborted = True
        for task in tasks:
            if not task.executing:
                if task in self._waiting:
                    self._waiting.remove(task)
                self._end(task)
        self.start_waiting()
        self.refresh_hot()
