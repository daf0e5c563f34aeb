"""Checks of NOP, text and logout exchanges, of Reject, and of digest errors."""

from collections.abc import Sequence
from typing import Any, Final

from initiator_sim import cdb as cdbs
from initiator_sim.conformance.bench import Bench, offer
from initiator_sim.conformance.check import Check, Failed, NotApplicable, expect
from initiator_sim.conformance.raw_session import NO_TAG, RawSession
from initiator_sim.conformance.tasks import WITHHELD, late_data, waiting_write
from initiator_sim.conformance.wire import Gone, named
from initiator_sim.packets import ISCSI, ISCSI_NopOut, ISCSI_ScsiCommand, ISCSI_TextRequest
from initiator_sim.parameters import Pair
from san_target.wire import opcodes
from san_target.wire.text import TextError, decode_pairs, encode_pairs

ECHO_BYTES: Final = (0, 1, 3, 511, 4096)
NO_OPCODE: Final = 0x0B  # reserved
NO_CID: Final = 0x7777


# --- NOP --------------------------------------------------------------------------------------------------------------


async def echo(bench: Bench) -> None:
    session = await bench.login()
    for size in ECHO_BYTES:
        data = bytes(index * 7 & 0xFF for index in range(size))
        for immediate in (True, False):
            answer = await session.ping(data, immediate)
            expect(answer.opcode == opcodes.NOP_IN, f"{named(answer)} answers a NOP-Out", "NOP-In")
            expect(bytes(answer.data) == data, f"{len(answer.data)} other bytes for {size}", "the same data")
            expect(answer.target_transfer_tag == NO_TAG, "a target transfer tag", "0xffffffff in an answer")


async def no_answer_wanted(bench: Bench) -> None:
    session = await bench.login()
    before = session.exp_stat_sn
    silent = session.make(ISCSI_NopOut, immediate=1, initiator_task_tag=NO_TAG, data=b"nothing")
    ping = session.make(ISCSI_NopOut, immediate=1)
    await session.send(silent, ping)  # in one go: the first must not hold up the second
    await session.next_for(ping.initiator_task_tag)
    await session.receive_all()
    expect(not session.inbox, "an answer to a NOP-Out with the reserved tag", "none")
    taken = session.exp_stat_sn - before
    expect(taken == 1, f"{taken} StatSN for one ping", "1")


async def echo_cut_off(bench: Bench) -> None:
    session = await bench.login(keys=offer(MaxRecvDataSegmentLength="512"))
    data = bytes(range(256)) * 4
    answer = await session.ping(data)
    expect(len(answer.data) <= 512, f"{len(answer.data)} bytes of data", "no more than our MaxRecvDataSegmentLength")
    expect(bytes(answer.data) == data[: len(answer.data)], "other data came back", "the beginning of what was sent")


# --- Text -------------------------------------------------------------------------------------------------------------


def _pairs(data: bytes) -> dict[str, str]:
    try:
        return dict(decode_pairs(data))
    except TextError as error:
        raise Failed(f"malformed text: {error}", "key=value pairs") from None


def _is_text(pdu: Any) -> None:
    expect(pdu.opcode == opcodes.TEXT_RESPONSE, f"{named(pdu)} answers a Text Request", "a Text Response")


async def text_unknown_key(bench: Bench) -> None:
    session = await bench.login()
    answer = await session.text([("X-org.example.conformance", "1")])
    _is_text(answer)
    value = _pairs(answer.data).get("X-org.example.conformance")
    expect(value == "NotUnderstood", f"the answer {value!r}", "NotUnderstood")


async def text_own_target(bench: Bench) -> None:
    session = await bench.login()
    answer = await session.text([("SendTargets", "")])
    _is_text(answer)
    found = [value for key, value in _all(answer.data) if key == "TargetName"]
    expect(found == [bench.setting.iqn], f"the targets {found}", "the target of the session")


async def text_in_two_parts(bench: Bench) -> None:
    session = await bench.discovery()
    text = encode_pairs([("SendTargets", "All")])
    first = session.make(ISCSI_TextRequest, immediate=1, continue_=1, data=text[:7])
    answer = await session.ask(first)
    _is_text(answer)
    said = (answer.final, answer.continue_, len(answer.data))
    expect(said == (0, 0, 0), f"F, C and data bytes {said} for a first part", "F=0, C=0 and no data")
    expect(answer.target_transfer_tag != NO_TAG, "no target transfer tag", "a tag for the rest")
    last = session.make(
        ISCSI_TextRequest,
        immediate=1,
        final=1,
        initiator_task_tag=first.initiator_task_tag,
        target_transfer_tag=answer.target_transfer_tag,
        data=text[7:],
    )
    answer = await session.ask(last)
    _is_text(answer)
    found = [value for key, value in _all(answer.data) if key == "TargetName"]
    expect(bench.setting.iqn in found, f"the targets {found}", "the answer to the whole text")


def _all(data: bytes) -> Sequence[Pair]:
    try:
        return decode_pairs(data)
    except TextError as error:
        raise Failed(f"malformed text: {error}", "key=value pairs") from None


async def text_kept_open(bench: Bench) -> None:
    """The initiator is not ready to end the exchange: neither may the target be."""
    session = await bench.login()
    answer = await session.text([("X-org.example.conformance", "1")], final=0)
    _is_text(answer)
    expect(not answer.final, "F=1 in the answer to a request with F=0", "F=0: the initiator has more to say")
    expect(answer.target_transfer_tag != NO_TAG, "no target transfer tag with F=0", "a tag (11.11.4)")


async def text_unknown_tag(bench: Bench) -> None:
    session = await bench.login()
    try:
        answer = await session.text([], target_transfer_tag=0x00BADBAD)
    except Gone:
        return
    _rejected(answer, session, "a Text Request with a tag that was never given")


# --- Logout -----------------------------------------------------------------------------------------------------------


def _logout_response(pdu: Any, response: int) -> None:
    right = pdu.opcode == opcodes.LOGOUT_RESPONSE and pdu.response == response
    expect(right, f"{named(pdu)} with response {pdu.fields.get('response')}", f"a Logout Response with {response}")


async def logout(bench: Bench) -> None:
    session = await bench.login()
    _logout_response(await session.logout(), 0)
    expect(await session.ended(), "the connection stays open after the Logout Response", "closed by the target too")


async def logout_connection(bench: Bench) -> None:
    session = await bench.login()
    _logout_response(await session.logout(reason=1, cid=0), 0)
    expect(await session.ended(), "the connection stays open after the Logout Response", "closed by the target too")


async def logout_unknown_connection(bench: Bench) -> None:
    session = await bench.login()
    _logout_response(await session.logout(reason=1, cid=NO_CID), 1)
    await session.ping()


async def logout_for_recovery(bench: Bench) -> None:
    session = await bench.login()
    if session.parameters.error_recovery_level >= 2:
        raise NotApplicable("ErrorRecoveryLevel 2 was agreed")
    _logout_response(await session.logout(reason=2, cid=0), 2)


async def logout_ends_tasks(bench: Bench) -> None:
    session = await bench.ready(keys=WITHHELD)
    before = await bench.read(session, bench.scratch_lba)
    command, r2t, data = await waiting_write(bench, session, bench.scratch_lba, 59)
    _logout_response(await session.logout(), 0)
    await late_data(session, command, r2t, data)
    found = await bench.read(await bench.ready(), bench.scratch_lba)
    expect(found == before, "data sent after the Logout Response was written", "nothing executed after it")


# --- Reject -----------------------------------------------------------------------------------------------------------


def _rejected(pdu: Any, session: RawSession, what: str, *reasons: int) -> None:
    names = " or ".join(f"0x{reason:02x}" for reason in reasons)
    wanted = f"a Reject with reason {names}" if reasons else "a Reject"
    expect(pdu.opcode == opcodes.REJECT, f"{named(pdu)} answers {what}", wanted)
    expect(not reasons or pdu.reason in reasons, f"a Reject with reason 0x{pdu.reason:02x}", wanted)
    expect(pdu.initiator_task_tag == NO_TAG, "a Reject with a task tag", "0xffffffff (11.17)")
    expect(not session.number_faults, "; ".join(session.number_faults[:2]), "a Reject takes a StatSN")


async def _first_pdu(session: RawSession) -> Any:
    """What comes next; Gone and Silence are failures here."""
    return await session.receive()


async def unknown_opcode(bench: Bench) -> None:
    session = await bench.login()
    stray = ISCSI(immediate=1, opcode=NO_OPCODE, initiator_task_tag=session.new_tag())
    await session.send(stray)
    pdu = await _first_pdu(session)
    _rejected(pdu, session, "an opcode that does not exist", 0x04, 0x05, 0x09)
    sent = session.wire.encode(stray)[:48]
    expect(bytes(pdu.data[:48]) == sent, "the Reject holds another header", "the complete header of the bad PDU")
    await session.ping()


async def tag_in_use(bench: Bench) -> None:
    session = await bench.ready(keys=WITHHELD)
    command, r2t, data = await waiting_write(bench, session, bench.scratch_lba, 61)
    await session.send(
        session.make(ISCSI_ScsiCommand, final=1, attribute=1, lun=session.lun, initiator_task_tag=command.itt)
    )
    _rejected(await session.next_for(command.itt), session, "a second command with the tag of a task", 0x07, 0x09, 0x04)
    await session.send(*session.data_out(command.itt, r2t, data))
    outcome = await session.end(command)
    expect(outcome.good, f"the first task ended with {outcome}", "GOOD: it goes on")


async def command_in_discovery(bench: Bench) -> None:
    session = await bench.discovery()
    await session.send(session.make(ISCSI_ScsiCommand, final=1, attribute=1, lun=session.lun))
    try:
        pdu = await _first_pdu(session)
    except Gone:
        return
    _rejected(pdu, session, "a SCSI command in a discovery session")


# --- Digests ----------------------------------------------------------------------------------------------------------


async def _with_digests(bench: Bench, **digests: str) -> RawSession:
    session = await bench.ready(keys=offer(**digests))
    agreed = session.parameters
    if ("HeaderDigest" in digests and not agreed.header_digest) or ("DataDigest" in digests and not agreed.data_digest):
        raise NotApplicable("the target does not do digests")
    return session


async def digests_work(bench: Bench) -> None:
    session = await _with_digests(bench, HeaderDigest="CRC32C", DataDigest="CRC32C")
    data = bench.pattern(67, 3)
    await bench.write(session, bench.scratch_lba, data)
    expect(await bench.read(session, bench.scratch_lba, 3) == data, "other data came back", "what was written")
    await session.ping(b"odd")


async def header_digest_error(bench: Bench) -> None:
    """At ErrorRecoveryLevel 0 the session fails; the PDU may not be used."""
    session = await _with_digests(bench, HeaderDigest="CRC32C")
    before = await bench.read(session, bench.scratch_lba)
    data = bench.pattern(71)
    limit = min(len(data), session.parameters.first_burst_length)
    await session.begin(cdbs.write16(bench.scratch_lba, 1), data=data, immediate=data[:limit], header_digest=0x0BADBAD0)
    ended = await session.ended()
    found = await bench.read(await bench.ready(), bench.scratch_lba)
    expect(found == before, "a command with a wrong header digest was executed", "discarded")
    expect(ended, "the session goes on after a header digest error", "session recovery: the connection ends (7.8)")


async def data_digest_error(bench: Bench) -> str:
    """The data may not be used; the target says so with a Reject before the session fails."""
    session = await _with_digests(bench, DataDigest="CRC32C")
    before = await bench.read(session, bench.scratch_lba)
    data = bench.pattern(73)
    command = await session.begin(cdbs.write16(bench.scratch_lba, 1), data=data, immediate=data, data_digest=0x0BADBAD0)
    wanted = "a Reject with reason 0x02 (data digest error), nothing written"
    try:
        pdu = await session.next_for(command.itt)
    except Gone:
        raise Failed("the connection ended without a Reject", wanted) from None
    found = await bench.read(await bench.ready(), bench.scratch_lba)
    expect(found == before, "data with a wrong digest was written", wanted)
    expect(pdu.opcode == opcodes.REJECT and pdu.reason == 0x02, f"{named(pdu)} answers it", wanted)
    return "Reject 0x02"


RFC: Final = "RFC 7143"
CHECKS: Final = (
    Check("nop-echo", f"{RFC} 11.18, 11.19", "NOP-In brings back what NOP-Out sent", echo),
    Check("nop-no-answer", f"{RFC} 11.18.1", "A NOP-Out with the reserved tag has no answer", no_answer_wanted),
    Check("nop-cut-off", f"{RFC} 11.18.3, 13.12", "An echo keeps to MaxRecvDataSegmentLength", echo_cut_off),
    Check("text-unknown-key", f"{RFC} 6.2", "An unknown key is answered with NotUnderstood", text_unknown_key),
    Check("text-own-target", f"{RFC} appendix C", "SendTargets in a session tells of its own target", text_own_target),
    Check("text-in-parts", f"{RFC} 11.10.2, 6.2", "Text may come in several Text Requests", text_in_two_parts),
    Check("text-kept-open", f"{RFC} 11.11.1", "Only the initiator's F=1 lets an exchange end", text_kept_open),
    Check("text-unknown-tag", f"{RFC} 11.10.4", "A tag that was never given is rejected", text_unknown_tag),
    Check("logout-session", f"{RFC} 11.15", "Logout is answered, then the connection closes", logout),
    Check(
        "logout-connection", f"{RFC} 11.14.1, 11.15", "The only connection may log out by its CID", logout_connection
    ),
    Check("logout-unknown-cid", f"{RFC} 11.15.1", "An unknown CID: response 1", logout_unknown_connection),
    Check(
        "logout-recovery", f"{RFC} 11.15.1", "Recovery without ErrorRecoveryLevel 2: response 2", logout_for_recovery
    ),
    Check(
        "logout-ends-tasks", f"{RFC} 11.14.5", "After the Logout Response nothing is executed", logout_ends_tasks, True
    ),
    Check("reject-opcode", f"{RFC} 11.17.1, 11.17.4", "An unknown opcode is rejected with its header", unknown_opcode),
    Check("reject-tag-in-use", f"{RFC} 11.17.1; practice", "A task tag in use is rejected", tag_in_use, writes=True),
    Check("discovery-no-commands", f"{RFC} 4.3", "A discovery session takes no SCSI commands", command_in_discovery),
    Check("digests", f"{RFC} 13.1", "Header and data digests work", digests_work, writes=True),
    Check("digest-header-error", f"{RFC} 7.8", "A wrong header digest ends the session", header_digest_error, True),
    Check("digest-data-error", f"{RFC} 7.8", "Data with a wrong digest is rejected", data_digest_error, writes=True),
)
