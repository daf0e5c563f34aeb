"""A logged-in session whose every PDU can be made by hand, and which notices what the target's numbers do.

What a check leaves out is as a well-behaved initiator has it: tags, CmdSN, ExpStatSN, data for R2Ts, answers to pings.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from initiator_sim import cdb as cdbs
from initiator_sim.conformance.check import Failed
from initiator_sim.conformance.wire import Gone, Silence, Wire, named
from initiator_sim.login import LoggedIn
from initiator_sim.packets import (
    ISCSI_DataOut,
    ISCSI_LogoutRequest,
    ISCSI_NopOut,
    ISCSI_ScsiCommand,
    ISCSI_TaskManagementRequest,
    ISCSI_TextRequest,
)
from initiator_sim.parameters import Pair
from initiator_sim.sense import UNIT_ATTENTION, Sense
from initiator_sim.task import CHECK_CONDITION, GOOD, SIMPLE, STATUS_NAMES
from san_target.wire import opcodes
from san_target.wire.text import encode_pairs

MASK: Final = 0xFFFFFFFF
NO_TAG: Final = opcodes.RESERVED_TAG
QUIET_S: Final = 0.1
"""How long to listen for what must not come, after an answer that came behind it."""
LOG_PDUS: Final = 4096
_HALF: Final = 1 << 31
_ATTENTIONS_MAX: Final = 8


def is_before(one: int, other: int) -> bool:
    """one < other in serial number arithmetic (RFC 1982, with 32 bits)."""
    return bool(one - other & _HALF)


@dataclass(slots=True)
class Outcome:
    """How a command ended. residual: bytes, with its flags; pdus: all that the target sent for it, in order."""

    status: int
    sense: Sense | None
    data: bytes = b""
    overflow: bool = False
    underflow: bool = False
    residual: int = 0
    pdus: list[Any] = field(default_factory=list)
    rejected: int | None = None

    @property
    def good(self) -> bool:
        return self.status == GOOD and self.rejected is None

    def __str__(self) -> str:
        if self.rejected is not None:
            return f"Reject with reason 0x{self.rejected:02x}"
        name = STATUS_NAMES.get(self.status, f"status {self.status:02x}h")
        return f"{name}: {self.sense}" if self.sense else name


@dataclass(slots=True)
class Command:
    """A command that was sent. data: what its R2Ts may fetch; None where they are to be left unanswered."""

    itt: int
    cmd_sn: int
    data: bytes | None = None


class RawSession:
    """One session on one connection.

    cmd_sn       the next one
    exp_cmd_sn, max_cmd_sn   the window as the last PDU said it, wrong or not
    number_faults, window_faults   what the target did wrong with StatSN, and with ExpCmdSN and MaxCmdSN
    log          everything received
    tag          the target portal group tag that the login was told, None without
    """

    def __init__(self, wire: Wire, login: LoggedIn, isid: bytes, name: str, lun: int) -> None:
        self.wire = wire
        self.isid = isid
        self.name = name
        self.lun = lun
        self.parameters = login.parameters
        self.tsih = login.tsih
        self.cmd_sn = login.cmd_sn
        self.exp_stat_sn = login.exp_stat_sn
        self.exp_cmd_sn = login.exp_cmd_sn
        self.max_cmd_sn = login.max_cmd_sn
        self.number_faults: list[str] = []
        self.window_faults: list[str] = []
        self.log: deque[Any] = deque(maxlen=LOG_PDUS)
        self.inbox: deque[Any] = deque(maxlen=LOG_PDUS)
        self._next_tag = 1
        tag = login.parameters.others.get("TargetPortalGroupTag", "")
        self.tag = int(tag) if tag.isdigit() else None
        wire.header_digest = login.parameters.header_digest
        wire.data_digest = login.parameters.data_digest

    @property
    def address(self) -> str:
        return self.wire.address

    # --- sending ------------------------------------------------------------------------------------------------------

    def make(self, layer: Any, **fields: Any) -> Any:
        """A packet with what is not given filled in; a non-immediate request takes a CmdSN unless it is given one."""
        pdu = layer(**fields)
        names = {each.name for each in pdu.fields_desc}
        if "initiator_task_tag" not in fields:
            pdu.initiator_task_tag = self.new_tag()
        if "exp_stat_sn" in names and "exp_stat_sn" not in fields:
            pdu.exp_stat_sn = self.exp_stat_sn
        if "cmd_sn" in names and "cmd_sn" not in fields:
            pdu.cmd_sn = self.cmd_sn
            if not pdu.immediate:
                self.cmd_sn = self.cmd_sn + 1 & MASK
        return pdu

    def new_tag(self) -> int:
        self._next_tag += 1
        return self._next_tag

    async def send(self, *pdus: Any) -> None:
        await self.wire.send(*pdus)

    # --- receiving ----------------------------------------------------------------------------------------------------

    async def receive(self, within_s: float | None = None) -> Any:
        """The next PDU off the wire. Pings are answered on the way. Raises Gone, Silence."""
        pdu = await self.wire.receive(within_s)
        self.log.append(pdu)
        self._follow(pdu)
        if pdu.opcode == opcodes.NOP_IN and pdu.target_transfer_tag != NO_TAG:
            answer = {"initiator_task_tag": NO_TAG, "target_transfer_tag": pdu.target_transfer_tag, "lun": pdu.lun}
            await self.send(self.make(ISCSI_NopOut, immediate=1, **answer))
        return pdu

    def _follow(self, pdu: Any) -> None:
        if pdu.opcode == opcodes.R2T or (pdu.opcode == opcodes.NOP_IN and pdu.initiator_task_tag == NO_TAG):
            # RFC 7143 11.8.3, 11.19.2: such a PDU has the next StatSN and does not take it.
            if pdu.stat_sn != self.exp_stat_sn:
                self.number_faults.append(f"{named(pdu)} with StatSN {pdu.stat_sn}, the next is {self.exp_stat_sn}")
        elif pdu.opcode != opcodes.DATA_IN or pdu.status_present:
            if pdu.stat_sn != self.exp_stat_sn:
                self.number_faults.append(f"{named(pdu)} with StatSN {pdu.stat_sn}, expected {self.exp_stat_sn}")
            self.exp_stat_sn = pdu.stat_sn + 1 & MASK
        if is_before(pdu.max_cmd_sn, pdu.exp_cmd_sn - 1 & MASK):
            self.window_faults.append(f"MaxCmdSN {pdu.max_cmd_sn} below ExpCmdSN {pdu.exp_cmd_sn} - 1")
        for name in ("exp_cmd_sn", "max_cmd_sn"):
            before, now = getattr(self, name), getattr(pdu, name)
            if is_before(now, before):
                self.window_faults.append(f"{named(pdu)}: {name} went back from {before} to {now}")
            setattr(self, name, now)

    async def next_for(self, itt: int, within_s: float | None = None) -> Any:
        """The next PDU with this tag; others stay in `inbox`. A Reject of that request counts. Raises Gone, Silence."""
        for pdu in self.inbox:
            if _is_for(pdu, itt):
                self.inbox.remove(pdu)
                return pdu
        for _ in range(LOG_PDUS):
            pdu = await self.receive(within_s)
            if _is_for(pdu, itt):
                return pdu
            self.inbox.append(pdu)
        raise Silence(f"{LOG_PDUS} PDUs, none for tag {itt}")

    async def ask(self, pdu: Any, within_s: float | None = None) -> Any:
        """Send a request and return what answers it."""
        await self.send(pdu)
        return await self.next_for(pdu.initiator_task_tag, within_s)

    async def settle(self, quiet_s: float = QUIET_S) -> None:
        """Return when the target has had its chance to answer all that was sent: after a ping, and a little quiet."""
        await self.ping()
        await self.receive_all(quiet_s)

    async def receive_all(self, quiet_s: float = QUIET_S) -> None:
        """Take what comes until nothing comes for a little while."""
        try:
            while True:
                self.inbox.append(await self.receive(quiet_s))
        except Silence:
            pass

    def heard(self, itt: int) -> list[Any]:
        """What `settle` and others have found for a tag so far, and nobody has taken yet."""
        return [pdu for pdu in self.inbox if _is_for(pdu, itt)]

    async def ended(self) -> bool:
        """Has the target closed the connection, or does it now?"""
        return await self.wire.ends()

    # --- requests -----------------------------------------------------------------------------------------------------

    async def ping(self, data: bytes = b"", immediate: bool = True) -> Any:
        """NOP-Out, and what answers it."""
        return await self.ask(self.make(ISCSI_NopOut, immediate=int(immediate), data=data))

    async def text(self, pairs: Sequence[Pair] = (), **fields: Any) -> Any:
        """One Text Request, final unless `fields` say otherwise, and what answers it."""
        values: dict[str, Any] = {"final": 1, "data": encode_pairs(pairs)} | fields
        return await self.ask(self.make(ISCSI_TextRequest, **values))

    async def task_management(self, function: int, **fields: Any) -> Any:
        """An immediate task management request, and what answers it."""
        values: dict[str, Any] = {"immediate": 1, "lun": self.lun} | fields
        return await self.ask(self.make(ISCSI_TaskManagementRequest, function=function, **values))

    async def logout(self, reason: int = 0, cid: int = 0) -> Any:
        return await self.ask(self.make(ISCSI_LogoutRequest, immediate=1, reason=reason, cid=cid))

    async def begin(
        self,
        cdb: bytes,
        *,
        data: bytes = b"",
        read_bytes: int = 0,
        immediate: bytes | None = None,
        withhold: bool = False,
        **fields: Any,
    ) -> Command:
        """Send a command with as much immediate data as was agreed, or what is given.

        withhold: no data goes out, R2Ts are left unanswered.
        """
        parameters = self.parameters
        if immediate is None:
            limit = min(parameters.first_burst_length, parameters.max_send_data_segment_length)
            immediate = data[:limit] if parameters.immediate_data and not withhold else b""
        values: dict[str, Any] = {
            "final": 1,
            "read": int(bool(read_bytes)),
            "write": int(bool(data)),
            "attribute": SIMPLE,
            "lun": self.lun,
            "expected_data_transfer_length": len(data) or read_bytes,
            "cdb": cdb.ljust(16, b"\0"),
            "data": immediate,
        }
        pdu = self.make(ISCSI_ScsiCommand, **(values | fields))
        await self.send(pdu)
        return Command(pdu.initiator_task_tag, pdu.cmd_sn, None if withhold else data)

    async def end(self, command: Command, within_s: float | None = None) -> Outcome:
        """What becomes of a command; its data is sent as the target asks for it. Raises Gone, Silence."""
        pdus: list[Any] = []
        received = bytearray()
        while True:
            pdu = await self.next_for(command.itt, within_s)
            pdus.append(pdu)
            if pdu.opcode == opcodes.R2T:
                await self._answer(command, pdu)
            elif pdu.opcode == opcodes.DATA_IN:
                received += pdu.data
                if pdu.status_present:
                    return _outcome(pdu, bytes(received), b"", pdus)
            elif pdu.opcode == opcodes.SCSI_RESPONSE:
                if pdu.response:
                    raise Failed(f"a SCSI Response with response code 0x{pdu.response:02x}", "response 0 (11.4.3)")
                return _outcome(pdu, bytes(received), pdu.data[2 : 2 + int.from_bytes(pdu.data[:2], "big")], pdus)
            elif pdu.opcode == opcodes.REJECT:
                return Outcome(GOOD, None, pdus=pdus, rejected=pdu.reason)
            else:
                raise Failed(f"{named(pdu)} for a SCSI command")

    async def _answer(self, command: Command, r2t: Any) -> None:
        """All data of an R2T (RFC 7143 11.8), in PDUs of a legal size."""
        if command.data is None:
            return
        await self.send(*self.data_out(command.itt, r2t, command.data))

    def data_out(self, itt: int, r2t: Any, data: bytes, **fields: Any) -> list[Any]:
        """The Data-Out PDUs that an R2T asks for, out of the whole command's data."""
        step = self.parameters.max_send_data_segment_length
        first, end = r2t.buffer_offset, r2t.buffer_offset + r2t.desired_data_transfer_length
        return [
            self.make(
                ISCSI_DataOut,
                **(
                    {
                        "initiator_task_tag": itt,
                        "lun": r2t.lun,
                        "target_transfer_tag": r2t.target_transfer_tag,
                        "data_sn": number,
                        "buffer_offset": offset,
                        "final": int(offset + step >= end),
                        "data": data[offset : min(offset + step, end)],
                    }
                    | fields
                ),
            )
            for number, offset in enumerate(range(first, end, step))
        ]

    async def command(self, cdb: bytes, *, within_s: float | None = None, **options: Any) -> Outcome:
        """`begin` and `end`."""
        return await self.end(await self.begin(cdb, **options), within_s)

    async def good(self, cdb: bytes, **options: Any) -> bytes:
        """The data of a command that must succeed. Raises Failed."""
        outcome = await self.command(cdb, **options)
        if not outcome.good:
            raise Failed(f"command {cdb[0]:02x}h ended with {outcome}", "GOOD")
        return outcome.data

    async def ready(self) -> list[Sense]:
        """Take the unit attentions that stand before every command; returns them. Raises Failed without an end."""
        found: list[Sense] = []
        for _ in range(_ATTENTIONS_MAX):
            outcome = await self.command(cdbs.TEST_UNIT_READY)
            if outcome.good:
                return found
            if outcome.status != CHECK_CONDITION or outcome.sense is None or outcome.sense.key != UNIT_ATTENTION:
                raise Failed(f"TEST UNIT READY ended with {outcome}", "GOOD")
            found.append(outcome.sense)
        raise Failed(f"{_ATTENTIONS_MAX} unit attentions, the last {found[-1]}", "an end of unit attentions")


def _is_for(pdu: Any, itt: int) -> bool:
    if pdu.opcode == opcodes.REJECT:
        return len(pdu.data) >= 20 and int.from_bytes(pdu.data[16:20], "big") == itt  # RFC 7143 11.17.4
    return bool(pdu.initiator_task_tag == itt)


def _outcome(pdu: Any, data: bytes, sense: bytes, pdus: list[Any]) -> Outcome:
    return Outcome(
        pdu.status,
        Sense.parse(sense),
        data,
        bool(pdu.residual_overflow),
        bool(pdu.residual_underflow),
        pdu.residual_count,
        pdus,
    )


__all__ = ["MASK", "NO_TAG", "QUIET_S", "Command", "Gone", "Outcome", "RawSession", "Silence", "is_before"]
