"""Data transfer of one command: collecting Data-Out (RFC 7143 4.2.5.2, 11.7, 11.8), cutting up Data-In. Pure.

Only DataPDUInOrder=Yes and DataSequenceInOrder=Yes are negotiated, so bytes arrive in order; anything else ends the
command with ABORTED COMMAND (RFC 7143 11.4.7.2), never with bytes in the wrong place.
"""

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from san_target.scsi.sense import Condition
from san_target.wire import hot

if TYPE_CHECKING:
    from san_target.session.parameters import Parameters
    from san_target.session.tasks import Task

# Sense of the iSCSI conditions (RFC 7143 11.4.7.2).
UNEXPECTED_UNSOLICITED_DATA = Condition(0xB, 0x0C, 0x0C)
INCORRECT_AMOUNT_OF_DATA = Condition(0xB, 0x0C, 0x0D)
OUT_OF_SEQUENCE = Condition(0xB, 0x4B, 0x05)


class ReadyToTransfer(NamedTuple):
    """One R2T to send: ask for `length` bytes from `offset`."""

    ttt: int
    r2t_sn: int
    offset: int
    length: int


class _Sequence:
    """A solicited sequence under way."""

    __slots__ = ("end", "next_data_sn", "ttt")

    def __init__(self, ttt: int, end: int) -> None:
        self.ttt = ttt
        self.end = end
        self.next_data_sn = 0


class DataOutTransfer:
    """Collects the Data-Out bytes of one command.

    expected   EDTL in bytes; wanted: how many of them the command can use (<= expected), the rest is dropped
    failure    the sense of the first mistake of the initiator, or None

    Memory is taken for what has arrived; for all that is wanted only once data was asked for (`solicit`).
    """

    __slots__ = (
        "_buffer",
        "_next_r2t_sn",
        "_offset",
        "_parameters",
        "_sequences",
        "_solicited",
        "_unsolicited_data_sn",
        "_unsolicited_open",
        "_whole",
        "expected",
        "failure",
        "wanted",
    )

    def __init__(self, expected: int, wanted: int, parameters: "Parameters") -> None:
        self.expected = expected
        self.wanted = min(wanted, expected)
        self.failure: Condition | None = None
        self._parameters = parameters
        self._buffer = bytearray()
        self._whole: memoryview | None = None
        self._offset = 0  # bytes received so far, all in order
        self._solicited = 0  # bytes up to here were received unsolicited or asked for
        self._unsolicited_open = False
        self._unsolicited_data_sn = 0
        self._sequences: deque[_Sequence] = deque()
        self._next_r2t_sn = 0

    def begin(self, immediate: memoryview, owned: bool, final: bool) -> None:
        """The SCSI Command PDU: its immediate data, and whether more unsolicited data follows (F = 0)."""
        limit = min(self._parameters.first_burst_length, self.expected)
        if len(immediate) > limit or (len(immediate) and not self._parameters.immediate_data):
            self.failure = UNEXPECTED_UNSOLICITED_DATA
        elif owned and len(immediate) == self.wanted:
            self._whole = immediate
            self._offset = len(immediate)
        else:
            self._store(immediate)
        if not final:
            if self._parameters.initial_r2t:
                self.failure = self.failure or UNEXPECTED_UNSOLICITED_DATA
            self._unsolicited_open = True
        self._solicited = self._offset

    def receive(self, ttt: int | None, data_sn: int, offset: int, data: memoryview, final: bool) -> None:
        """One Data-Out PDU; ttt None = unsolicited."""
        if ttt is None:
            self._receive_unsolicited(data_sn, offset, data, final)
        else:
            self._receive_solicited(ttt, data_sn, offset, data, final)

    def _receive_unsolicited(self, data_sn: int, offset: int, data: memoryview, final: bool) -> None:
        if not self._unsolicited_open:
            self.failure = self.failure or UNEXPECTED_UNSOLICITED_DATA
            return
        limit = min(self._parameters.first_burst_length, self.expected)
        if data_sn != self._unsolicited_data_sn or offset != self._offset:
            self.failure = self.failure or OUT_OF_SEQUENCE
        elif offset + len(data) > limit:
            self.failure = self.failure or UNEXPECTED_UNSOLICITED_DATA
        else:
            self._unsolicited_data_sn += 1
            self._store(data)
        self._solicited = self._offset
        if final:
            self._unsolicited_open = False

    def _receive_solicited(self, ttt: int, data_sn: int, offset: int, data: memoryview, final: bool) -> None:
        sequence = self._sequences[0] if self._sequences else None
        if sequence is None or sequence.ttt != ttt or data_sn != sequence.next_data_sn or offset != self._offset:
            self.failure = self.failure or OUT_OF_SEQUENCE
            return
        if offset + len(data) > sequence.end or final != (offset + len(data) == sequence.end):
            self.failure = self.failure or INCORRECT_AMOUNT_OF_DATA
            return
        sequence.next_data_sn += 1
        self._store(data)
        if final:
            self._sequences.popleft()

    def _store(self, data: memoryview) -> None:
        usable = min(len(data), self.wanted - self._offset)
        if usable > 0:
            buffer = self._buffer
            if self._sequences and len(buffer) < self.wanted:
                buffer += bytes(self.wanted - len(buffer))
            # Without sequences it is as long as what has arrived, and this appends.
            buffer[self._offset : self._offset + usable] = data[:usable]
        self._offset += len(data)

    @property
    def complete(self) -> bool:
        """No more Data-Out is needed or under way: the command can be executed, or ended with `failure`."""
        if self.failure is not None:
            return True
        return not self._unsolicited_open and self._offset >= self.wanted

    @property
    def may_solicit(self) -> bool:
        """Something is left to be asked for, now or after other sequences."""
        return not self._unsolicited_open and self.failure is None and self._solicited < self.wanted

    def solicit(self, next_ttt: Iterator[int]) -> list[ReadyToTransfer]:
        """The R2Ts that may be sent now (RFC 7143 13.13 MaxBurstLength, 13.17 MaxOutstandingR2T)."""
        requests: list[ReadyToTransfer] = []
        if not self.may_solicit:
            return requests
        while self._solicited < self.wanted and len(self._sequences) < self._parameters.max_outstanding_r2t:
            length = min(self._parameters.max_burst_length, self.wanted - self._solicited)
            ttt = next(next_ttt)
            requests.append(ReadyToTransfer(ttt, self._next_r2t_sn, self._solicited, length))
            self._sequences.append(_Sequence(ttt, self._solicited + length))
            self._next_r2t_sn += 1
            self._solicited += length
        return requests

    @property
    def r2t_count(self) -> int:
        return self._next_r2t_sn

    def data(self) -> memoryview:
        """The collected bytes: exactly `wanted` of them once `complete` without `failure`."""
        if self._whole is not None:
            return self._whole
        return memoryview(self._buffer)


class Grants:
    """Memory for the Data-Out that a connection asks for: at most so many bytes, but always what one task wants.

    Tasks that must wait for memory have their turn in the order in which they asked.
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._waiting: deque[Task] = deque()

    def ask(self, task: "Task") -> bool:
        """True: the task may ask for its data. False: `release` of another will name it."""
        if task.granted_bytes:
            return True
        if self._waiting:
            if task not in self._waiting:
                self._waiting.append(task)
            return False
        if self._grant(task):
            return True
        self._waiting.append(task)
        return False

    def _grant(self, task: "Task") -> bool:
        assert task.transfer is not None
        wanted = task.transfer.wanted
        if self._bytes and self._bytes + wanted > self._bytes_max:
            return False
        self._bytes += wanted
        task.granted_bytes = wanted
        return True

    def release(self, task: "Task") -> "list[Task]":
        """The task has ended. Those that may ask for their data from now on."""
        self._bytes -= task.granted_bytes
        task.granted_bytes = 0
        if not self._waiting:
            return []
        if task in self._waiting:
            self._waiting.remove(task)
        granted = []
        while self._waiting and self._grant(self._waiting[0]):
            granted.append(self._waiting.popleft())
        return [task for task in granted if not task.command.aborted]


class DataInSegment(NamedTuple):
    """One Data-In PDU: data[offset:offset+length]; `final` ends a sequence, `last` ends the data."""

    data_sn: int
    offset: int
    length: int
    final: bool
    last: bool


def segments(total: int, pdu_max: int, burst_max: int) -> Iterator[DataInSegment]:
    """Cut `total` bytes of Data-In into PDUs of at most `pdu_max` bytes and sequences of at most `burst_max`."""
    offset = 0
    data_sn = 0
    in_burst = 0
    while offset < total:
        length = min(pdu_max, total - offset, burst_max - in_burst)
        in_burst += length
        last = offset + length == total
        final = last or in_burst == burst_max
        if final:
            in_burst = 0
        yield DataInSegment(data_sn, offset, length, final, last)
        offset += length
        data_sn += 1


def residual_of(moved: int, expected: int) -> tuple[int, int]:
    """(flag, count) for bytes that SCSI would move against those the initiator expected (RFC 7143 11.4.5)."""
    if moved > expected:
        return hot.RESIDUAL_OVERFLOW, min(moved - expected, 0xFFFFFFFF)
    if moved < expected:
        return hot.RESIDUAL_UNDERFLOW, expected - moved
    return 0, 0
