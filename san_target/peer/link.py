"""The client side of a link: requests to one life of one other member, over one connection after the other.

Two ways: `try_send` takes a request that can leave now and calls back with its answer - no task, future or exception -
and `request` waits for connection and credit. Requests of one turn of the event loop leave together.

Kept here: each request that was taken ends with exactly one answer; if the connection ends first, with LOST or UNSENT.
A connection made after that is welcomed by the other member only when what it had got over the earlier ones has ended
(answered, or discarded unread); so whoever awaits `settled` after LOST knows that the request is not running any more.
"""

import asyncio
import math
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final, Literal

import structlog

from san_target.peer import messages
from san_target.peer.caller import CallerConnection, LinkError, connect, new_nonce
from san_target.peer.frame_stream import SpareBuffers
from san_target.peer.frames import (
    GOOD,
    PAYLOAD_BYTES_MAX,
    Answer,
    FrameError,
    Operation,
    Payload,
    Request,
    Status,
    pack_request,
)
from san_target.peer.handshake import Code
from san_target.peer.lanes import LANE_OF_OPERATION, LaneLimits, LaneName
from san_target.peer.send_lanes import Done, SendLane, Waiter, granted

if TYPE_CHECKING:
    from san_target.peer.handshake import Welcome
    from san_target.peer.identity import OwnIdentity
    from san_target.peer.transport import PeerNetwork

log = structlog.get_logger()

CONNECT_S: Final = 3.0
WELCOME_S: Final = 5.0
BACK_OFF_MIN_S: Final = 0.05
BACK_OFF_MAX_S: Final = 1.0
LOOK_S: Final = 0.5  # how often deadlines are looked at
LOOKS_PER_KEEPALIVE: Final = 2
SILENT_LOOKS_MAX: Final = 6
TICKS_KEPT: Final = 16
WAITING_MAX: Final = 1024  # requests for credit, in each lane
COPIED_BYTES_MAX: Final = 16384  # a view of this size is copied; a longer one is worth a system call of its own
REQUESTS_PER_FLUSH: Final = 8  # of one turn: then the other member works on them while this one goes on
CONTROL_ANSWER_BYTES: Final = 65536

LinkState = Literal["connecting", "up", "waiting", "stopped"]

_LOST: Final = int(Status.LOST)
_TIMED_OUT: Final = int(Status.TIMED_OUT)
_UNSENT: Final = int(Status.UNSENT)
_NOTHING: Final = LaneLimits(requests=0, bytes=0)


class PeerUnreachable(Exception):
    """There is no answer. maybe_executed: the request left, and may have been executed or be executed yet."""

    def __init__(self, reason: str, maybe_executed: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        self.maybe_executed = maybe_executed


class PeerRefused(Exception):
    """The other member does not do what it was asked; the message says why."""


# What is remembered of a request under way: whom to call (None: given up), its lane, cost and answer_bytes, deadline.
_Pending = tuple[Done | None, SendLane, int, int, float]


class PeerLink:
    """A link to one life (`incarnation`) of the member `name` at `address`.

    state    connecting | up | waiting (for the next try) | stopped
    reason   why it is not up, for people
    tick     the other member's, as last heard; 0 = never
    fenced   the other member takes nothing any more from this life of this member
    """

    __slots__ = (
        "_by_operation",
        "_connection",
        "_ids",
        "_loop",
        "_network",
        "_on_change",
        "_outgoing",
        "_own",
        "_pending",
        "_queued",
        "_reported",
        "_scheduled",
        "_spare",
        "_task",
        "_ticks",
        "_up",
        "_waiting",
        "address",
        "fenced",
        "incarnation",
        "losses",
        "name",
        "reason",
        "requests_sent",
        "state",
        "tick",
    )

    def __init__(
        self,
        network: "PeerNetwork",
        own: "OwnIdentity",
        name: str,
        incarnation: int,
        address: str,
        request_ids: Iterator[int],
        spare: SpareBuffers,
        on_change: "Callable[[PeerLink], None] | None" = None,
    ) -> None:
        """request_ids, spare: shared by all links of this life of this member. on_change: called when the link goes up
        or down. Starts connecting at once; `stop` ends it."""
        self.name: Final = name
        self.incarnation: Final = incarnation
        self.address: Final = address
        self.state: LinkState = "connecting"
        self.reason = "connecting"
        self.tick = 0
        self._ticks: deque[tuple[float, int]] = deque(maxlen=TICKS_KEPT)
        self.fenced = False
        self.losses = 0
        self.requests_sent = 0
        self._network = network
        self._own = own
        self._ids = request_ids
        self._spare = spare
        self._on_change = on_change
        self._loop = asyncio.get_running_loop()
        self._waiting: tuple[deque[Waiter], ...] = tuple(deque() for _ in LaneName)
        self._pending: dict[int, _Pending] = {}
        self._outgoing: list[Payload] = []
        self._queued: list[int] = []  # requests in `_outgoing`
        self._scheduled = False
        self._connection: CallerConnection | None = None
        self._reported = ""
        self._up = asyncio.Event()
        self._by_operation: list[SendLane]
        self._grant((_NOTHING,) * len(LaneName))
        self._task = self._loop.create_task(self._run(), name=f"peer link to {name}")
        self._task.add_done_callback(_report_defect)

    def __repr__(self) -> str:
        return f"PeerLink({self.name!r}, incarnation={self.incarnation}, {self.state})"

    # --- The fast way -------------------------------------------------------------------------------------------------

    def try_send(self, request: Request, done: Done, deadline_s: float = math.inf) -> bool:
        """Send a request if that can be done now; False: nothing has happened.

        True: `done` will be called once, from the event loop; the payload of its answer is valid only during that call.
        A payload that is a memoryview may be changed when this returns; bytes are kept. deadline_s: by `now_s`, looked
        at every LOOK_S; then the answer is TIMED_OUT.

        A request that is under way here already, and that its sender has given up, is not sent again: its answer will
        be for this `done`.
        """
        if request.request_id in self._pending:
            self._take_over(request.request_id, done, deadline_s)
            return True
        payload = request.payload
        lane = self._by_operation[request.operation]
        cost_bytes = len(payload) + request.answer_bytes
        if lane.requests >= lane.requests_max or lane.bytes + cost_bytes > lane.bytes_max or lane.waiting:
            return False
        self._send(request, lane, cost_bytes, done, deadline_s)
        return True

    def _send(self, request: Request, lane: SendLane, cost_bytes: int, done: Done, deadline_s: float) -> None:
        request_id = request.request_id
        if not request_id:
            request_id = request.request_id = next(self._ids)
        if cost_bytes > PAYLOAD_BYTES_MAX and max(len(request.payload), request.answer_bytes) > PAYLOAD_BYTES_MAX:
            raise AssertionError(f"a request of {len(request.payload)} bytes, which wants {request.answer_bytes}")
        header = pack_request(request)
        lane.requests += 1
        lane.bytes += cost_bytes
        self._pending[request_id] = (done, lane, cost_bytes, request.answer_bytes, deadline_s)
        self._queued.append(request_id)
        outgoing = self._outgoing
        outgoing.append(header)
        payload = request.payload
        if payload:
            if type(payload) is bytes:
                outgoing.append(payload)
            elif len(payload) <= COPIED_BYTES_MAX:
                outgoing.append(bytes(payload))
            else:
                outgoing.append(payload)
                self.flush()
                return
        if len(self._queued) >= REQUESTS_PER_FLUSH:
            self.flush()
        elif not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._turn_ends)

    def _take_over(self, request_id: int, done: Done, deadline_s: float) -> None:
        former, lane, cost_bytes, answer_bytes, _deadline_s = self._pending[request_id]
        if former is not None:
            raise AssertionError(f"request {request_id} is under way already")
        self._pending[request_id] = (done, lane, cost_bytes, answer_bytes, deadline_s)

    def _turn_ends(self) -> None:
        self._scheduled = False
        self.flush()

    def flush(self) -> None:
        """Send what has been collected now, instead of at the end of this turn."""
        outgoing, connection = self._outgoing, self._connection
        if outgoing and connection is not None:
            self._outgoing = []
            self.requests_sent += len(self._queued)
            self._queued.clear()
            connection.send(outgoing)

    def _answered(self, answer: Answer) -> None:
        """An answer has arrived. Raises FrameError for one that nobody asked for."""
        request_id = answer.request_id
        entry = self._pending.pop(request_id, None)
        if answer.tick != self.tick:
            self._note_tick(answer.tick)
        if entry is None:
            if request_id:
                raise FrameError("answer to no request")
            return  # to a keepalive
        done, lane, cost_bytes, answer_bytes, _deadline_s = entry
        lane.requests -= 1
        lane.bytes -= cost_bytes
        if answer.status == GOOD and len(answer.payload) > answer_bytes:
            self._finish(done, Answer(request_id, _LOST))
            raise FrameError(f"answer of {len(answer.payload)} bytes, {answer_bytes} were asked for")
        if done is not None:
            try:
                done(answer)
            except Exception as error:
                log.error("a defect of this program, at an answer of a peer", peer=self.name, exc_info=error)
        if lane.waiting:
            self._serve_waiting(lane)

    def _finish(self, done: Done | None, answer: Answer) -> None:
        if done is not None:
            try:
                done(answer)
            except Exception as error:
                log.error("a defect of this program, at a lost request", peer=self.name, exc_info=error)

    # --- The way that waits -------------------------------------------------------------------------------------------

    async def request(self, request: Request, deadline_s: float) -> Answer:
        """Send a request when there are a connection and credit, and return its answer, whatever its status.

        deadline_s: by `now_s`. The payload must stay unchanged until this returns. Raises PeerUnreachable.
        """
        future: asyncio.Future[Answer] = self._loop.create_future()

        def done(answer: Answer) -> None:
            if not future.done():
                answer.payload = bytes(answer.payload)
                future.set_result(answer)

        waiter = None
        if not self.try_send(request, done):
            waiter = self._wait_for_credit(request, done)
        try:
            async with asyncio.timeout(max(0.0, deadline_s - self._network.now_s())):
                answer = await future
        except TimeoutError:
            raise PeerUnreachable(*self._withdraw(request, waiter)) from None
        except asyncio.CancelledError:
            self._withdraw(request, waiter)
            raise
        if answer.status >= _LOST:
            raise PeerUnreachable(f"{self._place}: {self.reason or 'connection lost'}", answer.status != _UNSENT)
        return answer

    @property
    def _place(self) -> str:
        return f"member {self.name!r} at {self.address}"

    def _wait_for_credit(self, request: Request, done: Done) -> Waiter:
        waiting = self._waiting[LANE_OF_OPERATION[request.operation]]
        if self.state == "stopped" or len(waiting) >= WAITING_MAX:
            reason = self.reason if self.state == "stopped" else f"{len(waiting)} requests wait for it already"
            raise PeerUnreachable(f"{self._place}: {reason}", False)
        waiter = Waiter(request, done, len(request.payload) + request.answer_bytes)
        waiting.append(waiter)
        return waiter

    def _withdraw(self, request: Request, waiter: Waiter | None) -> tuple[str, bool]:
        """Give a request up: why it had not ended, and whether it may be executed."""
        waiting = self._waiting[LANE_OF_OPERATION[request.operation]]
        if waiter is not None and waiter in waiting:
            waiting.remove(waiter)
            return f"{self._place}: {self.reason or 'busy'}", False
        entry = self._pending.get(request.request_id)
        if entry is not None:
            # Its credit stays taken until the other member is done with it.
            self._pending[request.request_id] = (None, *entry[1:])
        return f"{self._place}: no answer in time", True

    def _serve_waiting(self, lane: SendLane) -> None:
        waiting = lane.waiting
        while waiting and lane.fits(waiting[0].cost_bytes):
            waiter = waiting.popleft()
            self._send(waiter.request, lane, waiter.cost_bytes, waiter.done, math.inf)

    def _note_tick(self, tick: int) -> None:
        self.tick = tick
        self._ticks.append((self._network.now_s(), tick))

    def tick_at(self, moment_s: float) -> int:
        """The newest tick that had been heard at that moment, by `now_s`: what a request is stamped with whose
        initiator was heard then. 0: none that is remembered."""
        for heard_s, tick in reversed(self._ticks):
            if heard_s <= moment_s:
                return tick
        return 0

    async def ask(
        self, message: messages.Message, timeout_s: float, answer_bytes: int = CONTROL_ANSWER_BYTES
    ) -> messages.Message:
        """A control message, and what the other member says to it. answer_bytes: of the longest reply.

        Raises PeerUnreachable, PeerRefused.
        """
        request = Request(Operation.CONTROL, payload=messages.encode(message), answer_bytes=answer_bytes)
        answer = await self.request(request, self._network.now_s() + timeout_s)
        if answer.status != GOOD:
            reason = bytes(answer.payload).decode(errors="replace") or Status(answer.status).name
            raise PeerRefused(f"{self._place}: {reason}")
        try:
            return messages.decode(answer.payload)
        except messages.MessageError as error:
            raise PeerRefused(f"{self._place}: {error}") from None

    async def settled(self, deadline_s: float) -> None:
        """Return when the link is up. Whatever ended with LOST before this call has then ended at the other member.

        (Not what TIMED_OUT: `reset` first.) Raises PeerUnreachable.
        """
        try:
            async with asyncio.timeout(max(0.0, deadline_s - self._network.now_s())):
                await self._up.wait()
        except TimeoutError:
            raise PeerUnreachable(f"{self._place}: {self.reason}", True) from None
        if self.state == "stopped":
            raise PeerUnreachable(f"{self._place}: {self.reason}", True)

    # --- Life ---------------------------------------------------------------------------------------------------------

    def reset(self, reason: str) -> None:
        """End the present connection, and make another one; `settled` waits for that."""
        if self._connection is not None and self.state == "up":
            self._connection.abort(reason)

    def stop(self, reason: str) -> None:
        """End for ever. What is under way ends with LOST, from the event loop."""
        if self.state == "stopped":
            return
        connection = self._connection
        self._down("stopped", reason)
        if connection is not None:
            connection.abort(reason)
        self._up.set()  # whoever waits for it, waits in vain
        self._task.cancel()
        self._loop.call_soon(self._fail_waiting)

    def _fail_waiting(self) -> None:
        for waiting in self._waiting:
            while waiting:
                waiter = waiting.popleft()
                self._finish(waiter.done, Answer(waiter.request.request_id, _UNSENT))

    async def _run(self) -> None:
        back_off_s = BACK_OFF_MIN_S
        while True:
            self.state = "connecting"
            nonce = new_nonce(self._network)
            connection = CallerConnection(
                self._own, self.name, self.incarnation, nonce, self._answered, self._ended, self._spare
            )
            self._connection = connection
            try:
                welcome = await connect(self._network, self.address, connection, CONNECT_S, WELCOME_S)
            except LinkError as error:
                self.fenced = connection.refused is Code.OLD_INCARNATION
                self._down("waiting", str(error))
            else:
                back_off_s = BACK_OFF_MIN_S
                self._go_up(welcome)
                await self._keep_alive(connection)
            await self._network.sleep(back_off_s)
            back_off_s = min(2 * back_off_s, BACK_OFF_MAX_S)

    def _go_up(self, welcome: "Welcome") -> None:
        self._note_tick(welcome.tick)
        self.state, self.reason, self._reported = "up", "", ""
        self._grant(welcome.lanes)
        log.info("peer link up", peer=self.name, incarnation=self.incarnation, address=self.address)
        self._up.set()
        for lane in {id(lane): lane for lane in self._by_operation}.values():
            self._serve_waiting(lane)
        if self._on_change is not None:
            self._on_change(self)

    def _grant(self, limits: tuple[LaneLimits, ...]) -> None:
        self._by_operation = granted(limits, self._waiting)

    async def _keep_alive(self, connection: CallerConnection) -> None:
        """Ask for signs of life, and look at deadlines, until the connection has ended."""
        silent_looks = looks = 0
        while not connection.ended.done():
            if looks % LOOKS_PER_KEEPALIVE == 0:
                self.flush()
                connection.send([pack_request(Request(Operation.NOP))])
            looks += 1
            connection.heard = False
            await asyncio.wait((connection.ended,), timeout=LOOK_S)
            silent_looks = 0 if connection.heard else silent_looks + 1
            # Counted in looks rather than by the clock: if this process was stopped, the answers lie in the socket.
            if silent_looks >= SILENT_LOOKS_MAX:
                connection.abort(f"no sign of life for {SILENT_LOOKS_MAX * LOOK_S:.0f} s")
            self._look_at_deadlines()

    def _look_at_deadlines(self) -> None:
        now_s = self._network.now_s()
        late = [request_id for request_id, entry in self._pending.items() if entry[4] < now_s]
        for request_id in late:
            entry = self._pending.get(request_id)
            if entry is None:
                continue  # one of those before has stopped the link
            done, lane, cost_bytes, answer_bytes, _deadline_s = entry
            self._pending[request_id] = (None, lane, cost_bytes, answer_bytes, math.inf)
            self._finish(done, Answer(request_id, _TIMED_OUT))

    def _ended(self, reason: str) -> None:
        if self.state == "up":
            self._down("waiting", reason)

    def _down(self, state: LinkState, reason: str) -> None:
        """There is no connection now: everything that was sent is lost."""
        was_up = self.state == "up"
        self.state, self.reason = state, reason
        self._connection = None
        self._up.clear()
        self._grant((_NOTHING,) * len(LaneName))
        self._outgoing = []
        unsent = set(self._queued)
        self._queued.clear()
        pending, self._pending = self._pending, {}
        if pending:
            self._loop.call_soon(self._lose, pending, unsent)
        if was_up:
            self.losses += 1
        if reason != self._reported and (state != "stopped" or was_up):
            self._reported = reason
            log.info("peer link down", peer=self.name, incarnation=self.incarnation, reason=reason)
        if was_up and self._on_change is not None:
            self._on_change(self)

    def _lose(self, pending: dict[int, _Pending], unsent: set[int]) -> None:
        for request_id, entry in pending.items():
            self._finish(entry[0], Answer(request_id, _UNSENT if request_id in unsent else _LOST))


def _report_defect(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("a peer link ended by a defect of this program", link=task.get_name(), exc_info=error)
