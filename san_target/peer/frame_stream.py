"""Cuts a received byte stream into frames, copying only what belongs to a frame that has not arrived in full. Pure.

Nothing in a header is believed before its CRC was checked, so garbage never makes this side wait for, or hold memory
for, a frame that does not exist.
"""

from collections.abc import Callable
from typing import Final

from crc32c import crc32c

from san_target.peer.frames import (
    ANSWER_BYTES,
    ANSWER_KIND,
    ANSWER_STRUCT,
    CRC_BYTES,
    GOOD,
    MAGIC,
    OPERATION_LAST,
    PAYLOAD_BYTES_MAX,
    REFUSAL_BYTES_MAX,
    REQUEST_BYTES,
    REQUEST_KIND,
    REQUEST_STRUCT,
    WIRE_STATUS_LAST,
    Answer,
    FrameError,
    Request,
)

_UNPACK_REQUEST: Final = REQUEST_STRUCT.unpack_from
_UNPACK_ANSWER: Final = ANSWER_STRUCT.unpack_from
_NOTHING: Final = memoryview(b"")
SPARE_BUFFERS_MAX: Final = 4
SPARE_BYTES_MIN: Final = 65536


class SpareBuffers:
    """Memory for large frames that have not arrived in full, shared by many streams and used again.

    A new buffer costs a page fault for each page that it touches, as much as receiving the data. Sizes are powers of
    two, so that one serves many.
    """

    __slots__ = ("_spare",)

    def __init__(self) -> None:
        self._spare: list[memoryview] = []

    def take(self, size_bytes: int) -> memoryview:
        """A buffer of at least this size; its contents are undefined."""
        if size_bytes < SPARE_BYTES_MIN:
            return memoryview(bytearray(size_bytes))
        spare = self._spare
        for index in range(len(spare) - 1, -1, -1):
            if len(spare[index]) >= size_bytes:
                return spare.pop(index)
        return memoryview(bytearray(1 << (size_bytes - 1).bit_length()))

    def give_back(self, buffer: memoryview) -> None:
        spare = self._spare
        if len(buffer) >= SPARE_BYTES_MIN:
            spare.append(buffer)
            if len(spare) > SPARE_BUFFERS_MAX:
                spare.remove(min(spare, key=len))


class FrameStream:
    """One direction of one link. `stopped`: whoever takes the frames wants no more of them."""

    __slots__ = ("_buffer", "_have", "_needed", "_spare", "stopped")

    def __init__(self, spare: SpareBuffers) -> None:
        self._spare = spare
        self._buffer = _NOTHING  # holds the beginning of an unfinished frame
        self._have = 0
        self._needed = 0
        self.stopped = False

    @property
    def unfinished_bytes(self) -> int:
        """Bytes held of a frame that has not arrived in full."""
        return self._have

    @property
    def held_bytes(self) -> int:
        """Memory held for it."""
        return len(self._buffer)

    def received(self, data: memoryview) -> None:
        """Hand over the frames that `data` completes. Raises FrameError; then the stream cannot be used any more."""
        position = 0
        while self._have:
            take = min(self._needed - self._have, len(data) - position)
            self._buffer[self._have : self._have + take] = data[position : position + take]
            self._have += take
            position += take
            if self._have < self._needed:
                return
            buffer, self._buffer = self._buffer, _NOTHING
            have, self._have = self._have, 0
            consumed, needed = self._parse(buffer[:have])
            if not consumed and not self.stopped:  # it was only the header
                self._keep(buffer[:have], needed)
            self._spare.give_back(buffer)
            if self.stopped:
                return
        if position:
            data = data[position:]
        consumed, needed = self._parse(data)
        if consumed < len(data) and not self.stopped:
            self._keep(data[consumed:], needed)

    def _keep(self, beginning: memoryview, needed: int) -> None:
        """Keep the beginning of a frame, until it has `needed` bytes."""
        self._needed = needed
        self._have = len(beginning)
        self._buffer = self._spare.take(needed)
        self._buffer[: self._have] = beginning

    def _parse(self, data: memoryview) -> tuple[int, int]:
        """Hand over all whole frames: (bytes of them, bytes that the frame after them needs to be looked at again)."""
        raise NotImplementedError


class RequestStream(FrameStream):
    """What a requester sends. `taken` gets each request; its payload is valid only during that call."""

    __slots__ = ("_taken",)

    def __init__(self, taken: Callable[[Request], None], spare: SpareBuffers) -> None:
        super().__init__(spare)
        self._taken = taken

    def _parse(self, data: memoryview) -> tuple[int, int]:
        position, end = 0, len(data)
        taken = self._taken
        while end - position >= REQUEST_BYTES:
            (
                magic,
                kind,
                operation,
                flags,
                payload_bytes,
                payload_crc,
                request_id,
                volume_id,
                lba,
                blocks,
                generation,
                epoch,
                revision,
                tick,
                acknowledged,
                answer_bytes,
                header_crc,
            ) = _UNPACK_REQUEST(data, position)
            start = position + REQUEST_BYTES
            if magic != MAGIC or kind != REQUEST_KIND or crc32c(data[position : start - CRC_BYTES]) != header_crc:
                raise FrameError("damaged header of a request")
            if payload_bytes > PAYLOAD_BYTES_MAX or answer_bytes > PAYLOAD_BYTES_MAX or operation > OPERATION_LAST:
                raise FrameError(f"request {operation} with {payload_bytes} bytes, which wants {answer_bytes}")
            stop = start + payload_bytes
            if stop > end:
                return position, stop - position
            payload = data[start:stop] if payload_bytes else _NOTHING
            if payload_bytes and crc32c(payload) != payload_crc:
                raise FrameError("damaged payload of a request")
            position = stop
            taken(
                Request(
                    operation,
                    volume_id,
                    lba,
                    blocks,
                    payload,
                    answer_bytes,
                    generation,
                    epoch,
                    revision,
                    tick,
                    flags,
                    request_id,
                    acknowledged,
                )
            )
            if self.stopped:
                break
        return position, REQUEST_BYTES


class AnswerStream(FrameStream):
    """What an owner answers. `taken` gets each answer; its payload is valid only during that call."""

    __slots__ = ("_taken",)

    def __init__(self, taken: Callable[[Answer], None], spare: SpareBuffers) -> None:
        super().__init__(spare)
        self._taken = taken

    def _parse(self, data: memoryview) -> tuple[int, int]:
        position, end = 0, len(data)
        taken = self._taken
        while end - position >= ANSWER_BYTES:
            magic, kind, status, payload_bytes, payload_crc, request_id, detail, tick, header_crc = _UNPACK_ANSWER(
                data, position
            )
            start = position + ANSWER_BYTES
            if magic != MAGIC or kind != ANSWER_KIND or crc32c(data[position : start - CRC_BYTES]) != header_crc:
                raise FrameError("damaged header of an answer")
            payload_max = PAYLOAD_BYTES_MAX if status == GOOD else REFUSAL_BYTES_MAX
            if payload_bytes > payload_max or status > WIRE_STATUS_LAST:
                raise FrameError(f"answer {status} with {payload_bytes} bytes")
            stop = start + payload_bytes
            if stop > end:
                return position, stop - position
            payload = data[start:stop] if payload_bytes else _NOTHING
            if payload_bytes and crc32c(payload) != payload_crc:
                raise FrameError("damaged payload of an answer")
            position = stop
            taken(Answer(request_id, status, detail, payload, tick))
            if self.stopped:
                break
        return position, ANSWER_BYTES
