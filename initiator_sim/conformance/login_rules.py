"""Checks of the login phase: who may come in, and what a Login Response says."""

from typing import Final

from initiator_sim.conformance.bench import OPERATIONAL, Attempt, Bench, offer
from initiator_sim.conformance.check import Check, Failed, expect
from initiator_sim.conformance.wire import Gone, named
from initiator_sim.login import LoginError
from initiator_sim.packets import ISCSI_NopOut
from san_target.wire import opcodes
from san_target.wire.text import encode_pairs

UNKNOWN_TSIH: Final = 0xBEEF


def _refused(attempt: Attempt, *statuses: int) -> None:
    wanted = " or ".join(f"0x{status:04x}" for status in statuses)
    expect(attempt.status in statuses, str(attempt), f"a Login Response with status {wanted}")


async def tsih_at_the_end(bench: Bench) -> None:
    session = await bench.login()
    expect(session.tsih != 0, "TSIH 0 in the final response", "a TSIH other than 0")


async def tsih_not_before(bench: Bench) -> None:
    attempt = await bench.attempt(bench.names())
    expect(attempt.status == 0, str(attempt), "an answer to a first Login Request")
    tsih = attempt.response.tsih
    expect(tsih == 0, f"TSIH {tsih} in a response that ends no login", "0 until the final response of a new session")


async def join_refused(bench: Bench, address: str, isid: bytes, tsih: int, *statuses: int) -> None:
    """A login as a further connection of a session is refused, at its beginning or its end."""
    wanted = "refused with status " + " or ".join(f"0x{status:04x}" for status in statuses)
    try:
        await bench.login(address, isid=isid, tsih=tsih, cid=1)
    except LoginError as error:
        expect(error.status in statuses, str(error), wanted)
    else:
        raise Failed(f"a login with TSIH {tsih} succeeded", wanted)


async def unknown_tsih(bench: Bench) -> None:
    address, isid = await bench.home()
    await join_refused(bench, address, isid, UNKNOWN_TSIH, 0x020A)


async def second_connection(bench: Bench) -> None:
    session = await bench.ready()
    # 11.13.5: too many connections, or this one cannot be part of the session.
    await join_refused(bench, session.address, session.isid, session.tsih, 0x0206, 0x0208)
    await session.ping()


async def version(bench: Bench) -> None:
    _refused(await bench.attempt(bench.names(), version_min=1, version_max=1), 0x0205)


async def version_zero(bench: Bench) -> None:
    attempt = await bench.attempt(bench.names(), version_min=0, version_max=7)
    expect(attempt.status == 0, str(attempt), "version 0 taken out of 0 to 7")
    active = attempt.response.version_active
    expect(active == 0, f"Version-active {active}", "0, the only version there is")


async def no_initiator_name(bench: Bench) -> None:
    pairs = [pair for pair in bench.names() if pair[0] != "InitiatorName"]
    _refused(await bench.attempt(pairs), 0x0207)


async def no_target_name(bench: Bench) -> None:
    pairs = [pair for pair in bench.names() if pair[0] != "TargetName"]
    _refused(await bench.attempt(pairs), 0x0207)


async def unknown_target(bench: Bench) -> None:
    changed = dict(bench.names()) | {"TargetName": "iqn.2001-04.org.example:there-is-none"}
    _refused(await bench.attempt(list(changed.items())), 0x0203)


async def refusal_ends_the_connection(bench: Bench) -> None:
    changed = dict(bench.names()) | {"TargetName": "iqn.2001-04.org.example:there-is-none"}
    attempt = await bench.attempt(list(changed.items()))
    if attempt.response is not None:
        ended = await attempt.wire.ends()
        expect(ended, "the connection stays open after a refusal", "the transport connection closed by the target")


async def first_pdu(bench: Bench) -> None:
    wire = await bench.connect()
    await wire.send(ISCSI_NopOut(immediate=1, initiator_task_tag=7))
    try:
        pdu = await wire.receive()
    except Gone:
        return
    raise Failed(f"{named(pdu)} answers a NOP-Out before any login", "the connection terminated at once")


async def other_pdu_midway(bench: Bench) -> None:
    attempt = await bench.attempt(bench.names())
    expect(attempt.status == 0, str(attempt), "an answer to a first Login Request")
    wanted = "a Login Response with status 0x020b, then the end of the connection"
    await attempt.wire.send(ISCSI_NopOut(immediate=1, initiator_task_tag=7))
    try:
        pdu = await attempt.wire.receive()
    except Gone:
        raise Failed("the connection was closed without a Login Response", wanted) from None
    told = pdu.opcode == opcodes.LOGIN_RESPONSE and (pdu.status_class, pdu.status_detail) == (2, 0x0B)
    expect(told, f"{named(pdu)} answers a NOP-Out within the login", wanted)
    expect(await attempt.wire.ends(), "the connection stays open", wanted)


async def stage_two(bench: Bench) -> None:
    attempt = await bench.attempt(bench.names(), next_stage=2)
    response = attempt.response
    taken = response is not None and response.status_class == 0 and response.transit
    expect(not taken, f"the login goes on to stage {taken and response.next_stage}", "a status of class 2")


async def unknown_key(bench: Bench) -> None:
    pairs = [*bench.names(), ("X-org.example.conformance", "1")]
    answer = (await bench.attempt(pairs)).keys.get("X-org.example.conformance")
    expect(answer == "NotUnderstood", f"the answer {answer!r}", "X-org.example.conformance=NotUnderstood")


async def impossible_value(bench: Bench) -> None:
    pairs = [*bench.names()[:3], ("MaxBurstLength", "7")]
    attempt = await bench.attempt(pairs, current_stage=OPERATIONAL, transit=0, next_stage=0)
    refused = attempt.response is None or attempt.response.status_class != 0
    answer = attempt.keys.get("MaxBurstLength")
    wanted = "7 is below the lowest value, 512: MaxBurstLength=Reject, or the end of the login"
    expect(refused or answer == "Reject", f"MaxBurstLength={answer}", wanted)


async def text_in_two_parts(bench: Bench) -> None:
    text = encode_pairs(bench.names())
    cut = len(text) // 2
    address, isid = await bench.home()
    wire = await bench.connect(address)
    same = {"isid": isid, "initiator_task_tag": 9}
    first = await bench.attempt_on(wire, text[:cut], transit=0, next_stage=0, continue_=1, **same)
    expect(first.status == 0, f"{first} for the first part", "a response that asks for the rest")
    said = (first.response.transit, first.response.continue_, len(first.response.data))
    expect(said == (0, 0, 0), f"T, C and data bytes {said} in it", "T=0, C=0 and no keys")
    second = await bench.attempt_on(wire, text[cut:], **same)
    expect(second.status == 0, f"{second} for the last part", "the login goes on")


async def portal_group_tag(bench: Bench) -> None:
    attempt = await bench.attempt(bench.names())
    expect(attempt.status == 0, str(attempt), "an answer to a first Login Request")
    tag = attempt.keys.get("TargetPortalGroupTag", "")
    expect(tag.isdigit(), f"TargetPortalGroupTag={tag!r}", "the key in the first Login Response of a session")


async def digest_first_choice(bench: Bench) -> None:
    session = await bench.login(keys=offer(HeaderDigest="CRC32C,None", DataDigest="CRC32C,None"))
    answer = await session.ping(b"after the login, with whatever digests were agreed")
    expect(bytes(answer.data).startswith(b"after the login"), "a ping came back changed", "digests as agreed")


RFC: Final = "RFC 7143"
CHECKS: Final = (
    Check("login-tsih-at-the-end", f"{RFC} 11.13.3", "A new session gets a TSIH other than 0", tsih_at_the_end),
    Check("login-tsih-not-before", f"{RFC} 11.13.3", "The TSIH is told in the final response only", tsih_not_before),
    Check("login-unknown-tsih", f"{RFC} 11.13.5", "Joining a session that does not exist: 0x020a", unknown_tsih),
    Check(
        "login-second-connection",
        f"{RFC} 11.13.5, 13.2",
        "A second connection beyond MaxConnections is refused, the session goes on",
        second_connection,
    ),
    Check("login-version", f"{RFC} 11.12.4, 11.13.5", "A version that does not exist: 0x0205", version),
    Check("login-version-range", f"{RFC} 11.13.2", "Out of a range of versions 0 is taken", version_zero),
    Check(
        "login-no-initiator-name", f"{RFC} 6.3.1, 11.13.5", "A login without InitiatorName: 0x0207", no_initiator_name
    ),
    Check("login-no-target-name", f"{RFC} 6.3.1, 11.13.5", "A normal login without TargetName: 0x0207", no_target_name),
    Check("login-unknown-target", f"{RFC} 11.13.5", "A login to a target that is not there: 0x0203", unknown_target),
    Check("login-refusal-closes", f"{RFC} 11.13.5", "A refused login ends its connection", refusal_ends_the_connection),
    Check("login-first-pdu", f"{RFC} 4.2.4", "Anything but a Login Request first ends the connection", first_pdu),
    Check("login-other-pdu", f"{RFC} 4.2.4", "Another PDU within a login: 0x020b, then the end", other_pdu_midway),
    Check("login-stage", f"{RFC} 11.12.3", "A stage that does not exist is refused", stage_two),
    Check("login-unknown-key", f"{RFC} 6.2", "An unknown key is answered with NotUnderstood", unknown_key),
    Check("login-impossible-value", f"{RFC} 6.2, 13.13", "A value out of its range is not taken", impossible_value),
    Check("login-text-in-parts", f"{RFC} 6.2, 11.12.2", "Text may come in several Login Requests", text_in_two_parts),
    Check("login-portal-group-tag", f"{RFC} 13.9", "The first response has the portal group tag", portal_group_tag),
    Check("login-digests", f"{RFC} 6.2.1, 13.1", "Digests begin as agreed, right after the login", digest_first_choice),
)
