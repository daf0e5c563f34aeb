"""One hostile connection: what is sent, under guard and never for long; what comes back, as far as it matters."""

import asyncio
import contextlib
import socket
import struct
from collections import Counter, deque
from typing import Any, Final

from initiator_sim.fuzz.guard import Guard
from initiator_sim.fuzz.script import PROBE_TAG, Encoder
from initiator_sim.login import LoggedIn, Login, LoginError, Redirected
from initiator_sim.nexus import split_address
from initiator_sim.packets import OPCODES, pdu_bytes
from san_target.wire import opcodes, pdus
from san_target.wire.digest import digest
from san_target.wire.text import TextError, decode_pairs

SEND_S: Final = 2.0
"""How long a target may take nothing before the rest of a script is left out."""
BUFFER_BYTES: Final = 1 << 16
_KEPT_BYTES: Final = 1 << 18  # of one answer's data; the rest is skipped
_R2TS_MAX: Final = 64
_SENT_KEPT: Final = 16
_STATUS_AT: Final = 36
_DIGEST_BYTES: Final = 4
_TARGET_OPCODES: Final = frozenset(code for code in OPCODES if code >= opcodes.NOP_IN)


class Malformed(Exception):
    """The target's answer is no PDU that a target may send."""


class Answers:
    """What the target said. heard: PDUs by name; refused: Status-Class and -Detail of a login without success."""

    def __init__(self) -> None:
        self.heard: Counter[str] = Counter()
        self.refused = 0
        self.probed = False
        self.closed = False
        self.malformed = ""
        self.r2ts: deque[bytes] = deque(maxlen=_R2TS_MAX)


class Line:
    """Make it with `open`; `end` must be called. `encoder` and `answers` belong to this connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, guard: Guard) -> None:
        self.encoder = Encoder()
        self.answers = Answers()
        self.sent: deque[bytes] = deque(maxlen=_SENT_KEPT)
        self.withheld = False
        self.stuck = False
        self.logged_in = False
        self._reader = reader
        self._writer = writer
        self._guard = guard
        self._login: Login | None = None
        self._login_error: LoginError | None = None
        self._digests = {"HeaderDigest": False, "DataDigest": False}
        self._digests_agreed = dict(self._digests)
        self._news = asyncio.Event()
        self._listening = asyncio.Event()
        self._listening.set()
        self._seen = 0
        self._login_pdus = 0
        self._listener = asyncio.create_task(self._listen())

    @classmethod
    async def open(cls, address: str, guard: Guard, timeout_s: float) -> "Line":
        """Connect. OSError, or TimeoutError, where that does not work."""
        host, port = split_address(address)
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(host, port, limit=BUFFER_BYTES)
        return cls(reader, writer, guard)

    @property
    def usable(self) -> bool:
        """Can more be sent?"""
        return not (self.answers.closed or self.withheld or self.stuck)

    @property
    def has_answered(self) -> bool:
        """Was anything heard, beyond the answers to a correct login?"""
        return self.answers.heard.total() > self._login_pdus

    # --- sending --------------------------------------------------------------------------------------------------

    async def send(self, data: bytes) -> None:
        """Send, unless the guard forbids it, the target has closed, or takes nothing for SEND_S."""
        if not self.usable or not data:
            return
        if not self._guard.admits(data):
            self.withheld = True
            return
        self.sent.append(data)
        await self._write(data)

    async def _write(self, data: bytes) -> None:
        try:
            self._writer.write(data)
            async with asyncio.timeout(SEND_S):
                await self._writer.drain()
        except TimeoutError:
            self.stuck = True
        except (ConnectionError, RuntimeError):
            # Closed by the target. What it said before is still to be heard.
            await self._heard(lambda: self.answers.closed, SEND_S)
            self.answers.closed = True

    async def log_in(self, login: Login, timeout_s: float) -> LoggedIn | Redirected:
        """A correct login. LoginError; ConnectionError where the target closes; TimeoutError without its end."""
        self._login = login
        login.begin()
        await self._write_login()
        await self._heard(
            lambda: self.answers.closed or login.result is not None or self._login_error is not None, timeout_s
        )
        if self._login_error is not None:
            raise self._login_error
        if login.result is None:
            if self.answers.closed:
                raise ConnectionResetError("the target closed the connection during a correct login")
            raise TimeoutError("a correct login has no end")
        self._login = None
        self._seen = self._login_pdus = self.answers.heard.total()
        return login.result

    async def _write_login(self) -> None:
        assert self._login is not None
        ready, self._login.outgoing = self._login.outgoing, []
        await self._write(b"".join(ready))

    # --- waiting --------------------------------------------------------------------------------------------------

    async def _heard(self, condition: Any, timeout_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not condition():
                    self._news.clear()
                    await self._news.wait()

    async def wait(self, timeout_s: float) -> None:
        """Until something was heard since this was last called, or the target closed."""
        if self._listening.is_set():
            await self._heard(lambda: self.answers.closed or self.answers.heard.total() > self._seen, timeout_s)
        self._seen = self.answers.heard.total()

    async def probe(self, timeout_s: float) -> None:
        """Send a ping, and wait for its answer."""
        await self.send(self.encoder.probe())
        if self.usable and self._listening.is_set():
            await self._heard(lambda: self.answers.closed or self.answers.probed, timeout_s)

    async def wait_for_close(self, timeout_s: float) -> bool:
        """Close our end, then wait for the target to do so; was it in time?"""
        if self.answers.closed:
            return True
        with contextlib.suppress(OSError, RuntimeError):
            self._writer.write_eof()
        self._listening.set()
        await self._heard(lambda: self.answers.closed, timeout_s)
        return self.answers.closed

    def stop_listening(self) -> None:
        self._listening.clear()

    async def end(self) -> None:
        """Reset the connection, if it is still there."""
        self._listener.cancel()
        with contextlib.suppress(OSError, AttributeError):
            sock = self._writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()
        await asyncio.gather(self._listener, return_exceptions=True)

    # --- listening ------------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        try:
            while True:
                await self._listening.wait()
                await self._receive()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        except Malformed as error:
            self.answers.malformed = str(error)
        except LoginError as error:
            self._login_error = error
        finally:
            self.answers.closed = True
            self._news.set()

    async def _receive(self) -> None:
        bhs = await self._reader.readexactly(opcodes.BHS_BYTES)
        opcode = bhs[0] & opcodes.OPCODE_MASK
        if opcode not in _TARGET_OPCODES or bhs[4]:
            raise Malformed(f"an answer that begins with {bhs[:8].hex(' ')}")
        header, data_too = self._digests.values()
        length = pdu_bytes(bhs, header, data_too)
        assert length is not None
        rest = await self._read(length - opcodes.BHS_BYTES)
        data = self._checked(bhs, rest)
        if opcode == opcodes.LOGIN_RESPONSE:
            self._follow_login(bhs, data)
            if self._login is not None:
                await self._advance_login(self._login, bhs, data)
        elif self._login is not None:
            raise Malformed(f"{OPCODES[opcode]} during login")
        elif opcode == opcodes.R2T:
            self.answers.r2ts.append(bhs)
        elif opcode == opcodes.NOP_IN and int.from_bytes(bhs[16:20], "big") == PROBE_TAG:
            self.answers.probed = True
        if opcode != opcodes.DATA_IN or bhs[1] & 1:
            self.encoder.exp_stat_sn = int.from_bytes(bhs[24:28], "big") + 1 & 0xFFFFFFFF
        self.answers.heard[OPCODES[opcode]] += 1
        self._news.set()

    async def _read(self, count: int) -> bytes:
        """So many bytes, of which at most _KEPT_BYTES are kept."""
        kept = await self._reader.readexactly(min(count, _KEPT_BYTES))
        left = count - len(kept)
        while left:
            left -= len(await self._reader.readexactly(min(left, BUFFER_BYTES)))
        return kept

    def _checked(self, bhs: bytes, rest: bytes) -> bytes:
        """The data segment, after a look at the digests."""
        length = int.from_bytes(bhs[5:8], "big")
        header, data_too = self._digests.values()
        if header:
            if digest(bhs) != rest[:_DIGEST_BYTES]:
                raise Malformed("a wrong header digest")
            rest = rest[_DIGEST_BYTES:]
        padded = length + 3 & ~3
        if data_too and length > 0 and len(rest) == padded + _DIGEST_BYTES and digest(rest[:padded]) != rest[padded:]:
            raise Malformed("a wrong data digest")
        return rest[:length]

    def _follow_login(self, bhs: bytes, data: bytes) -> None:
        """Digests begin behind the last response of a login that agrees on them."""
        status = int.from_bytes(bhs[_STATUS_AT : _STATUS_AT + 2], "big")
        if status >> 8:
            self.answers.refused = self.answers.refused or status
            return
        with contextlib.suppress(TextError):
            for key, value in decode_pairs(data):
                if key in self._digests_agreed:
                    self._digests_agreed[key] = value == "CRC32C"
        header = pdus.parse(bhs)
        if header.transit and header.next_stage == 3:
            self._digests = dict(self._digests_agreed)
            self.logged_in = True
            self.encoder.header_digest, self.encoder.data_digest = self._digests.values()
            self.encoder.next_cmd_sn = header.exp_cmd_sn

    async def _advance_login(self, login: Login, bhs: bytes, data: bytes) -> None:
        login.receive(bhs, data)
        if isinstance(login.result, LoggedIn):
            parameters = login.result.parameters
            self.encoder.next_cmd_sn = login.result.cmd_sn
            self.encoder.segment_bytes_max = parameters.max_send_data_segment_length
        elif login.result is None:
            await self._write_login()
