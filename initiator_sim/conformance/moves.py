"""Checks of a target that asks a session to leave: what it says, whether it keeps to it, what commands meet meanwhile.

They need something that makes the target ask: see `hooks`.
"""

import asyncio
import time
from typing import Any, Final

from initiator_sim import cdb as cdbs
from initiator_sim.conformance.bench import Bench
from initiator_sim.conformance.check import Check, NotApplicable, expect
from initiator_sim.conformance.hooks import Victim
from initiator_sim.conformance.raw_session import NO_TAG, RawSession
from initiator_sim.conformance.reinstatement import expect_unit
from initiator_sim.conformance.wire import Gone, Silence, Unreachable, named
from initiator_sim.login import LoginError
from initiator_sim.sense import Sense
from initiator_sim.task import CHECK_CONDITION
from san_target.wire import opcodes

MESSAGE_S: Final = 15.0
DEADLINE_MAX_S: Final = 30
MARGIN_S: Final = 5.0
RETURN_S: Final = 10.0
RETRY_S: Final = 0.1
ASKS: Final = (opcodes.ASYNC_LOGOUT_REQUEST, opcodes.ASYNC_CONNECTION_DROP, opcodes.ASYNC_SESSION_DROP)
EVENTS: Final = {
    opcodes.ASYNC_LOGOUT_REQUEST: "asked to log out (event 1)",
    opcodes.ASYNC_CONNECTION_DROP: "told that the connection is dropped (event 2)",
    opcodes.ASYNC_SESSION_DROP: "told that the session is dropped (event 3)",
}


def _victim(bench: Bench, session: RawSession) -> Victim:
    return Victim(session.address, bench.setting.iqn, session.name, session.isid, session.tsih)


async def _asked(bench: Bench) -> tuple[RawSession, list[Any], str]:
    """A session that the hook sent away: the messages that came first, ended by a logout request or by the end."""
    session = await bench.ready()
    how = await bench.setting.hooks.send_away(_victim(bench, session))
    messages: list[Any] = []
    give_up_s = time.monotonic() + MESSAGE_S
    try:
        while not messages or messages[-1].async_event != opcodes.ASYNC_LOGOUT_REQUEST:
            pdu = await session.receive(max(0.1, give_up_s - time.monotonic()))
            if pdu.opcode == opcodes.ASYNC_MESSAGE and pdu.async_event in ASKS:
                messages.append(pdu)
    except Gone:
        pass
    except Silence:
        if not messages:
            raise NotApplicable(f"{how}, and the target said nothing within {MESSAGE_S:.0f} s") from None
    return session, messages, how


def _told(messages: list[Any]) -> str:
    return ", ".join(EVENTS[pdu.async_event] for pdu in messages) or "cut off without a word"


async def _comes_back(bench: Bench, session: RawSession, wait_s: float = 0.0) -> RawSession:
    """The session logs in again as an initiator does, after the time it was told to wait, and finds its disk."""
    await asyncio.sleep(wait_s)
    give_up_s = time.monotonic() + RETURN_S
    while True:
        try:
            again = await bench.ready(isid=session.isid)
            break
        except (LoginError, Unreachable, Gone) as error:
            final = isinstance(error, LoginError) and error.final
            expect(not final and time.monotonic() < give_up_s, f"no way back: {error}", "a login, then the disk")
        await asyncio.sleep(RETRY_S)
    await bench.read(again, 0)
    return again


async def message(bench: Bench) -> str:
    """The form of the message itself."""
    session, messages, how = await _asked(bench)
    if not messages:
        raise NotApplicable(f"{how}, and the connection was cut off without a word")
    for pdu in messages:
        expect(pdu.initiator_task_tag == NO_TAG, "an Asynchronous Message with a task tag", "0xffffffff")
        expect(pdu.final, "an Asynchronous Message without F", "F=1")
    expect(not session.number_faults, "; ".join(session.number_faults[:2]), "it takes a StatSN")
    return f"{how}: {_told(messages)}"


async def obeyed(bench: Bench) -> str:
    """The initiator does what it is told: Logout, or waiting for the end; then it logs in again."""
    session, messages, how = await _asked(bench)
    if not messages:
        raise NotApplicable(f"{how}, and the connection was cut off without a word")
    wait_s = messages[-1].parameter2 if messages[-1].async_event != opcodes.ASYNC_LOGOUT_REQUEST else 0
    if messages[-1].async_event == opcodes.ASYNC_LOGOUT_REQUEST:
        try:
            response = await session.logout()
            expect(
                response.opcode == opcodes.LOGOUT_RESPONSE, f"{named(response)} answers the Logout", "Logout Response"
            )
            expect(response.response == 0, f"Logout response {response.response}", "0: closed")
        except Gone:
            expect(False, "the connection ended without a Logout Response", "the answer, then the end")
    expect(await session.ended(), "the connection stays open", "closed by the target")
    expect(wait_s <= DEADLINE_MAX_S, f"Time2Wait of {wait_s} s", "less than a host has patience")
    again = await _comes_back(bench, session, wait_s)
    return f"{how}: {_told(messages)}; back at {again.address}"


async def ignored(bench: Bench) -> str:
    """The initiator does not listen: its commands are served until the time is over, then the connection ends."""
    session, messages, how = await _asked(bench)
    if not messages or messages[-1].async_event != opcodes.ASYNC_LOGOUT_REQUEST:
        raise NotApplicable(f"{how}: {_told(messages)}, so there is nothing to ignore")
    allowed_s = messages[-1].parameter3
    if allowed_s > DEADLINE_MAX_S:
        raise NotApplicable(f"the target would wait {allowed_s} s")
    give_up_s = time.monotonic() + allowed_s + MARGIN_S
    served = 0
    try:
        while time.monotonic() < give_up_s:
            outcome = await session.command(cdbs.read16(0, 1), read_bytes=bench.block_bytes)
            expect_unit(outcome.sense, session.address)
            served += outcome.good
            await asyncio.sleep(RETRY_S)
        expect(False, f"the session goes on {MARGIN_S:g} s after the {allowed_s} s it was given", "dropped (11.9.1)")
    except (Gone, Silence):
        pass
    again = await _comes_back(bench, session)
    return f"{how}: {served} commands served meanwhile; back at {again.address}"


async def never_unsupported(bench: Bench) -> str:
    """Commands go on while the session is sent away, and begin again after the login: none meets 5/25h."""
    session = await bench.ready()
    away = asyncio.ensure_future(bench.setting.hooks.send_away(_victim(bench, session)))
    sent = 0
    try:
        while True:
            if away.done() and away.exception() is not None:
                break
            outcome = await session.command(cdbs.read16(0, 1), read_bytes=bench.block_bytes, within_s=MESSAGE_S)
            expect_unit(outcome.sense, session.address)
            if any(pdu.opcode == opcodes.ASYNC_MESSAGE for pdu in session.inbox):
                await _leave(session)
                break
            sent += 1
            await asyncio.sleep(0.001)
    except Gone:
        pass
    finally:
        if not away.done():
            await asyncio.wait([away])
    how = away.result()
    again = await bench.login(isid=session.isid)
    for _ in range(20):
        outcome = await again.command(cdbs.read16(0, 1), read_bytes=bench.block_bytes)
        expect_unit(outcome.sense, again.address)
    return f"{how}, after {sent} commands; back at {again.address}"


async def _leave(session: RawSession) -> None:
    """Log out with commands under way, as hosts do, and look at every answer until the end."""
    for _ in range(4):
        await session.begin(cdbs.read16(0, 1), read_bytes=512)
    try:
        await session.logout()
        while True:
            await session.receive(MARGIN_S)
    except (Gone, Silence):
        pass
    for pdu in session.log:
        if pdu.opcode == opcodes.SCSI_RESPONSE and pdu.status == CHECK_CONDITION:
            expect_unit(Sense.parse(pdu.data[2:]), session.address)


RFC: Final = "RFC 7143 11.9"
LONG_S: Final = 90.0
CHECKS: Final = (
    Check("async-message", RFC, "Being asked to leave: the message", message, limit_s=LONG_S),
    Check("async-logout-obeyed", f"{RFC}.1", "Being asked to leave, and leaving", obeyed, limit_s=LONG_S),
    Check("async-logout-ignored", f"{RFC}.1", "Being asked to leave, and staying", ignored, limit_s=LONG_S),
    Check(
        "async-unit-there",
        "SAM-5 4.7, SPC-4 4.5; practice",
        "No 5/25h LOGICAL UNIT NOT SUPPORTED while a session is sent away",
        never_unsupported,
        limit_s=LONG_S,
    ),
)
