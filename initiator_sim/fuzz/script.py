"""What a case consists of: how its connection begins, the steps on it, how it ends; and the bytes that come of it.

A script is data, made from seed and number alone. Three things are filled in when it runs, because only the target
knows them: ExpStatSN, the transfer tags of its R2Ts, and whether it agreed to digests.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from initiator_sim.packets import ISCSI, digests
from initiator_sim.parameters import Pair
from san_target.wire import opcodes

FIRST_TAG: Final = 0x1000
PROBE_TAG: Final = 0x0000FFFE
_MASK: Final = 0xFFFFFFFF
_WORD_BYTES: Final = 4
_SHOWN_BYTES: Final = 64
_BEHIND_THE_HEADER: Final = ("\\ahs       \\", "data", "padding")


class Stage(Enum):
    """How far a connection has come before the first step."""

    CONNECTED = "connected"
    DISCOVERY = "discovery session"
    SESSION = "session"
    """With a target; a discovery session where none was named."""


@dataclass(frozen=True, slots=True)
class Begin:
    """How a connection begins. cmd_sn: of the login, and so of the first command. keys: offered besides the usual."""

    stage: Stage
    header_digest: bool = False
    data_digest: bool = False
    keys: tuple[Pair, ...] = ()
    cmd_sn: int = 1


@dataclass(frozen=True, slots=True)
class Send:
    """One PDU. Task tag, CmdSN and ExpStatSN that it does not have are as a well-behaved initiator has them.

    cmd_sn_away   distance from the next CmdSN; 0 takes it
    spoil_header, spoil_data   XORed onto the right digest, where digests were agreed on
    part          only these bytes of it are sent: (first, behind the last)
    """

    pdu: ISCSI
    cmd_sn_away: int = 0
    spoil_header: int = 0
    spoil_data: int = 0
    part: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Raw:
    """Bytes that need not be PDUs, in pieces of piece_bytes (0 = at once), pause_s after each."""

    data: bytes
    piece_bytes: int = 0
    pause_s: float = 0.0

    def pieces(self) -> Iterator[bytes]:
        size = self.piece_bytes or max(1, len(self.data))
        for start in range(0, len(self.data), size):
            yield self.data[start : start + size]


@dataclass(frozen=True, slots=True)
class AnswerR2T:
    """Data-Out for the open R2T number `which`, if there is any; each field so far from where it should be."""

    which: int = 0
    pieces: int = 1
    final: bool = True
    tag_away: int = 0
    transfer_tag_away: int = 0
    data_sn_away: int = 0
    offset_away: int = 0
    length_away: int = 0


@dataclass(frozen=True, slots=True)
class Await:
    """Until the target says something more or closes, but no longer than this."""

    seconds: float = 0.1


@dataclass(frozen=True, slots=True)
class StopListening:
    """From here on nothing that the target sends is taken."""


Step = Send | Raw | AnswerR2T | Await | StopListening


class Ending(Enum):
    """What follows the last step."""

    PROBE = "a ping, then the initiator closes its end"
    CLOSE = "the initiator closes its end"
    RESET = "a reset"
    LINGER = "left open"


@dataclass(frozen=True, slots=True)
class Script:
    """connections: how many do the same, all at once."""

    begin: Begin
    steps: tuple[Step, ...]
    ending: Ending = Ending.PROBE
    connections: int = 1


@dataclass(frozen=True, slots=True)
class Case:
    """A script with its number in the campaign and the name of its kind."""

    number: int
    kind: str
    script: Script


class Encoder:
    """Makes the bytes of one connection, with what a well-behaved initiator would fill in.

    segment_bytes_max: the target's MaxRecvDataSegmentLength.
    """

    def __init__(self, cmd_sn: int = 1, header_digest: bool = False, data_digest: bool = False) -> None:
        self.next_cmd_sn = cmd_sn
        self.exp_stat_sn = 0
        self.header_digest = header_digest
        self.data_digest = data_digest
        self.segment_bytes_max = 8192
        self._next_tag = FIRST_TAG

    def encode(self, step: Send) -> bytes:
        pdu = step.pdu.copy()
        names = {field.name for field in pdu.fields_desc}
        if "initiator_task_tag" in names and "initiator_task_tag" not in pdu.fields:
            pdu.initiator_task_tag = self._next_tag
            self._next_tag += 1
        if "exp_stat_sn" in names and "exp_stat_sn" not in pdu.fields:
            pdu.exp_stat_sn = self.exp_stat_sn
        if "cmd_sn" in names and "cmd_sn" not in pdu.fields:
            pdu.cmd_sn = self.next_cmd_sn + step.cmd_sn_away & _MASK
            if step.cmd_sn_away == 0 and not pdu.immediate:
                self.next_cmd_sn = self.next_cmd_sn + 1 & _MASK
        return self._build(pdu, step)

    def _build(self, pdu: ISCSI, step: Send) -> bytes:
        with digests(self.header_digest, self.data_digest):
            frame = bytes(pdu)
            if self.header_digest and step.spoil_header:
                at = opcodes.BHS_BYTES + len(pdu.getfield_bytes("ahs"))
                frame = _spoiled(frame, at, step.spoil_header)
            if self.data_digest and step.spoil_data and pdu.data:
                frame = _spoiled(frame, len(frame) - 4, step.spoil_data)
        return frame if step.part is None else frame[slice(*step.part)]

    def probe(self) -> bytes:
        """A ping that takes no CmdSN and changes nothing."""
        layer = ISCSI.by_opcode[opcodes.NOP_OUT]
        pdu = layer(immediate=1, initiator_task_tag=PROBE_TAG, cmd_sn=self.next_cmd_sn, exp_stat_sn=self.exp_stat_sn)
        return self._build(pdu, Send(pdu))

    def data_out(self, step: AnswerR2T, r2t: bytes) -> Iterator[bytes]:
        """The Data-Outs that a step sends for the header of an R2T. They never carry anything but zeros."""
        asked = ISCSI(r2t)
        wanted = max(0, asked.desired_data_transfer_length + step.length_away)
        size = min(-(-wanted // step.pieces) or 1, self.segment_bytes_max)
        layer = ISCSI.by_opcode[opcodes.DATA_OUT]
        for number, start in enumerate(range(0, wanted or 1, size)):
            pdu = layer(
                final=step.final and start + size >= wanted,
                lun=asked.lun,
                initiator_task_tag=asked.initiator_task_tag + step.tag_away & _MASK,
                target_transfer_tag=asked.target_transfer_tag + step.transfer_tag_away & _MASK,
                exp_stat_sn=self.exp_stat_sn,
                data_sn=number + step.data_sn_away & _MASK,
                buffer_offset=asked.buffer_offset + start + step.offset_away & _MASK,
                data=bytes(min(size, wanted - start)),
            )
            yield self._build(pdu, Send(pdu))


def _spoiled(frame: bytes, at: int, mask: int) -> bytes:
    word = int.from_bytes(frame[at : at + _WORD_BYTES], "little") ^ mask
    return frame[:at] + word.to_bytes(_WORD_BYTES, "little") + frame[at + _WORD_BYTES :]


def image(script: Script) -> Iterator[bytes]:
    """What the steps send to a target that agrees to every digest, asks for no data, and whose StatSN begins at 0."""
    encoder = Encoder(script.begin.cmd_sn, script.begin.header_digest, script.begin.data_digest)
    for step in script.steps:
        if isinstance(step, Send):
            yield encoder.encode(step)
        elif isinstance(step, Raw):
            yield from step.pieces()


def describe(script: Script) -> Iterator[str]:
    """The steps as a person reads them: PDUs as scapy shows their header, with what is filled in as in `image`."""
    encoder = Encoder(script.begin.cmd_sn, script.begin.header_digest, script.begin.data_digest)
    for step in script.steps:
        if isinstance(step, Send):
            frame = encoder.encode(step)
            special = _changes(step, "pdu")
            behind = frame[opcodes.BHS_BYTES :]
            yield "\n".join(
                part
                for part in (
                    header_shown(frame) or _hex(frame),
                    f"  behind the header {_hex(behind)}" if behind else "",
                    f"  sent with {special}" if special else "",
                )
                if part
            )
        elif isinstance(step, Raw):
            yield _hex(step.data) + (f" ({paced})" if (paced := _changes(step, "data")) else "")
        else:
            yield f"{type(step).__name__} {_changes(step)}".rstrip()


def header_shown(frame: bytes) -> str:
    """The header of a PDU as scapy shows it; nothing where there is no whole header."""
    if len(frame) < opcodes.BHS_BYTES:
        return ""
    lines = str(ISCSI(frame[: opcodes.BHS_BYTES]).show(dump=True)).splitlines()
    return "\n".join(line for line in lines if line.split("=")[0].strip() not in _BEHIND_THE_HEADER)


def _hex(data: bytes) -> str:
    return f"{len(data)} bytes: {data[:_SHOWN_BYTES].hex(' ')}" + (" ..." if len(data) > _SHOWN_BYTES else "")


def _changes(step: Any, *left_out: str) -> str:
    """The attributes of a step that are not the usual ones."""
    fields = [each for each in step.__dataclass_fields__.values() if each.name not in left_out]
    shown = {each.name: getattr(step, each.name) for each in fields if getattr(step, each.name) != each.default}
    return ", ".join(f"{name}={value}" for name, value in shown.items())
