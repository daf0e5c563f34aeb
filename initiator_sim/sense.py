"""Sense data (SPC-4 4.5), and what an initiator does about it."""

from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from initiator_sim import task as scsi
from initiator_sim.task import Task

NOT_READY: Final = 0x02
MEDIUM_ERROR: Final = 0x03
ILLEGAL_REQUEST: Final = 0x05
UNIT_ATTENTION: Final = 0x06
DATA_PROTECT: Final = 0x07
ABORTED_COMMAND: Final = 0x0B
MISCOMPARE: Final = 0x0E

KEY_NAMES: Final = {
    0x00: "NO SENSE",
    0x01: "RECOVERED ERROR",
    0x02: "NOT READY",
    0x03: "MEDIUM ERROR",
    0x04: "HARDWARE ERROR",
    0x05: "ILLEGAL REQUEST",
    0x06: "UNIT ATTENTION",
    0x07: "DATA PROTECT",
    0x0B: "ABORTED COMMAND",
    0x0E: "MISCOMPARE",
}


@dataclass(frozen=True, slots=True)
class Sense:
    """Sense key, additional sense code and its qualifier."""

    key: int
    asc: int
    ascq: int

    @classmethod
    def parse(cls, data: bytes) -> "Sense | None":
        """Fixed (70h, 71h) or descriptor format (72h, 73h); None for anything else, and for too few bytes."""
        if len(data) >= 14 and data[0] & 0x7F in (0x70, 0x71):
            return cls(data[2] & 0x0F, data[12], data[13])
        if len(data) >= 4 and data[0] & 0x7F in (0x72, 0x73):
            return cls(data[1] & 0x0F, data[2], data[3])
        return None

    def __str__(self) -> str:
        return f"{KEY_NAMES.get(self.key, f'key {self.key:x}h')} {self.asc:02x}h/{self.ascq:02x}h"


class Verdict(Enum):
    """What becomes of a command that has ended."""

    DONE = auto()
    RETRY = auto()
    RETRY_LATER = auto()
    FAIL = auto()


def judge(task: Task) -> Verdict:
    """As a Linux host does: unit attentions and aborts are tried again at once, BUSY and a unit that is becoming ready
    after a pause; anything else is an I/O error."""
    if task.status in (scsi.GOOD, scsi.CONDITION_MET):
        return Verdict.DONE
    if task.status in (scsi.BUSY, scsi.TASK_SET_FULL):
        return Verdict.RETRY_LATER
    if task.status == scsi.TASK_ABORTED:
        return Verdict.RETRY
    if task.status == scsi.CHECK_CONDITION:
        sense = Sense.parse(task.sense)
        if sense is not None and sense.key in (UNIT_ATTENTION, ABORTED_COMMAND):
            return Verdict.RETRY
        if sense is not None and sense.key == NOT_READY and sense.asc == 0x04 and sense.ascq in (0x01, 0x0A):
            return Verdict.RETRY_LATER
    return Verdict.FAIL


def describe(task: Task) -> str:
    """How a command ended, in one line."""
    if task.failure is not None:
        return task.failure.value
    name = scsi.STATUS_NAMES.get(task.status, f"status {task.status:02x}h")
    sense = Sense.parse(task.sense)
    return f"{name}: {sense}" if sense else name


def says_other_luns(data: bytes) -> bool:
    """REPORTED LUNS DATA HAS CHANGED, in an asynchronous message's data (RFC 7143 11.9.4: a length, then sense)."""
    sense = Sense.parse(data[2 : 2 + int.from_bytes(data[:2], "big")])
    return sense is not None and (sense.asc, sense.ascq) == (0x3F, 0x0E)
