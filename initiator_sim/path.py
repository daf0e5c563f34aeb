"""A path to a disk: one session that survives what happens to it.

It logs in, follows redirections, obeys the target's asynchronous messages as its personality does, notices a dead
connection, logs in again and issues every unfinished command again. Whoever submits a task only sees it end.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

from initiator_sim.chap import Chap
from initiator_sim.login import LoggedIn, Login, LoginError, LoginRequest, Redirected
from initiator_sim.nexus import Event, Kind, Nexus, split_address
from initiator_sim.parameters import Pair
from initiator_sim.personalities import Personality, Reaction
from initiator_sim.reactor import Buffers, Connection, Reactor
from initiator_sim.sense import says_other_luns
from initiator_sim.session import ProtocolError, Session
from initiator_sim.task import Failure, Task
from initiator_sim.watch import Watch
from san_target.wire import opcodes
from san_target.wire.errors import PduError
from san_target.wire.framer import FramingError, Pdu
from san_target.wire.text import TextError, decode_pairs, encode_pairs

ALIAS: Final = "initiator-sim"
EVENTS_MAX: Final = 10000
VIOLATIONS_MAX: Final = 5  # then a path gives up: the same command would meet the same mistake again
Answer = TypeVar("Answer")
_DISCOVERY_KEYS: Final = frozenset(
    {"HeaderDigest", "DataDigest", "MaxRecvDataSegmentLength", "DefaultTime2Wait", "DefaultTime2Retain"}
    | {"ErrorRecoveryLevel"}
)


class Path:
    """One nexus. `connect` before the first submit; `close` at the end.

    session is None while there is none. on_reissue(task), if set, is called for each task that was sent before and is
    about to be sent again; on_down(path, tasks), if set, takes over the unfinished tasks when the connection is lost;
    on_change(path), if set, hears that there is a session again, or that there will be none any more.
    """

    def __init__(self, reactor: Reactor, personality: Personality, nexus: Nexus, depth: int | None = None) -> None:
        self.personality = personality
        self.nexus = nexus
        self.session: Session | None = None
        self.address = nexus.portal
        self.events: deque[Event] = deque(maxlen=EVENTS_MAX)
        self.moves = 0
        self.logins = 0
        self.violations: list[str] = []
        self.remarks: dict[str, int] = {}
        self.failed: str | None = None
        self.on_reissue: Callable[[Task], None] | None = None
        self.on_down: Callable[[Path, list[Task]], None] | None = None
        self.on_change: Callable[[Path], None] | None = None
        self.on_event: Callable[[Path, Event], None] | None = None
        self._reactor = reactor
        self._depth = personality.queue_depth if depth is None else depth
        self._isid = nexus.isid
        self._connection: Connection | None = None
        self._login: Login | None = None
        self._login_done: asyncio.Future[LoggedIn | Redirected] | None = None
        self._pending: deque[Task] = deque()
        self._recovery: asyncio.Task[None] | None = None
        self._closing = False
        self._down_since: float | None = None
        self._time2wait_s: float | None = None
        self._last_login_s = float("-inf")
        self._batches = 0
        self._watch = Watch()

    # --- commands -------------------------------------------------------------------------------------------------

    @property
    def up(self) -> bool:
        return self.session is not None and not self.session.logging_out

    @property
    def is_over(self) -> bool:
        """It was closed or given up: there will be no session any more."""
        return self._closing or self.failed is not None

    def submit(self, task: Task) -> None:
        """Send a task, as soon as there is a session; it ends with Failure.PATH_LOST where there will be none."""
        self.enqueue(task)
        self.plan_flush()

    def enqueue(self, task: Task) -> None:
        """The same from within on_done, whose batch is flushed at its end anyway."""
        session = self.session
        if session is not None and not session.logging_out:
            session.submit(task)
        elif self.is_over:
            # Never from inside the caller: it may be about to submit more.
            self._reactor.loop.call_soon(_end, task, Failure.PATH_LOST)
        else:
            self._pending.append(task)

    def plan_flush(self) -> None:
        """Send what was enqueued when this turn of the loop ends."""
        if self._connection is not None:
            self._connection.plan_flush()

    async def task_management(self, function: int, lun: int = 0, task: Task | None = None) -> int:
        """Send a task management function (RFC 7143 11.5); returns its response code. ConnectionError without one."""
        answered: asyncio.Future[int] = self._reactor.loop.create_future()
        self._established().task_management(function, lambda header, _: _resolve(answered, header.response), lun, task)
        return await self._wait_for(answered)

    async def ping(self, data: bytes = b"") -> bytes:
        """NOP-Out and its answer's data. ConnectionError without one."""
        answered: asyncio.Future[bytes] = self._reactor.loop.create_future()
        self._established().ping(lambda _, echo: _resolve(answered, echo), data)
        return await self._wait_for(answered)

    async def text(self, pairs: list[Pair]) -> bytes:
        """A text exchange (RFC 7143 11.10, 11.11): all data of the answer, which may come in several parts."""
        data, ttt = encode_pairs(pairs), opcodes.RESERVED_TAG
        received = b""
        while True:
            answered: asyncio.Future[tuple[Any, bytes]] = self._reactor.loop.create_future()
            self._established().text(data, lambda header, part: _resolve(answered, (header, part)), ttt)  # noqa: B023
            header, part = await self._wait_for(answered)
            received += part
            if header.final and not header.continue_:
                return received
            data, ttt = b"", header.target_transfer_tag

    def _established(self) -> Session:
        if self.session is None:
            raise ConnectionError("there is no session")
        return self.session

    async def _wait_for(self, answered: "asyncio.Future[Answer]") -> Answer:
        assert self._connection is not None
        self._connection.plan_flush()
        self._watch.waiters.add(answered)
        try:
            async with asyncio.timeout(self.personality.abort_timeout_s):
                return await answered
        finally:
            self._watch.waiters.discard(answered)

    # --- its life -------------------------------------------------------------------------------------------------

    async def connect(self) -> None:
        """The first login. Raises LoginError, OSError or TimeoutError; later losses are recovered from."""
        for attempt in range(self.personality.login_retries + 1):
            try:
                await self._log_in()
                break
            except LoginError as error:
                # RFC 7143 11.13.5: class 3 may be tried again.
                if error.status >> 8 != 3 or attempt == self.personality.login_retries:
                    raise
            await asyncio.sleep(min(self.personality.wait_after_failure_s(attempt + 1), 1.0))
        self._reactor.add_ticking(self)

    async def close(self) -> None:
        """Log out and close; unfinished commands end with Failure.PATH_LOST."""
        self._closing = True
        self._reactor.remove_ticking(self)
        if self._recovery is not None:
            self._recovery.cancel()
        if self.up:
            answered: asyncio.Future[int] = self._reactor.loop.create_future()
            self._established().logout(lambda header, _: _resolve(answered, header.response))
            try:
                await self._wait_for(answered)
            except (ConnectionError, TimeoutError):
                pass
        self.abort()

    def abort(self) -> None:
        """Close without a Logout."""
        self._closing = True
        self._reactor.remove_ticking(self)
        if self._connection is not None:
            self._connection.abort()
        self._fail_pending()

    def drop_connection(self) -> None:
        """Lose the connection, as by a cut cable; the path recovers."""
        if self._connection is not None:
            self._connection.abort(ConnectionResetError("dropped on purpose"))

    def login_request(self) -> LoginRequest:
        """Who logs in next, and how."""
        nexus, personality = self.nexus, self.personality
        if personality.new_isid_each_login and self.logins:
            self._isid = personality.isid(self._reactor.random_bytes)
        chap = None
        if nexus.credentials is not None:
            chap = Chap(nexus.credentials, nexus.mutual, personality.chap_algorithms, self._reactor.random_bytes)
        keys = personality.keys if nexus.keys is None else nexus.keys
        if nexus.iqn is None:
            special = personality.discovery_keys if nexus.keys is None else None
            keys = special or tuple(pair for pair in keys if pair[0] in _DISCOVERY_KEYS)
        alias = ALIAS if personality.sends_alias else ""
        return LoginRequest(nexus.initiator_name, self._isid, nexus.iqn, keys, chap, personality.security_first, alias)

    async def _log_in(self) -> None:
        personality = self.personality
        address = self.nexus.portal if personality.returns_to_configured or self.logins == 0 else self.address
        async with asyncio.timeout(personality.login_timeout_s):
            for _ in range(personality.redirects_max + 1):
                result = await self._log_in_at(address)
                if isinstance(result, LoggedIn):
                    return
                if result.permanent and not personality.follows_permanent:
                    raise LoginError(
                        "redirected with status 0x0102, which this kind of initiator does not know", 0x0102
                    )
                self._note(Kind.REDIRECTED, address, f"to {result.address}")
                address = result.address
        raise LoginError(f"a redirection loop: {personality.redirects_max} redirections, the last to {address}", 0x0101)

    async def _log_in_at(self, address: str) -> LoggedIn | Redirected:
        host, port = split_address(address)
        self._login = Login(self.login_request())
        self._login_done = self._reactor.loop.create_future()
        self.address_tried = address
        connection = await self._reactor.open(host, port, self, self.personality.login_timeout_s)
        self._connection = connection
        self._login.begin()
        connection.flush()
        try:
            result = await self._login_done
        except BaseException:
            self._login = None
            connection.abort()
            raise
        if isinstance(result, Redirected):
            self._login = None
            connection.abort()
        return result

    def _logged_in(self, result: LoggedIn) -> None:
        connection = self._connection
        assert connection is not None
        parameters = result.parameters
        connection.framer.data_segment_max = parameters.max_recv_data_segment_length
        connection.framer.header_digest = parameters.header_digest
        connection.framer.data_digest = parameters.data_digest
        self._login = None
        self.session = Session(result, self, self._depth)
        now = self._reactor.now()
        self._last_login_s = now
        self._time2wait_s = None
        self._watch.restart(now)
        self.logins += 1
        pause_s = 0.0 if self._down_since is None else now - self._down_since
        self._down_since = None
        before, self.address = self.address, self.address_tried
        if self.logins == 1:
            self._note(Kind.UP, self.address)
        elif before != self.address:
            self.moves += 1
            self._note(Kind.MOVED, self.address, f"from {before}", pause_s)
        else:
            self._note(Kind.BACK, self.address, pause_s=pause_s)
        for _ in range(len(self._pending)):
            self.session.submit(self._pending.popleft())
        self._tell_change()

    def _note(self, kind: Kind, address: str, text: str = "", pause_s: float = 0.0) -> None:
        event = Event(self._reactor.now(), kind, address, text, pause_s)
        self.events.append(event)
        if self.on_event is not None:
            self.on_event(self, event)

    # --- Handler of the connection --------------------------------------------------------------------------------

    def receive(self, batch: Iterator[Pdu]) -> None:
        self._batches += 1
        if self.session is None and self._login is not None:
            self._receive_login(batch)
        if self.session is not None:
            self.session.receive(batch)

    def _receive_login(self, batch: Iterator[Pdu]) -> None:
        login = self._login
        assert login is not None
        for pdu in batch:
            login.receive(pdu.bhs, pdu.data)
            if login.result is not None:
                if isinstance(login.result, LoggedIn):
                    self._logged_in(login.result)
                if self._login_done is not None:
                    _resolve(self._login_done, login.result)
                return

    def take_outgoing(self) -> Buffers:
        if self.session is not None:
            outgoing = self.session.outgoing
            self.session.outgoing = []
            return outgoing
        if self._login is not None:
            self._login.outgoing, ready = [], self._login.outgoing
            return list(ready)
        return []

    def closed(self, error: Exception | None) -> None:
        """The connection is gone. A session's unfinished tasks wait for the next login, or go to on_down."""
        self._connection = None
        if self._login_done is not None and not self._login_done.done():
            self._login_done.set_exception(error or ConnectionError("the target closed the connection during login"))
        if isinstance(error, ProtocolError | PduError | FramingError):
            self.violations.append(f"{self.address}: {error}")
            self._note(Kind.VIOLATION, self.address, str(error))
        session, self.session = self.session, None
        if session is None:
            return
        for text, count in session.remarks.items():
            self.remarks[text] = self.remarks.get(text, 0) + count
        self._watch.fail_waiters(ConnectionError("the connection was lost"))
        sent = len(session.tasks)
        unfinished = session.lost()
        self._down_since = self._reactor.now()
        if self._closing:
            self._requeue(unfinished, sent)
            self._fail_pending()
            return
        self._note(Kind.LOST, self.address, "" if error is None else str(error))
        self._requeue(unfinished, sent)
        if len(self.violations) >= VIOLATIONS_MAX:
            self._give_up(self.violations[-1])
            return
        wait_s = self._time2wait_s
        if wait_s is None:
            wait_s = session.parameters.default_time2wait_s if self.personality.obeys_time2wait else 0.0
        self._recovery = self._reactor.loop.create_task(self._recover(wait_s))

    def _requeue(self, unfinished: list[Task], sent: int) -> None:
        """The first `sent` of them were sent."""
        if self.on_reissue is not None:
            for task in unfinished[:sent]:
                self.on_reissue(task)
        tasks = [*unfinished, *self._pending]
        self._pending.clear()
        if self.on_down is not None:
            self.on_down(self, tasks)
        else:
            self._pending.extend(tasks)

    async def _recover(self, wait_s: float) -> None:
        personality = self.personality
        assert self._down_since is not None
        give_up_s = self._down_since + personality.replacement_timeout_s
        if self._time2wait_s is None:
            wait_s = max(wait_s, self._last_login_s + personality.reconnect_gap_s - self._reactor.now())
        await asyncio.sleep(max(wait_s, 0.0))
        failures = 0
        while True:
            try:
                await self._log_in()
                return
            except (LoginError, OSError, ValueError) as error:  # TimeoutError is an OSError
                reason = str(error) or "no answer"
                self._note(Kind.LOGIN_FAILED, self.address_tried, reason)
                if (isinstance(error, LoginError) and error.final) or self._reactor.now() > give_up_s:
                    self._give_up(reason)
                    return
            failures += 1
            await asyncio.sleep(personality.wait_after_failure_s(failures))

    def _give_up(self, reason: str) -> None:
        self.failed = reason
        self._note(Kind.FAILED, self.nexus.portal, reason)
        self._fail_pending()

    def _fail_pending(self) -> None:
        while self._pending:
            _end(self._pending.popleft(), Failure.PATH_LOST)
        self._tell_change()

    def _tell_change(self) -> None:
        if self.on_change is not None:
            self.on_change(self)

    # --- Reactions of the session ---------------------------------------------------------------------------------

    def async_message(self, event: int, parameters: tuple[int, int, int, int], data: bytes) -> None:
        reaction = self.personality.reactions.get(event, Reaction.IGNORE)
        session = self.session
        if session is None or session.logging_out:
            return
        if reaction is Reaction.LOGOUT:
            self._note(Kind.ASKED_TO_MOVE, self.address, f"async event {event}")
            self._watch.logout_by_s = self._reactor.now() + self.personality.logout_timeout_s
            session.logout(self._logged_out)
        elif reaction is Reaction.AWAIT_CLOSE:
            time2wait_s = parameters[2]
            self._note(Kind.ASKED_TO_MOVE, self.address, f"async event {event}, Time2Wait {time2wait_s} s")
            self._time2wait_s = time2wait_s
        elif reaction is Reaction.RESCAN and says_other_luns(data):
            self._note(Kind.RESCAN, self.address)
        elif reaction is Reaction.RENEGOTIATE:
            value = str(session.parameters.max_recv_data_segment_length)
            session.text(encode_pairs([("MaxRecvDataSegmentLength", value)]), self._renegotiated)

    def _renegotiated(self, header: Any, data: bytes) -> None:
        """What the target can take from now on (RFC 7143 13.12: declared by each side at any time)."""
        try:
            found = dict(decode_pairs(data)).get("MaxRecvDataSegmentLength", "")
        except TextError as error:
            raise ProtocolError(f"malformed answer to a Text Request: {error}") from None
        if self.session is not None and found:
            if not found.isdecimal() or not 512 <= int(found) < 1 << 24:
                raise ProtocolError(f"MaxRecvDataSegmentLength={found} (RFC 7143 13.12)")
            self.session.parameters.max_send_data_segment_length = int(found)

    def rejected(self, reason: int, bhs: bytes) -> None:
        self._note(Kind.VIOLATION, self.address, f"Reject with reason {reason:#04x} of PDU {bhs[:1].hex()}")
        self.violations.append(f"{self.address}: Reject with reason {reason:#04x} of PDU {bhs[:1].hex()}")

    def _logged_out(self, header: Any, data: bytes) -> None:
        if self._connection is not None:
            # A target that closes by itself is quicker, and then closing again is nothing.
            self._reactor.loop.call_later(self.personality.close_wait_s, self._connection.close)

    # --- timers ---------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        session, connection, watch = self.session, self._connection, self._watch
        if session is None or connection is None:
            return
        if session.logging_out:
            if now > watch.logout_by_s:
                connection.abort(TimeoutError("no answer to Logout"))
            return
        if watch.batches != self._batches:
            watch.batches, watch.quiet_since = self._batches, now
            watch.pinged = False
        elif (
            watch.pinged and now - watch.quiet_since > self.personality.nop_interval_s + self.personality.nop_timeout_s
        ):
            connection.abort(TimeoutError("no answer to NOP-Out"))
            return
        elif not watch.pinged and now - watch.quiet_since > self.personality.nop_interval_s:
            watch.pinged = True
            session.ping(lambda header, data: None)
            connection.plan_flush()
        self._watch_commands(session, connection, now)

    def _watch_commands(self, session: Session, connection: Connection, now: float) -> None:
        """The oldest command is watched: dicts keep the order of sending. Escalation: abort, reset, new login."""
        watch, personality = self._watch, self.personality
        oldest = next(iter(session.tasks.values()), None)
        itt = 0 if oldest is None else oldest.itt
        if itt != watch.oldest_itt or oldest is None:
            watch.oldest_itt, watch.oldest_since, watch.step = itt, now, 0
            return
        limits = (personality.command_timeout_s, personality.abort_timeout_s, personality.reset_timeout_s)
        if now - watch.oldest_since < sum(limits[: watch.step + 1]):
            return
        watch.step += 1
        name = ("", "ABORT TASK", "LOGICAL UNIT RESET", "a new login")[watch.step]
        self._note(Kind.TIMED_OUT, self.address, f"no answer for {now - watch.oldest_since:.0f} s: {name}")
        if watch.step == 1:
            session.task_management(opcodes.ABORT_TASK, lambda header, data: None, oldest.lun, oldest)
        elif watch.step == 2:
            session.task_management(opcodes.LOGICAL_UNIT_RESET, lambda header, data: None, oldest.lun)
        else:
            connection.abort(TimeoutError("a command got no answer"))
            return
        connection.plan_flush()


def _resolve(future: "asyncio.Future[Any]", value: object) -> None:
    if not future.done():
        future.set_result(value)


def _end(task: Task, failure: Failure) -> None:
    task.reset()
    task.dirty = True
    task.failure = failure
    task.on_done(task)
