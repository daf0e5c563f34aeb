"""Cuts a received byte stream into PDUs (RFC 7143 11.2), with limits and digests, copying as little as possible.

All connections of a member receive into one large shared buffer, so an idle connection costs no buffer. Between two
receives a framer keeps only what belongs to an unfinished PDU: a short tail is put back at the front of the shared
buffer; a PDU longer than `OWN_BUFFER_BYTES` is lent a buffer of its own into which the rest is received directly.
"""

from collections.abc import Generator
from struct import Struct
from typing import Final

from san_target.wire.digest import DIGEST_BYTES, digest
from san_target.wire.opcodes import BHS_BYTES

OWN_BUFFER_BYTES: Final = 16384
_SPARE_BUFFERS_MAX: Final = 8
_EMPTY: Final = memoryview(b"")
_LENGTHS: Final = Struct(">4xI").unpack_from  # TotalAHSLength << 24 | DataSegmentLength


class FramingError(Exception):
    """The stream cannot be followed any further; the connection must end (RFC 7143 7.7, 7.8).

    `bhs` is the header of the PDU at fault, for a Reject, where it could be trusted; else b"". `digest`: a digest
    was wrong (the data digest, if the header can be trusted).
    """

    def __init__(self, message: str, bhs: bytes = b"", digest: bool = False) -> None:
        super().__init__(message)
        self.bhs = bhs
        self.digest = digest


class Pdu:
    """One PDU: the 48-byte header, the AHS bytes, the data without padding.

    `data` may lie in a receive buffer: it is valid until the next PDU is asked for, unless `owned` (after `keep`).
    """

    __slots__ = ("ahs", "bhs", "data", "owned")

    def __init__(self, bhs: bytes, ahs: bytes, data: memoryview, owned: bool) -> None:
        self.bhs = bhs
        self.ahs = ahs
        self.data = data
        self.owned = owned

    def keep(self) -> memoryview:
        """The data in memory that outlives this PDU."""
        if not self.owned:
            self.data = memoryview(bytes(self.data))
            self.owned = True
        return self.data


class LargeBuffers:
    """Buffers for unfinished large PDUs, lent to the framers of many connections and used again.

    A new buffer costs a page fault for each page it touches, as much as receiving the data into it. Sizes are powers
    of two, so that one serves many, and nobody holds much more memory than the PDU that he announced.
    """

    __slots__ = ("_spare", "size_bytes")

    def __init__(self, data_segment_max: int) -> None:
        # The longest PDU: header, 255 words of AHS, data with padding, two digests.
        self.size_bytes = BHS_BYTES + 255 * 4 + data_segment_max + 3 + 2 * DIGEST_BYTES
        self._spare: list[memoryview] = []

    def take(self, pdu_bytes: int) -> memoryview:
        """A buffer of at least this size."""
        spare = self._spare
        for index in range(len(spare) - 1, -1, -1):
            if len(spare[index]) >= pdu_bytes:
                return spare.pop(index)
        return memoryview(bytearray(min(self.size_bytes, 1 << (pdu_bytes - 1).bit_length())))

    def give_back(self, buffer: memoryview) -> None:
        spare = self._spare
        spare.append(buffer)
        if len(spare) > _SPARE_BUFFERS_MAX:
            spare.remove(min(spare, key=len))


class Framer:
    """One connection's receive side. Call `buffers`, receive into them, then iterate over `received`.

    data_segment_max: the MaxRecvDataSegmentLength that this side declared, in bytes; it and the digests may be changed
    between two PDUs (digests start with the first PDU after login). large_buffers: shared with other framers, or its
    own. unread: the iteration over `received` was given up; what it had left comes with the next `buffers` and
    `received`, which may then be for no new bytes at all.
    """

    __slots__ = (
        "_large",
        "_large_buffers",
        "_large_bytes",
        "_large_have",
        "_tail",
        "data_digest",
        "data_segment_max",
        "header_digest",
        "unread",
    )

    def __init__(self, data_segment_max: int, large_buffers: LargeBuffers | None = None) -> None:
        self.data_segment_max = data_segment_max
        self.header_digest = False
        self.data_digest = False
        self._tail = b""
        self._large_buffers = large_buffers or LargeBuffers(data_segment_max)
        self._large: memoryview | None = None
        self._large_bytes = 0  # of the PDU that is received into it
        self._large_have = 0
        self.unread = False

    def buffers(self, shared: memoryview) -> list[memoryview]:
        """Where the next bytes of the stream go, in order. `shared` must hold more than OWN_BUFFER_BYTES."""
        if self._large is not None:
            return [self._large[self._large_have : self._large_bytes], shared]
        tail_bytes = len(self._tail)
        if tail_bytes:
            shared[:tail_bytes] = self._tail
            return [shared[tail_bytes:]]
        return [shared]

    @property
    def unfinished_bytes(self) -> int:
        """Bytes held of a PDU that has not arrived in full."""
        return self._large_have if self._large is not None else len(self._tail)

    def received(self, shared: memoryview, count: int) -> Generator[Pdu, None, None]:
        """Yield the PDUs completed by `count` bytes received into `buffers(shared)`. Raises FramingError.

        Whoever does not want all of them now calls `close()` on this generator.
        """
        self.unread = False
        position = 0
        try:
            if self._large is not None:
                into_large = min(count, self._large_bytes - self._large_have)
                self._large_have += into_large
                count -= into_large
                if self._large_have < self._large_bytes:
                    return
                whole, self._large = self._large, None
                yield self._cut(whole, 0, self._large_bytes)
                self._large_buffers.give_back(whole)
            else:
                count += len(self._tail)
                self._tail = b""
            plain = not (self.header_digest or self.data_digest)
            data_segment_max = self.data_segment_max
            while count - position >= BHS_BYTES:
                (lengths,) = _LENGTHS(shared, position)
                start = position
                if plain and lengths <= data_segment_max:
                    # No AHS, no digests: the common case, without the calls below.
                    data = position + BHS_BYTES
                    end = data + (lengths + 3 & ~3)
                    if end > count:
                        break
                    position = end
                    bhs = bytes(shared[start:data])
                    yield Pdu(bhs, b"", shared[data : data + lengths] if lengths else _EMPTY, not lengths)
                else:
                    end = position + self._pdu_bytes(shared, position, count)
                    if end > count:
                        break
                    position = end
                    yield self._cut(shared, start, end)
                plain = not (self.header_digest or self.data_digest)  # a login may just have switched them on
        except GeneratorExit:
            self._tail = bytes(shared[position:count])
            self.unread = bool(self._tail)
            raise
        if position < count:
            self._save(shared, position, count)

    def _pdu_bytes(self, view: memoryview, position: int, count: int) -> int:
        """The length of the PDU that starts at `position`, with AHS, digests and padding.

        Only that of its headers, while view[:count] does not hold a header digest that has to be checked first.
        """
        if self.header_digest:
            end = position + BHS_BYTES + (view[position + 4] << 2)
            if end + 4 > count:
                return end + 4 - position
            if view[end : end + 4] != digest(view[position:end]):
                # RFC 7143 7.8: nothing in the header can be trusted, lengths least, so the stream cannot be followed.
                raise FramingError("header digest error", digest=True)
        data_bytes = view[position + 5] << 16 | view[position + 6] << 8 | view[position + 7]
        if data_bytes == 0:
            return BHS_BYTES + (view[position + 4] << 2) + (4 if self.header_digest else 0)
        if data_bytes > self.data_segment_max:
            raise FramingError(
                f"data segment of {data_bytes} bytes, above the declared maximum of {self.data_segment_max}",
                bytes(view[position : position + BHS_BYTES]),
            )
        digests = (4 if self.header_digest else 0) + (4 if self.data_digest else 0)
        return BHS_BYTES + (view[position + 4] << 2) + (data_bytes + 3 & ~3) + digests

    def _cut(self, view: memoryview, position: int, end: int) -> Pdu:
        """The PDU at view[position:end], whose header is checked, and its data digest."""
        bhs = bytes(view[position : position + BHS_BYTES])
        at = position + BHS_BYTES
        ahs = b""
        if bhs[4]:
            ahs = bytes(view[at : at + (bhs[4] << 2)])
            at += bhs[4] << 2
        if self.header_digest:
            at += 4
        if at == end:
            return Pdu(bhs, ahs, _EMPTY, True)
        data_bytes = bhs[5] << 16 | bhs[6] << 8 | bhs[7]
        # RFC 7143 11.2.3: the data digest covers the padding too.
        if self.data_digest and view[end - 4 : end] != digest(view[at : end - 4]):
            raise FramingError("data digest error", bhs, digest=True)
        return Pdu(bhs, ahs, view[at : at + data_bytes], False)

    def _save(self, shared: memoryview, position: int, count: int) -> None:
        if count - position >= BHS_BYTES:
            pdu_bytes = self._pdu_bytes(shared, position, count)
            if pdu_bytes > OWN_BUFFER_BYTES:
                self._large = self._large_buffers.take(pdu_bytes)
                self._large_bytes = pdu_bytes
                self._large_have = count - position
                self._large[: self._large_have] = shared[position:count]
                return
        self._tail = bytes(shared[position:count])
