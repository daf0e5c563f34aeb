"""Checks of data transfer: Data-In with its residuals, R2T, unsolicited data (RFC 7143 4.2.5.2, 11.4.5, 11.7, 11.8)."""

from typing import Any, Final

from initiator_sim import cdb as cdbs
from initiator_sim.conformance.bench import Bench, offer
from initiator_sim.conformance.check import Check, expect
from initiator_sim.conformance.raw_session import NO_TAG, Outcome, RawSession
from initiator_sim.conformance.wire import Gone, named
from initiator_sim.packets import ISCSI_DataOut
from san_target.wire import opcodes

SEGMENT: Final = 512  # the smallest MaxRecvDataSegmentLength there is
BURST: Final = 4096
IMMEDIATE: Final = 512
BRIEF_S: Final = 0.03
INQUIRY_BYTES: Final = 4096


def _residual(outcome: Outcome) -> str:
    flags = "".join(("O" if outcome.overflow else "", "U" if outcome.underflow else "")) or "neither O nor U"
    return f"{outcome}, {len(outcome.data)} bytes, {flags}, residual {outcome.residual}"


async def underflow(bench: Bench) -> None:
    session = await bench.ready()
    outcome = await session.command(cdbs.inquiry(length=255), read_bytes=INQUIRY_BYTES)
    missing = INQUIRY_BYTES - len(outcome.data)
    right = outcome.good and outcome.underflow and not outcome.overflow and outcome.residual == missing
    expect(right, _residual(outcome), f"GOOD, U, residual {missing}")


async def overflow(bench: Bench) -> None:
    session = await bench.ready()
    size = bench.block_bytes
    outcome = await session.command(cdbs.read16(0, 2), read_bytes=size)
    expect(len(outcome.data) <= size, f"{len(outcome.data)} bytes, more than the {size} expected", "no more than EDTL")
    right = outcome.overflow and not outcome.underflow and outcome.residual == size
    expect(right, _residual(outcome), f"O, residual {size}")


async def no_residual(bench: Bench) -> None:
    session = await bench.ready()
    outcome = await session.command(cdbs.read16(0, 2), read_bytes=2 * bench.block_bytes)
    right = outcome.good and not (outcome.overflow or outcome.underflow) and outcome.residual == 0
    expect(right, _residual(outcome), "GOOD without a residual")


async def data_in(bench: Bench) -> str:
    """Small segments and short bursts: every rule of a Data-In sequence at once."""
    session = await bench.ready(keys=offer(MaxRecvDataSegmentLength=str(SEGMENT), MaxBurstLength=str(BURST)))
    burst = session.parameters.max_burst_length
    blocks = -(-4 * BURST // bench.block_bytes)
    total = blocks * bench.block_bytes
    outcome = await session.command(cdbs.read16(0, blocks), read_bytes=total)
    expect(outcome.good, str(outcome), "GOOD")
    parts = [pdu for pdu in outcome.pdus if pdu.opcode == opcodes.DATA_IN]
    offset = in_burst = 0
    for number, pdu in enumerate(part for part in parts if part.data or not part.status_present):
        size = len(pdu.data)
        expect(pdu.data_sn == number, f"DataSN {pdu.data_sn}, the {number}th PDU", "DataSN counts from 0 (11.7.5)")
        expect(
            pdu.buffer_offset == offset, f"offset {pdu.buffer_offset} after {offset} bytes", "bytes in order (13.18)"
        )
        expect(size <= SEGMENT, f"{size} bytes in a PDU", f"MaxRecvDataSegmentLength {SEGMENT} kept (13.12)")
        offset, in_burst = offset + size, in_burst + size
        expect(in_burst <= burst, f"{in_burst} bytes without F", f"F after MaxBurstLength {burst} at last (11.7.1)")
        expect(pdu.final or not pdu.status_present, "status in a PDU without F", "status only with F (11.7.3)")
        in_burst = 0 if pdu.final else in_burst
    expect(offset == total and parts[-1].final, f"{offset} of {total} bytes", "all data, F in the last PDU")
    return f"{len(parts)} PDUs"


async def _r2t(session: RawSession, itt: int) -> Any:
    """The next R2T of a write whose data is missing."""
    pdu = await session.next_for(itt)
    expect(pdu.opcode == opcodes.R2T, f"{named(pdu)} while data is missing", "an R2T")
    return pdu


async def _r2t_rules(bench: Bench, outstanding: int) -> str:
    """A long write whose R2Ts are held to every rule; `outstanding` of them may be open at once."""
    keys = offer(ImmediateData="No", MaxBurstLength=str(BURST), MaxOutstandingR2T=str(outstanding))
    session = await bench.ready(keys=keys)
    limit = session.parameters.max_outstanding_r2t
    blocks = -(-6 * BURST // bench.block_bytes)
    data = bench.pattern(17, blocks)
    command = await session.begin(cdbs.write16(bench.scratch_lba, blocks), data=data)
    offset = number = most = 0
    waiting: list[Any] = []
    while offset < len(data) or waiting:
        if not waiting:
            waiting.append(await _r2t(session, command.itt))
            offset = _check_r2t(session, waiting[-1], number, offset)
            number += 1
        await session.settle(BRIEF_S)
        for _ in session.heard(command.itt):
            waiting.append(await _r2t(session, command.itt))
            offset = _check_r2t(session, waiting[-1], number, offset)
            number += 1
        most = max(most, len(waiting))
        expect(most <= limit, f"{most} R2Ts open", f"at most MaxOutstandingR2T {limit} (13.17)")
        await session.send(*session.data_out(command.itt, waiting.pop(0), data))
    expect(offset == len(data), f"{offset} bytes asked for", f"the {len(data)} bytes of the command")
    outcome = await session.end(command)
    expect(outcome.good, f"the write ended with {outcome}", "GOOD")
    expect(await bench.read(session, bench.scratch_lba, blocks) == data, "other data on the disk", "what was sent")
    expect(not session.number_faults, "; ".join(session.number_faults[:3]), "R2Ts take no StatSN (11.8.3)")
    return f"{number} R2Ts, up to {most} open"


def _check_r2t(session: RawSession, r2t: Any, number: int, offset: int) -> int:
    """Hold one R2T to its rules; returns where the next one begins."""
    burst, length = session.parameters.max_burst_length, r2t.desired_data_transfer_length
    expect(r2t.r2t_sn == number, f"R2TSN {r2t.r2t_sn} in R2T {number}", "R2TSN counts from 0 (11.8.2)")
    expect(r2t.buffer_offset == offset, f"an R2T from {r2t.buffer_offset}, after {offset}", "data in order (13.19)")
    expect(0 < length <= burst, f"{length} bytes asked for", f"at most MaxBurstLength {burst} (11.8.4)")
    expect(r2t.target_transfer_tag != NO_TAG, "the reserved target transfer tag", "a tag (11.8.5)")
    return offset + int(length)


async def r2t_one(bench: Bench) -> str:
    return await _r2t_rules(bench, 1)


async def r2t_several(bench: Bench) -> str:
    return await _r2t_rules(bench, 4)


async def after_unsolicited(bench: Bench) -> None:
    """Immediate and unsolicited data first; the R2T asks for the rest only."""
    session = await bench.ready(keys=offer(InitialR2T="No", FirstBurstLength="1024"))
    first = session.parameters.first_burst_length
    blocks = -(-2 * BURST // bench.block_bytes)
    data = bench.pattern(23, blocks)
    offset = min(IMMEDIATE, first) if session.parameters.immediate_data else 0
    unsolicited = not session.parameters.initial_r2t
    cdb = cdbs.write16(bench.scratch_lba, blocks)
    command = await session.begin(cdb, data=data, immediate=data[:offset], final=int(not unsolicited))
    if unsolicited:
        fields = {"initiator_task_tag": command.itt, "lun": session.lun, "final": 1, "buffer_offset": offset}
        await session.send(session.make(ISCSI_DataOut, data=data[offset:first], **fields))
        offset = first
    r2t = await _r2t(session, command.itt)
    expect(r2t.buffer_offset == offset, f"an R2T from {r2t.buffer_offset} after {offset} bytes", f"from {offset}")
    expect(r2t.r2t_sn == 0, f"R2TSN {r2t.r2t_sn}", "0 for the first")
    await session.send(*session.data_out(command.itt, r2t, data))
    outcome = await session.end(command)
    expect(outcome.good, f"the write ended with {outcome}", "GOOD")
    expect(await bench.read(session, bench.scratch_lba, blocks) == data, "other data on the disk", "what was sent")


async def immediate_not_agreed(bench: Bench) -> None:
    session = await bench.ready(keys=offer(ImmediateData="No"))
    before = await bench.read(session, bench.scratch_lba)
    data = bench.pattern(29)
    command = await session.begin(cdbs.write16(bench.scratch_lba, 1), data=data, immediate=data, withhold=True)
    pdu = await session.next_for(command.itt)
    refused = pdu.opcode == opcodes.REJECT or (pdu.opcode == opcodes.SCSI_RESPONSE and pdu.status != 0)
    expect(refused, "a write with immediate data was carried out", "an error: unexpected unsolicited data")
    found = await bench.read(await bench.ready(), bench.scratch_lba)
    expect(found == before, "the data was written", "nothing written")


async def unknown_transfer_tag(bench: Bench) -> None:
    session = await bench.ready(keys=offer(ImmediateData="No"))
    before = await bench.read(session, bench.scratch_lba)
    data = bench.pattern(37)
    command = await session.begin(cdbs.write16(bench.scratch_lba, 1), data=data, withhold=True)
    r2t = await _r2t(session, command.itt)
    wrong = r2t.target_transfer_tag ^ 0x00FFFF00
    await session.send(*session.data_out(command.itt, r2t, data, target_transfer_tag=wrong))
    try:
        await session.settle()
    except Gone:
        pass  # also a way to refuse it
    accepted = [pdu for pdu in session.heard(command.itt) if pdu.fields.get("status") == 0]
    expect(not accepted, "a write ended with GOOD on data for a tag that was never given", "an error, or nothing")
    found = await bench.read(await bench.ready(), bench.scratch_lba)
    expect(found == before, "data for a tag that was never given was written", "nothing written")


RFC: Final = "RFC 7143"
CHECKS: Final = (
    Check("data-in-underflow", f"{RFC} 11.4.5", "Less data than expected: U and how much", underflow),
    Check("data-in-overflow", f"{RFC} 11.4.5", "More data than expected: cut off, O and how much", overflow),
    Check("data-in-no-residual", f"{RFC} 11.4.5", "As much data as expected: no residual", no_residual),
    Check("data-in-sequence", f"{RFC} 11.7, 13.12, 13.13", "Data-In in order, in segments and bursts agreed", data_in),
    Check("r2t-one-open", f"{RFC} 11.8, 13.13, 13.17", "R2Ts one at a time, in order, up to MaxBurst", r2t_one, True),
    Check("r2t-several-open", f"{RFC} 11.8, 13.17", "Up to MaxOutstandingR2T are open at once", r2t_several, True),
    Check(
        "r2t-after-unsolicited", f"{RFC} 4.2.5.2, 13.14", "R2Ts begin behind unsolicited data", after_unsolicited, True
    ),
    Check("immediate-not-agreed", f"{RFC} 13.11, 11.4.7.2", "ImmediateData=No is kept to", immediate_not_agreed, True),
    Check(
        "data-out-unknown-tag",
        f"{RFC} 11.7.4; practice",
        "Data for an unknown transfer tag is not used",
        unknown_transfer_tag,
        True,
    ),
)
