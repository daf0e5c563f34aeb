"""The owner's end of one connection: the handshake, then requests, each handed to the handler as it arrives.

Everything a peer can cause is bounded: what it has under way by its credits, which are counted here again; answers that
it does not take by those too; and bytes before it has proved who it is by the size of a handshake.
"""

import asyncio
from enum import Enum, auto
from functools import partial
from typing import TYPE_CHECKING, Final

import structlog

from san_target.peer import messages
from san_target.peer.frame_stream import RequestStream
from san_target.peer.frames import (
    ANSWER_BYTES,
    GOOD,
    REFUSAL_BYTES_MAX,
    Answer,
    FrameError,
    Operation,
    Payload,
    Request,
    Status,
    pack_answer,
)
from san_target.peer.handshake import Answering, Code, HandshakeStream, Refused, Step, Welcome, encode
from san_target.peer.identity import PeerIdentity
from san_target.peer.lanes import LANE_OF_OPERATION, LIMITS, Lane

if TYPE_CHECKING:
    from san_target.peer.service import PeerService
    from san_target.peer.transport import Transport

log = structlog.get_logger()

ANSWERS_PER_FLUSH: Final = 16
BYTES_PER_FLUSH: Final = 1 << 20
UNSENT_PAUSE_BYTES: Final = 4 << 20  # then no more requests are taken in until the peer has taken its answers
# Everything that may be under way, each request with an answer as long as it may be.
UNSENT_MAX_BYTES: Final = sum(each.bytes + each.requests * (ANSWER_BYTES + REFUSAL_BYTES_MAX) for each in LIMITS)
HANDSHAKE_TICKS_MAX: Final = 5
WAITING_TICKS_MAX: Final = 3
SILENT_TICKS_MAX: Final = 3

DEFECT: Final = b"a defect of the program; see its log"

_NOP: Final = int(Operation.NOP)
_CONTROL: Final = int(Operation.CONTROL)
_FAILED: Final = int(Status.FAILED)
_MALFORMED: Final = int(Status.MALFORMED)


class Phase(Enum):
    """HANDSHAKE: who is it? WAITING: for requests of its earlier links to end. ENDED: no bytes any more."""

    HANDSHAKE = auto()
    WAITING = auto()
    SERVING = auto()
    ENDED = auto()


class ServedLink:
    """A `transport.Receiver`. identity: set once the caller has proved who it is.

    finished: it has ended, and every request of it has been answered; a link that never served is at once.
    """

    __slots__ = (
        "_answering",
        "_by_operation",
        "_controls",
        "_handler",
        "_handshake",
        "_heard",
        "_in_batch",
        "_loop",
        "_outgoing",
        "_outgoing_answers",
        "_outgoing_bytes",
        "_outstanding",
        "_paused",
        "_scheduled",
        "_service",
        "_stream",
        "_tick",
        "_ticks",
        "_transport",
        "address",
        "finished",
        "identity",
        "phase",
        "reason",
    )

    def __init__(self, service: "PeerService", transport: "Transport", address: str, answering: Answering) -> None:
        self._service = service
        self._handler = service.handler
        self._transport = transport
        self._answering = answering
        self._handshake = HandshakeStream()
        self._stream = RequestStream(self._request, service.spare_buffers)
        self._loop = asyncio.get_running_loop()
        lanes = [Lane(each) for each in LIMITS]
        self._by_operation = [lanes[LANE_OF_OPERATION[operation]] for operation in Operation]
        # Requests that the handler has not answered: their lane, cost and answer_bytes.
        self._outstanding: dict[int, tuple[Lane, int, int]] = {}
        self._controls: dict[asyncio.Task[None], None] = {}
        self._outgoing: list[Payload] = []
        self._outgoing_answers = 0
        self._outgoing_bytes = 0
        self._scheduled = False
        self._in_batch = False
        self._paused = False
        self._heard = False
        self._tick = 0
        self._ticks = 0
        self.address = address
        self.phase = Phase.HANDSHAKE
        self.reason = ""
        self.identity = PeerIdentity("", 0, address)
        self.finished = asyncio.Event()

    # --- Receiver -----------------------------------------------------------------------------------------------------

    def received(self, data: memoryview) -> None:
        self._heard = True
        try:
            if self.phase is Phase.SERVING:
                self._batch(data)
            elif self.phase is Phase.HANDSHAKE:
                self._receive_handshake(data)
            elif self.phase is Phase.WAITING:
                raise FrameError("requests before the welcome")
        except FrameError as error:
            self.drop(str(error))
        except Refused as error:
            self.refuse(error)

    def lost(self, reason: str) -> None:
        self._end(reason)

    def drained(self) -> None:
        if self._paused and self.phase is Phase.SERVING:
            self._paused = False
            self._transport.resume()

    # --- Handshake ----------------------------------------------------------------------------------------------------

    def _receive_handshake(self, data: memoryview) -> None:
        payload = self._handshake.received(data)
        if payload is None:
            return
        if answer := self._answering.receive(payload):
            self._transport.send([answer])
        hello = self._answering.hello
        if self._answering.step is Step.PROVEN and hello is not None:
            self.identity = PeerIdentity(hello.member, hello.incarnation, self.address)
            self.phase = Phase.WAITING
            self._ticks = 0
            self._service.proven(self, hello)

    def refuse(self, refused: Refused) -> None:
        """Say why not, and end. Only before the link serves."""
        if self.phase is Phase.ENDED:
            return
        if refused.refusal is not None:
            self._transport.send([encode(refused.refusal)])
        self._transport.close()
        self._end(str(refused))

    def welcome(self) -> None:
        """Nothing of an earlier link is under way any more: requests may come."""
        self.phase = Phase.SERVING
        self._ticks = 0
        self._transport.send([encode(Welcome(self._service.tick_now(), LIMITS))])

    # --- Requests -----------------------------------------------------------------------------------------------------

    def _batch(self, data: memoryview) -> None:
        self._tick = self._service.tick_now()
        self._in_batch = True
        try:
            self._stream.received(data)
        finally:
            self._in_batch = False
            if self._outgoing:
                self._flush()

    def _request(self, request: Request) -> None:
        """Raises FrameError for what breaks the rules."""
        operation = request.operation
        request_id = request.request_id
        if operation == _NOP:
            if request_id or request.payload or request.answer_bytes:
                raise FrameError("keepalive with contents")
            self._queue(Answer(0))
            return
        lane = self._by_operation[operation]
        cost_bytes = len(request.payload) + request.answer_bytes
        if lane.requests >= lane.requests_max or lane.bytes + cost_bytes > lane.bytes_max:
            raise FrameError("more requests than were granted")
        outstanding = self._outstanding
        if not request_id or request_id in outstanding:
            raise FrameError(f"request id {request_id} is in use")
        lane.requests += 1
        lane.bytes += cost_bytes
        outstanding[request_id] = (lane, cost_bytes, request.answer_bytes)
        if operation == _CONTROL:
            self._begin_control(request)
            return
        try:
            self._handler.handle(self.identity, request, self._answer)
        except Exception as error:
            self._defect(request_id, error)

    def _defect(self, request_id: int, error: BaseException) -> None:
        """A mistake of ours costs the request, not the link."""
        log.error("a request of a peer failed by a defect of this program", peer=self.identity.name, exc_info=error)
        if request_id in self._outstanding:
            self._answer(Answer(request_id, _FAILED, payload=DEFECT))

    def _answer(self, answer: Answer) -> None:
        """How a request ended; the handler calls this once for each. Also when the link has ended."""
        entry = self._outstanding.get(answer.request_id)
        if entry is None:
            raise AssertionError(f"answer {answer.request_id} to no request, or a second one")
        lane, cost_bytes, answer_bytes = entry
        if answer.status != GOOD:
            if len(answer.payload) > REFUSAL_BYTES_MAX:
                answer.payload = answer.payload[:REFUSAL_BYTES_MAX]  # a reason may be any text
        elif len(answer.payload) > answer_bytes:
            log.error("a defect of this program: a longer answer than was asked for", peer=self.identity.name)
            answer = Answer(answer.request_id, _FAILED, payload=DEFECT)
        if self.phase is Phase.SERVING:
            self._queue(answer)
        del self._outstanding[answer.request_id]
        lane.requests -= 1
        lane.bytes -= cost_bytes
        if self.phase is Phase.ENDED and not self._outstanding:
            self._finish()

    def _queue(self, answer: Answer) -> None:
        outgoing = self._outgoing
        payload = answer.payload
        if self._in_batch:
            outgoing.append(pack_answer(answer, self._tick))
            if payload:
                outgoing.append(payload)
                self._outgoing_bytes += len(payload)
            self._outgoing_answers += 1
            if self._outgoing_answers >= ANSWERS_PER_FLUSH or self._outgoing_bytes >= BYTES_PER_FLUSH:
                self._flush()
            return
        outgoing.append(pack_answer(answer, self._service.tick_now()))
        if payload:
            outgoing.append(payload)
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._turn_ends)

    def _turn_ends(self) -> None:
        self._scheduled = False
        if self._outgoing:
            self._flush()

    def _flush(self) -> None:
        outgoing, self._outgoing = self._outgoing, []
        self._outgoing_answers = self._outgoing_bytes = 0
        if self.phase is not Phase.SERVING:
            return
        self._transport.send(outgoing)
        self._service.memory.used_bytes = 0
        unsent_bytes = self._transport.unsent_bytes
        if unsent_bytes > UNSENT_PAUSE_BYTES:
            if unsent_bytes > UNSENT_MAX_BYTES:
                self.drop("takes no answers")
            elif not self._paused:
                self._paused = True
                self._transport.pause()

    # --- Control messages ---------------------------------------------------------------------------------------------

    def _begin_control(self, request: Request) -> None:
        try:
            message = messages.decode(request.payload)
        except messages.MessageError as error:
            self._answer(_refusal(request.request_id, _MALFORMED, str(error)))
            return
        task = self._loop.create_task(self._control(request.request_id, message))
        self._controls[task] = None
        task.add_done_callback(partial(self._control_ended, request.request_id))

    async def _control(self, request_id: int, message: messages.Message) -> None:
        try:
            reply = messages.encode(await self._handler.control(self.identity, message))
            answer_bytes = self._outstanding[request_id][2]
            if len(reply) > answer_bytes:
                text = f"a reply of {len(reply)} bytes, only {answer_bytes} were asked for"
                answer = _refusal(request_id, _FAILED, text)
            else:
                answer = Answer(request_id, payload=reply)
        except messages.ControlRefused as error:
            answer = _refusal(request_id, _FAILED, str(error))
        except Exception as error:
            self._defect(request_id, error)
            return
        self._answer(answer)

    def _control_ended(self, request_id: int, task: asyncio.Task[None]) -> None:
        self._controls.pop(task, None)
        if task.cancelled():
            # It cannot say so itself: it may not even have begun.
            self._answer(_refusal(request_id, _FAILED, "the link has ended"))
        elif (error := task.exception()) is not None:
            log.error("a control message failed by a defect of this program", exc_info=error)

    # --- Life ---------------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Called each second: give up those that are silent, or do not get on."""
        self._ticks = 0 if self._heard and self.phase is Phase.SERVING else self._ticks + 1
        self._heard = False
        if self.phase is Phase.HANDSHAKE and self._ticks > HANDSHAKE_TICKS_MAX:
            self.drop("the handshake takes too long")
        elif self.phase is Phase.WAITING and self._ticks > WAITING_TICKS_MAX:
            self.refuse(Refused(Code.BUSY, "requests of the link before have not ended yet", send=True))
        elif self.phase is Phase.SERVING and self._ticks > SILENT_TICKS_MAX:
            self.drop("no sign of life")

    def drop(self, reason: str) -> None:
        """End at once; what has arrived and was not handled is discarded."""
        if self.phase is not Phase.ENDED:
            self._transport.abort()
            self._end(reason)

    def _end(self, reason: str) -> None:
        if self.phase is Phase.ENDED:
            return
        served = self.phase is Phase.SERVING
        self.phase = Phase.ENDED
        self.reason = reason
        self.identity.lost = True
        self._stream.stopped = True
        self._outgoing = []
        self._service.ended(self, served)
        if served:
            for task in list(self._controls):
                task.cancel()
            try:
                self._handler.lost(self.identity)
            except Exception as error:
                log.error("a defect of this program, at the end of a peer link", exc_info=error)
        if not self._outstanding:
            self._finish()

    def _finish(self) -> None:
        if not self.finished.is_set():
            self.finished.set()
            self._service.finished(self)


def _refusal(request_id: int, status: int, reason: str) -> Answer:
    return Answer(request_id, status, payload=reason.encode()[:REFUSAL_BYTES_MAX])
