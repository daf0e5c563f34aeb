"""Holds a connection to the rules while it is attacked: its answers, its numbers, its memory.

Written against RFC 7143 and from outside: of the connection it reads what has arrived (`watch`), what was sent, and
how much is kept. Any breach is an AssertionError.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from typing import NamedTuple

from san_target.session.connection import Connection, Stage
from san_target.session.parameters import TargetLimits
from san_target.wire import opcodes, pdus
from san_target.wire.digest import digest
from san_target.wire.framer import Pdu
from tests.hostile import documented

_MASK = 0xFFFFFFFF
_HALF = 1 << 31
_IMMEDIATE_TASKS_MAX = 32  # beside the command window
_PDU_BYTES_MAX = 48 + 1020 + 65536 + 12

# Opcode -> the stages in which a non-immediate PDU takes its CmdSN.
_BOTH = frozenset({Stage.DISCOVERY, Stage.FULL_FEATURE})
_NORMAL = frozenset({Stage.FULL_FEATURE})
_NUMBERED = {
    opcodes.NOP_OUT: _BOTH,
    opcodes.SCSI_COMMAND: _NORMAL,
    opcodes.TASK_MANAGEMENT_REQUEST: _NORMAL,
    opcodes.TEXT_REQUEST: _BOTH,
    opcodes.LOGOUT_REQUEST: _BOTH,
}
_TARGET_OPCODES = frozenset(opcode for opcode in pdus.SPECS if opcode & 0x20)


def _reserved_bits(opcode: int) -> int:
    ones = bytes([opcode]) + b"\xff" * 47
    parsed = pdus.parse(ones)
    defined = pdus.build(opcode, **{name: parsed[name] for name in pdus.FIELDS[opcode] if name != "opcode"})
    return ~int.from_bytes(defined, "big") & (1 << 384) - 1


_RESERVED = {opcode: _reserved_bits(opcode) for opcode in _TARGET_OPCODES}


class Answer(NamedTuple):
    """A PDU of the target: its 48 bytes, and its data."""

    bhs: bytes
    data: bytes

    @property
    def opcode(self) -> int:
        return self.bhs[0]

    def word(self, at: int) -> int:
        return int.from_bytes(self.bhs[at : at + 4], "big")


class _Transfer:
    """What has been seen of one command: the next DataSN and offset of its Data-In, R2TSN and offset of its R2Ts."""

    __slots__ = ("data_sn", "expected", "in_offset", "open_r2ts", "r2t_offset", "r2t_sn")

    def __init__(self, expected: int) -> None:
        self.expected = expected
        self.data_sn = self.in_offset = self.r2t_sn = self.r2t_offset = self.open_r2ts = 0


class Judge:
    """One connection. outcomes: what was seen, by name; r2ts: those not answered yet, for the attacker to use."""

    def __init__(self, connection: Connection, limits: TargetLimits) -> None:
        self.outcomes: Counter[str] = Counter()
        self.r2ts: list[Answer] = []
        self._connection = connection
        self._limits = limits
        self._header_digest = self._data_digest = False
        self._requests: Counter[int] = Counter()
        self._headers: set[bytes] = set()
        self._transfers: dict[int, _Transfer] = {}
        self._stat_sn: int | None = None
        self._numbers: tuple[int, int] | None = None
        self._expected: int | None = None  # ExpCmdSN
        self._ahead: set[int] = set()
        self._unclosed = True
        self._data_max = 0

    # --- what arrives -------------------------------------------------------------------------------------------------

    def watch(self, received: Generator[Pdu, None, None]) -> Generator[Pdu, None, None]:
        """Note each PDU, and see that ExpCmdSN moves as RFC 7143 4.2.2.1 says, and only then."""
        connection = self._connection
        for pdu in received:
            bhs = pdu.bhs
            self._note(bhs)
            self._data_max = connection.parameters.max_send_data_segment_length
            stage = connection.stage
            if stage in _BOTH and self._expected is None:
                self._expected = connection.exp_cmd_sn
            takes_number = not bhs[0] & 0x40 and stage in _NUMBERED.get(bhs[0] & 0x3F, ())
            if takes_number:
                self._take_number(int.from_bytes(bhs[24:28], "big"), len(pdu.data))
            elif stage is Stage.FULL_FEATURE and bhs[0] == 0x40 | opcodes.TASK_MANAGEMENT_REQUEST:
                self._abort_before_it_came(bhs)
            yield pdu
            if self._expected is not None and connection.stage in _BOTH:
                assert connection.exp_cmd_sn == self._expected, (
                    f"ExpCmdSN is {connection.exp_cmd_sn:#x}, not {self._expected:#x}"
                )

    def _note(self, bhs: bytes) -> None:
        opcode = bhs[0] & 0x3F
        tag = int.from_bytes(bhs[16:20], "big")
        self._headers.add(bhs)
        if opcode != opcodes.DATA_OUT:
            self._requests[tag] += 1
        if opcode == opcodes.SCSI_COMMAND and tag not in self._connection.tasks:
            # (with a tag in use it will be rejected)
            self._transfers[tag] = _Transfer(int.from_bytes(bhs[20:24], "big"))

    def _take_number(self, cmd_sn: int, data_bytes: int) -> None:
        connection = self._connection
        assert self._expected is not None
        window = connection.max_cmd_sn - self._expected + 1 & _MASK
        distance = cmd_sn - self._expected & _MASK
        if distance >= window:
            self.outcomes["silence: CmdSN outside the window"] += 1
            return
        if distance:
            self.outcomes["silence: CmdSN ahead of its turn"] += 1
            if cmd_sn in connection.held or connection.held_bytes + data_bytes <= self._limits.buffered_bytes_max:
                self._ahead.add(cmd_sn)
            return
        self._ahead.add(cmd_sn)
        self._move_on()

    def _move_on(self) -> None:
        assert self._expected is not None
        while self._expected in self._ahead:
            self._ahead.discard(self._expected)
            self._expected = self._expected + 1 & _MASK

    def _abort_before_it_came(self, bhs: bytes) -> None:
        """An ABORT TASK of a command that has not had its turn uses up its CmdSN (RFC 7143 11.6.1)."""
        connection = self._connection
        assert self._expected is not None
        tag, cmd_sn, named = (int.from_bytes(bhs[at : at + 4], "big") for at in (20, 24, 32))
        if bhs[1] & 0x7F != opcodes.ABORT_TASK or pdus.lun_to_int(bhs[8:16]) != 0 or tag in connection.tasks:
            return
        held = connection.held.get(named)
        of_another = held is not None and int.from_bytes(held.bhs[16:20], "big") != tag
        within = named - self._expected & _MASK < (connection.max_cmd_sn - self._expected + 1 & _MASK)
        if within and 0 < cmd_sn - named & _MASK < _HALF and not of_another:
            self._ahead.add(named)
            self._move_on()

    # --- what is sent -------------------------------------------------------------------------------------------------

    def hear(self, sent: bytearray) -> list[Answer]:
        """Judge and remove what the connection has sent."""
        answers = []
        while sent:
            answer = self._cut(sent)
            self._judge(answer)
            answers.append(answer)
        return answers

    def _cut(self, sent: bytearray) -> Answer:
        assert len(sent) >= 48, f"{len(sent)} bytes are no PDU"
        bhs = bytes(sent[:48])
        assert bhs[0] in _TARGET_OPCODES, f"opcode {bhs[0]:#x} is not for targets to send"
        assert not int.from_bytes(bhs, "big") & _RESERVED[bhs[0]], f"reserved bits in {bhs.hex()}"
        assert bhs[4] == 0, "a target sends no AHS"
        length = int.from_bytes(bhs[5:8], "big")
        at = 48
        if self._header_digest:
            assert sent[48:52] == digest(bhs), "a wrong header digest"
            at = 52
        padded = bytes(sent[at : at + (length + 3 & ~3)])
        assert len(padded) == length + 3 & ~3, "half a PDU"
        at += len(padded)
        if self._data_digest and length:
            assert sent[at : at + 4] == digest(padded), "a wrong data digest"
            at += 4
        del sent[:at]
        return Answer(bhs, padded[:length])

    def _judge(self, answer: Answer) -> None:
        # A text exchange changes it for what comes after its last response.
        limit = max(self._data_max, self._connection.parameters.max_send_data_segment_length)
        assert len(answer.data) <= limit, f"a data segment of {len(answer.data)} bytes, {limit} are allowed"
        self._judge_numbers(answer)
        name = _JUDGES[answer.opcode](self, answer)
        self.outcomes[name] += 1

    def _judge_numbers(self, answer: Answer) -> None:
        stat_sn, expected, maximum = answer.word(24), answer.word(28), answer.word(32)
        ping = answer.opcode == opcodes.NOP_IN and answer.word(16) == opcodes.RESERVED_TAG
        without_status = answer.opcode == opcodes.DATA_IN and not answer.bhs[1] & 0x01
        if self._stat_sn is not None:
            assert stat_sn == self._stat_sn, f"StatSN {stat_sn:#x}, not {self._stat_sn:#x}"
        if not (ping or without_status or answer.opcode == opcodes.R2T):
            self._stat_sn = stat_sn + 1 & _MASK
        window = maximum - expected + 1 & _MASK
        assert window <= self._limits.command_window, f"a window of {window} commands"
        if self._numbers is not None:
            for before, now in zip(self._numbers, (expected, maximum), strict=True):
                assert now - before & _MASK < _HALF, f"ExpCmdSN or MaxCmdSN went back from {before:#x} to {now:#x}"
        self._numbers = (expected, maximum)

    def _answers(self, answer: Answer) -> int:
        """The task tag, which must be that of a request which was not answered before."""
        tag = answer.word(16)
        self._requests[tag] -= 1
        assert self._requests[tag] >= 0, f"an answer for task tag {tag:#x} that nobody waits for"
        return tag

    def _on_reject(self, answer: Answer) -> str:
        assert answer.word(16) == opcodes.RESERVED_TAG
        assert len(answer.data) == 48, "a Reject without the header at fault"
        reason = answer.bhs[2]
        assert reason in documented.REJECT_REASONS, f"Reject with reason {reason:#x}"
        tag = int.from_bytes(answer.data[16:20], "big")
        if answer.data in self._headers and answer.data[0] & 0x3F != opcodes.DATA_OUT:
            self._requests[tag] -= 1
            assert self._requests[tag] >= 0, "a PDU was rejected twice"
        return f"Reject {reason:#04x} {documented.REJECT_REASONS[reason]}"

    def _on_login_response(self, answer: Answer) -> str:
        status = int.from_bytes(answer.bhs[36:38], "big")
        if status != documented.INVALID_DURING_LOGIN or self._requests[answer.word(16)]:
            self._answers(answer)  # else it is about another PDU than a Login Request
        assert status in documented.LOGIN_STATUSES, f"login status {status:#06x}"
        transit, stages = answer.bhs[1] & 0x80, answer.bhs[1] & 0x0F
        tsih = int.from_bytes(answer.bhs[14:16], "big")
        if status == 0 and transit and stages & 0x03 == 3:
            assert tsih, "a session without a handle"
            parameters = self._connection.parameters
            self._header_digest, self._data_digest = parameters.header_digest, parameters.data_digest
        return f"Login {status:#06x} {documented.LOGIN_STATUSES[status]}"

    def _on_nop_in(self, answer: Answer) -> str:
        assert answer.bhs[1] == 0x80
        if answer.word(16) == opcodes.RESERVED_TAG:
            assert answer.word(20) != opcodes.RESERVED_TAG, "a ping that cannot be answered"
            assert not answer.data
            return "NOP-In ping"
        self._answers(answer)
        return "NOP-In"

    def _on_text_response(self, answer: Answer) -> str:
        self._answers(answer)
        final, more = answer.bhs[1] & 0x80, answer.bhs[1] & 0x40
        assert not (final and more)
        assert bool(final) == (answer.word(20) == opcodes.RESERVED_TAG), "F and the transfer tag contradict"
        return "Text Response" if final else "Text Response, more to come"

    def _on_logout_response(self, answer: Answer) -> str:
        self._answers(answer)
        assert answer.bhs[2] in documented.LOGOUT_RESPONSES
        return f"Logout {answer.bhs[2]} {documented.LOGOUT_RESPONSES[answer.bhs[2]]}"

    def _on_task_management_response(self, answer: Answer) -> str:
        self._answers(answer)
        response = answer.bhs[2]
        assert response in documented.TASK_MANAGEMENT_RESPONSES, f"task management response {response}"
        return f"Task management {response} {documented.TASK_MANAGEMENT_RESPONSES[response]}"

    def _on_async(self, answer: Answer) -> str:
        assert answer.word(16) == opcodes.RESERVED_TAG
        assert answer.bhs[36] in documented.ASYNC_EVENTS
        return f"Async {answer.bhs[36]} {documented.ASYNC_EVENTS[answer.bhs[36]]}"

    def _on_r2t(self, answer: Answer) -> str:
        tag, r2t_sn, offset, length = answer.word(16), answer.word(36), answer.word(40), answer.word(44)
        transfer = self._transfers[tag]
        assert self._requests[tag] > 0, "an R2T for a task that has ended"
        assert r2t_sn == transfer.r2t_sn, f"R2TSN {r2t_sn}, not {transfer.r2t_sn}"
        assert offset >= transfer.r2t_offset, "an R2T asks for what was asked for before"
        assert 0 < length <= self._connection.parameters.max_burst_length
        assert offset + length <= transfer.expected, "an R2T asks for more than the initiator has"
        transfer.r2t_sn += 1
        transfer.r2t_offset = offset + length
        self.r2ts.append(answer)
        return "R2T"

    def _on_data_in(self, answer: Answer) -> str:
        tag, data_sn, offset = answer.word(16), answer.word(36), answer.word(40)
        transfer = self._transfers[tag]
        assert (data_sn, offset) == (transfer.data_sn, transfer.in_offset), "Data-In out of order"
        transfer.data_sn += 1
        transfer.in_offset += len(answer.data)
        if not answer.bhs[1] & 0x01:
            return "Data-In"
        assert answer.bhs[1] & 0x80, "status without F"
        return self._end_command(answer, answer.bhs[3])

    def _on_scsi_response(self, answer: Answer) -> str:
        assert answer.bhs[1] & 0x80
        assert answer.bhs[2] == 0, "an iSCSI service response other than completed"
        status = answer.bhs[3]
        if status != 0x02:
            assert not answer.data
            return self._end_command(answer, status)
        return f"{self._end_command(answer, status)} {self._sense(answer.data)}"

    def _end_command(self, answer: Answer, status: int) -> str:
        tag = self._answers(answer)
        assert answer.bhs[1] & 0x06 != 0x06, "overflow and underflow at once"
        assert answer.bhs[1] & 0x18 != 0x18, "overflow and underflow at once"
        assert status in documented.STATUSES, f"status {status:#x}"
        self.r2ts = [r2t for r2t in self.r2ts if r2t.word(16) != tag]
        return documented.STATUSES[status]

    def _sense(self, data: bytes) -> str:
        assert len(data) >= 2 + 8
        assert int.from_bytes(data[:2], "big") == len(data) - 2, "SenseLength is wrong"
        sense = data[2:]
        if sense[0] & 0x7F == 0x70:
            assert len(sense) == 8 + sense[7]
            condition = (sense[2] & 0x0F, sense[12], sense[13])
        else:
            assert sense[0] == 0x72, f"sense of format {sense[0]:#x}"
            assert len(sense) == 8 + sense[7]
            condition = (sense[1] & 0x0F, sense[2], sense[3])
        shown = f"{condition[0]:x}/{condition[1]:02x}/{condition[2]:02x}"
        assert condition in documented.SENSE, f"sense {shown} is in no table"
        return f"{shown} {documented.SENSE[condition]}"

    # --- what is kept -------------------------------------------------------------------------------------------------

    def rest(self, busy: bool) -> None:
        """Nothing more comes: what the connection keeps is bounded, and a closed one keeps nothing.

        busy: the device still holds commands.
        """
        connection, limits = self._connection, self._limits
        assert not connection.outgoing, "output was forgotten"
        assert connection.framer.unfinished_bytes <= _PDU_BYTES_MAX
        assert len(connection.tasks) <= limits.command_window + _IMMEDIATE_TASKS_MAX
        assert len(connection.held) <= limits.command_window
        assert connection.held_bytes <= limits.buffered_bytes_max
        if connection.stage is Stage.CLOSED:
            self._rest_closed(busy)
        elif not busy and connection.stage in _BOTH:
            numbered = sum(not task.immediate for task in connection.tasks.values())
            window = connection.max_cmd_sn - connection.exp_cmd_sn + 1 & _MASK
            assert window == limits.command_window - numbered, (
                f"the window is {window}, with {numbered} of {limits.command_window} commands open"
            )

    def _rest_closed(self, busy: bool) -> None:
        reason = self._connection.close_reason
        named = documented.close_reason(reason)
        assert named is not None, f"closed because of {reason!r}, which is in no table"
        assert busy or not self._connection.tasks, "tasks outlive their connection"
        if self._unclosed:
            self._unclosed = False
            self.outcomes[f"closed: {named}"] += 1


_JUDGES = {
    opcodes.REJECT: Judge._on_reject,
    opcodes.LOGIN_RESPONSE: Judge._on_login_response,
    opcodes.NOP_IN: Judge._on_nop_in,
    opcodes.TEXT_RESPONSE: Judge._on_text_response,
    opcodes.LOGOUT_RESPONSE: Judge._on_logout_response,
    opcodes.TASK_MANAGEMENT_RESPONSE: Judge._on_task_management_response,
    opcodes.ASYNC_MESSAGE: Judge._on_async,
    opcodes.R2T: Judge._on_r2t,
    opcodes.DATA_IN: Judge._on_data_in,
    opcodes.SCSI_RESPONSE: Judge._on_scsi_response,
}
