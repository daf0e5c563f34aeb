"""The sequence numbers of a session and the way out of its connection (RFC 7143 4.2.2). Pure.

Invariants kept here: StatSN grows by one with every PDU that carries status; ExpCmdSN by one with every non-immediate
command taken in order; MaxCmdSN never shrinks, and grows by one whenever a non-immediate command has ended, so at most
`command_window` of them are open at a time. While the window is being closed it does not grow.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from san_target.session.negotiation import LOGIN_SEGMENT_BYTES_MAX
from san_target.session.parameters import Parameters, TargetLimits
from san_target.wire import pdus
from san_target.wire.digest import digest
from san_target.wire.framer import Framer, Pdu
from san_target.wire.hot import HEADER
from san_target.wire.opcodes import ASYNC_MESSAGE, IMMEDIATE, REJECT

if TYPE_CHECKING:
    from san_target.session.host import Host

_PADDING: Final = (b"", b"\0\0\0", b"\0\0", b"\0")
_MASK: Final = 0xFFFFFFFF
_HALF: Final = 1 << 31


class Sequencer:
    """Numbers, framing and output of one connection, which is also the only one of its session."""

    def __init__(self, host: "Host", limits: TargetLimits) -> None:
        self.host = host
        self.limits = limits
        self.parameters = Parameters(max_recv_data_segment_length=limits.max_recv_data_segment_length)
        # RFC 7143 6.3: until login has ended, both sides' default holds.
        self.framer = Framer(LOGIN_SEGMENT_BYTES_MAX, host.large_buffers)
        self.outgoing: list[bytes | memoryview] = []
        self.answers = 0  # answers in `outgoing`
        self.stat_sn = 1
        self.exp_cmd_sn = 1
        self.max_cmd_sn = limits.command_window
        self.window_closes = False
        self._withheld = 0  # commands that ended meanwhile
        self.header_digest = False
        self.data_digest = False
        self.trace: Callable[[str, bytes], None] | None = None
        self.held: dict[int, Pdu | None] = {}  # CmdSN -> the command; None: it is over before it came
        self.held_bytes = 0

    def start_sequences(self, cmd_sn: int, exp_stat_sn: int) -> None:
        """The first Login Request sets where CmdSN and StatSN begin (RFC 7143 11.12.7, 11.12.8)."""
        self.exp_cmd_sn = cmd_sn
        self.max_cmd_sn = cmd_sn + self.limits.command_window - 1 & _MASK
        self.stat_sn = exp_stat_sn

    def take_stat_sn(self) -> int:
        stat_sn = self.stat_sn
        self.stat_sn = stat_sn + 1 & _MASK
        return stat_sn

    def command_ended(self) -> None:
        """A non-immediate command has ended: the initiator may send one more."""
        if self.window_closes:
            self._withheld += 1
        else:
            self.max_cmd_sn = self.max_cmd_sn + 1 & _MASK

    def reopen_window(self) -> None:
        """What was withheld is given after all."""
        self.window_closes = False
        self.max_cmd_sn = self.max_cmd_sn + self._withheld & _MASK
        self._withheld = 0

    def send(self, bhs: bytes, data: bytes | memoryview = b"") -> None:
        """Queue one PDU without AHS, with padding and digests as negotiated; `data` must stay unchanged until sent."""
        if self.trace is not None:
            self.trace("out", bhs)
        outgoing = self.outgoing
        outgoing.append(bhs)
        if self.header_digest:
            outgoing.append(digest(bhs))
        length = bhs[5] << 16 | bhs[6] << 8 | bhs[7]
        if length:
            outgoing.append(data)
            padding = _PADDING[length & 3]
            if padding:
                outgoing.append(padding)
            if self.data_digest:
                outgoing.append(digest(data, padding))
        self.answers += 1

    def send_status(self, opcode: int, data: bytes | memoryview = b"", **fields: object) -> None:
        """Queue a rare PDU that carries status: it takes the next StatSN."""
        bhs = pdus.build(
            opcode,
            data_segment_length=len(data),
            stat_sn=self.take_stat_sn(),
            exp_cmd_sn=self.exp_cmd_sn,
            max_cmd_sn=self.max_cmd_sn,
            **fields,
        )
        self.send(bhs, data)

    def send_async(self, event: int, parameter1: int = 0, parameter2: int = 0, parameter3: int = 0) -> None:
        """Send an Asynchronous Message (RFC 7143 11.9)."""
        self.send_status(
            ASYNC_MESSAGE, async_event=event, parameter1=parameter1, parameter2=parameter2, parameter3=parameter3
        )
        self.host.wake()

    def reject(self, reason: int, bhs: bytes) -> None:
        """Reject a PDU, giving its header back (RFC 7143 11.17)."""
        self.host.counters.rejects += 1
        self.send_status(REJECT, bhs, reason=reason)

    def admit(self, pdu: Pdu) -> bool:
        """Judge a command PDU by its CmdSN: True = execute it now (RFC 7143 4.2.2.1).

        Non-immediate commands are executed in CmdSN order: one ahead of its turn is held until its turn comes, one
        outside [ExpCmdSN, MaxCmdSN] is silently ignored.
        """
        header = HEADER.unpack(pdu.bhs)
        if header[0] & IMMEDIATE:
            return True
        cmd_sn = header[7]
        ahead = cmd_sn - self.exp_cmd_sn & _MASK
        window = self.max_cmd_sn - self.exp_cmd_sn + 1 & _MASK
        if ahead >= window:
            return False
        if ahead == 0:
            self.exp_cmd_sn = cmd_sn + 1 & _MASK
            return True
        if cmd_sn not in self.held:
            if self.held_bytes + len(pdu.data) > self.limits.buffered_bytes_max:
                return False
            pdu.keep()
            self.held[cmd_sn] = pdu
            self.held_bytes += len(pdu.data)
        return False

    def next_held(self) -> Pdu | None:
        """The held command whose turn has come, already admitted."""
        while self.held and self.exp_cmd_sn in self.held:
            pdu = self.held.pop(self.exp_cmd_sn)
            self.exp_cmd_sn = self.exp_cmd_sn + 1 & _MASK
            if pdu is not None:
                self.held_bytes -= len(pdu.data)
                return pdu
            self.command_ended()
        return None

    def is_to_come(self, cmd_sn: int, before: int, itt: int) -> bool:
        """Is this the CmdSN of a command that has not had its turn, within the window and below `before`?

        True too where that command is here, held, if it has this task tag.
        """
        ahead, window = cmd_sn - self.exp_cmd_sn & _MASK, self.max_cmd_sn - self.exp_cmd_sn + 1 & _MASK
        if ahead >= window or not 0 < before - cmd_sn & _MASK < _HALF:
            return False
        held = self.held.get(cmd_sn)
        return held is None or HEADER.unpack(held.bhs)[5] == itt

    def take_as_received(self, cmd_sn: int) -> None:
        """A command of which `is_to_come` is true is over: its CmdSN is used up, and it is ignored if it comes."""
        held = self.held.get(cmd_sn)
        if held is not None:
            self.held_bytes -= len(held.data)
        if cmd_sn != self.exp_cmd_sn:
            self.held[cmd_sn] = None
        else:
            self.exp_cmd_sn = cmd_sn + 1 & _MASK
            self.command_ended()
