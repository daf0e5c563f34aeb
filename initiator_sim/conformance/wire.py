"""One TCP connection, PDU by PDU, for whoever wants to say exactly what is on it. Packets are `initiator_sim.packets`.

Nothing is done by itself: no number is filled in, nothing is answered, nothing is judged but the digests.
"""

import asyncio
from typing import Any, Final

from initiator_sim.conformance.check import Failed
from initiator_sim.nexus import split_address
from initiator_sim.packets import ISCSI, digests, pdu_bytes
from san_target.wire.digest import digest
from san_target.wire.opcodes import BHS_BYTES

ANSWER_S: Final = 5.0
_READ_BYTES: Final = 1 << 18


class Gone(Exception):
    """The target closed the connection."""


class Unreachable(Exception):
    """No connection could be made."""


class Silence(Exception):
    """Nothing came in time."""


def named(pdu: Any) -> str:
    """A packet by its name in RFC 7143, for people."""
    return str(pdu.name).removeprefix("iSCSI ")


class Wire:
    """One connection. `header_digest` and `data_digest` say what PDUs carry from now on, in both directions.

    patience_s: how long something that must come is waited for.
    """

    def __init__(
        self, address: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, patience_s: float = ANSWER_S
    ) -> None:
        self.address = address
        self.patience_s = patience_s
        self.header_digest = False
        self.data_digest = False
        self._reader = reader
        self._writer = writer
        self._received = bytearray()

    @classmethod
    async def open(cls, address: str, patience_s: float = ANSWER_S) -> "Wire":
        """Raises Unreachable."""
        host, port = split_address(address)
        try:
            async with asyncio.timeout(patience_s):
                reader, writer = await asyncio.open_connection(host, port)
        except TimeoutError:
            raise Unreachable(f"{address}: no answer within {patience_s:g} s") from None
        except OSError as error:
            raise Unreachable(f"{address}: {error.strerror or error}") from None
        return cls(address, reader, writer, patience_s)

    def encode(self, pdu: Any) -> bytes:
        """The bytes of a packet, with the digests of this connection unless it has its own."""
        with digests(self.header_digest, self.data_digest):
            return bytes(pdu)

    async def send(self, *pdus: Any) -> None:
        """Send packets or bytes, in one go. Raises Gone."""
        data = b"".join(each if isinstance(each, bytes) else self.encode(each) for each in pdus)
        try:
            self._writer.write(data)
            await self._writer.drain()
        except (ConnectionError, RuntimeError) as error:  # RuntimeError: uvloop's word for a closed transport
            raise Gone(str(error)) from None

    async def receive_bytes(self, within_s: float | None = None) -> bytes:
        """The next PDU, its digests checked and taken away. Raises Gone, Silence; Failed for a wrong digest."""
        within_s = self.patience_s if within_s is None else within_s
        try:
            async with asyncio.timeout(within_s):
                while (wanted := self._next_bytes()) is None or len(self._received) < wanted:
                    part = await self._reader.read(_READ_BYTES)
                    if not part:
                        raise Gone("the target closed the connection")
                    self._received += part
        except TimeoutError:
            raise Silence(f"nothing came within {within_s:g} s") from None
        except ConnectionError as error:
            raise Gone(str(error)) from None
        pdu = bytes(self._received[:wanted])
        del self._received[:wanted]
        return self._without_digests(pdu)

    def _next_bytes(self) -> int | None:
        return pdu_bytes(bytes(self._received[:BHS_BYTES]), self.header_digest, self.data_digest)

    def _without_digests(self, pdu: bytes) -> bytes:
        header_end = BHS_BYTES + 4 * pdu[4]
        header, rest = pdu[:header_end], pdu[header_end:]
        if self.header_digest:
            rest, found = rest[4:], rest[:4]
            if found != digest(header):
                raise Failed("a PDU with a wrong header digest", "CRC32C over the header (RFC 7143 13.1)")
        if self.data_digest and rest:
            rest, found = rest[:-4], rest[-4:]
            if found != digest(rest):
                raise Failed("a PDU with a wrong data digest", "CRC32C over data and padding (RFC 7143 13.1)")
        return header + rest

    async def receive(self, within_s: float | None = None) -> Any:
        """The next PDU as a packet. Raises as `receive_bytes`."""
        with digests(False, False):
            return ISCSI(await self.receive_bytes(within_s))

    async def ends(self) -> bool:
        """Does the target close the connection in time? What it says before that is dropped."""
        try:
            async with asyncio.timeout(self.patience_s):
                while await self._reader.read(_READ_BYTES):
                    pass
        except TimeoutError:
            return False
        except ConnectionError:
            pass
        return True

    def close(self) -> None:
        self._writer.close()
