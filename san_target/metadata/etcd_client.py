"""Requests to an etcd of several endpoints: failover, deadlines, authentication, and what an error means.

Invariants kept here:
- a request that may have been carried out is sent again only if it is harmless to repeat; a transaction never is [1];
- a connection is used only after its endpoint answered a linearizable read: it is of the same cluster, reaches its
  quorum, and knows all that was seen before;
- every request ends within `Timeouts.request_s`.
"""

import asyncio
from dataclasses import dataclass
from typing import TypeVar

from san_target.metadata import etcd_connection as grpc
from san_target.metadata.etcd_connection import Connection, Lost, NotSent, Refused, Stream
from san_target.metadata.etcd_messages import (
    Answer,
    AuthenticateAnswer,
    AuthenticateRequest,
    Message,
    MessageError,
    RangeAnswer,
    RangeRequest,
    decode,
    decode_in_steps,
)
from san_target.metadata.etcd_url import EtcdOptions
from san_target.metadata.store import StoreError, StoreUnavailable

AUTHENTICATE = "/etcdserverpb.Auth/Authenticate"
RANGE = "/etcdserverpb.KV/Range"
PAUSE_S = 0.05
RETRY_S = 0.2  # after every endpoint has failed: an election takes a second or two
SENSIBLE_ATTEMPT_S = 0.1  # with less time left nothing is sent any more

# With these, etcd says that it has not done what was asked. With any other status it may have, or may still.
SURELY_REFUSED = frozenset(
    {grpc.INVALID_ARGUMENT, grpc.NOT_FOUND, grpc.ALREADY_EXISTS, grpc.PERMISSION_DENIED, grpc.RESOURCE_EXHAUSTED}
    | {grpc.FAILED_PRECONDITION, grpc.OUT_OF_RANGE, grpc.UNIMPLEMENTED, grpc.UNAUTHENTICATED}
)
# Texts of INVALID_ARGUMENT that a new token cures: etcd forgets tokens, and refuses those of before a change of rights.
STALE_TOKEN_TEXTS = ("user name is empty", "revision of auth store is old")

LARGE_BYTES = 1 << 16  # an answer that is decoded in steps
STEP_FIELDS = 250  # about a millisecond

A = TypeVar("A", bound=Answer)
M = TypeVar("M", bound=Message)


@dataclass(frozen=True, slots=True)
class Timeouts:
    """connect_s: for one endpoint. attempt_s: for one answer of what may be repeated elsewhere. transaction_s: for the
    answer of what may not. request_s: for everything together. guard_s: how often an endpoint with watches is asked for
    a sign of life. watch_s: how long a watch tries to go on before it fails.
    """

    connect_s: float = 1.0
    attempt_s: float = 2.0
    transaction_s: float = 3.0
    request_s: float = 5.0
    guard_s: float = 1.5
    watch_s: float = 10.0


class _StaleToken(Exception):
    """etcd wants a new token; it has done nothing."""


class EtcdClient:
    """is_open: between `open` and `close`. connections: how many were made so far; it counts up with each failover."""

    def __init__(self, options: EtcdOptions, timeouts: Timeouts) -> None:
        self.options = options
        self.timeouts = timeouts
        self.is_open = False
        self.connections = 0
        self._connection: Connection | None = None
        self._preferred = 0  # index of the endpoint to try first
        self._connecting = asyncio.Lock()
        self._authenticating = asyncio.Lock()
        self._token: str | None = None  # None: to be asked for; "": etcd wants none
        self._guards: set[asyncio.Task[None]] = set()
        self._reasons: dict[int, str] = {}  # why endpoints could not be used last time
        self._cluster_id = 0
        self._revision = 0  # the highest that a linearizable read has shown
        self._broken = ""
        key = options.prefix.encode()
        self._probe = RangeRequest(key=key, range_end=prefix_end(key), limit=1, count_only=True)

    async def open(self) -> None:
        self.options.tls()
        if self.options.user:
            self.options.password()
        self._cluster_id = self._revision = 0
        self._broken, self._token = "", None
        self.is_open = True
        try:
            await self._connected(self._deadline())
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self.is_open = False
        for guard in self._guards:
            guard.cancel()
        if self._connection is not None:
            connection, self._connection = self._connection, None
            connection.abort("the store was closed")

    def unavailable(self, what: str) -> StoreUnavailable:
        return StoreUnavailable(f"etcd {what}; check that its processes run and reach each other")

    # Requests ---------------------------------------------------------------------------------------------------------

    async def call(self, path: str, request: Message, kind: type[A], *, repeatable: bool, linearizable: bool) -> A:
        """One request and its answer. StoreError; Refused: only NOT_FOUND and OUT_OF_RANGE.

        repeatable: doing it twice is harmless. linearizable: no answer of this kind is of an older state than another.
        """
        deadline, data = self._deadline(), request.encode()
        patience_s = self.timeouts.attempt_s if repeatable else self.timeouts.transaction_s
        reason, stale_tokens = "", 0
        while True:
            connection = await self._connected(deadline)
            left_s = deadline - asyncio.get_running_loop().time()
            if left_s < SENSIBLE_ATTEMPT_S:
                raise self.unavailable(f"did not answer in time ({reason or 'no connection'}); nothing was changed")
            try:
                answer = await decoded(kind, await self._attempt(connection, path, data, min(patience_s, left_s)))
            except _StaleToken as error:
                stale_tokens += 1
                if stale_tokens > 2:
                    raise StoreError(f"etcd does not take the token it has just given ({error})") from None
                continue
            except NotSent as error:
                reason = str(error)
                self._leave(connection, reason)
            except (Lost, MessageError) as error:
                reason = str(error)
                self._leave(connection, reason)
                if not repeatable:
                    raise self._unknown(reason) from None
            except Refused as error:
                if error.code in SURELY_REFUSED:
                    raise self._translate(error) from None
                reason = str(error)
                self._leave(connection, reason)
                if not repeatable:
                    raise self._unknown(reason) from None
            else:
                if linearizable:
                    self._revision = max(self._revision, answer.header.revision)
                return answer
            await asyncio.sleep(PAUSE_S)

    async def stream(self, path: str, request: Message) -> Stream:
        """Begin a request with any number of answers. StoreError, NotSent."""
        connection = await self._connected(self._deadline())
        return connection.stream(path, request.encode(), await self._metadata(connection))

    async def call_on(self, connection: Connection, path: str, request: Message, kind: type[A]) -> A:
        """A request to just this endpoint, without repetition. NotSent, Lost, Refused, StoreError."""
        try:
            return decode(kind, await self._attempt(connection, path, request.encode(), self.timeouts.attempt_s))
        except (_StaleToken, MessageError) as error:
            raise Lost(str(error)) from None

    async def _attempt(self, connection: Connection, path: str, data: bytes, timeout_s: float) -> bytes:
        metadata = await self._metadata(connection)
        try:
            return await connection.call(path, data, metadata, timeout_s)
        except Refused as error:
            if not self._is_stale_token(error):
                raise
            if self._token == metadata.get("token", ""):  # else somebody has a new one already
                self.token_refused()
            raise _StaleToken(error.text) from None

    def _deadline(self) -> float:
        return asyncio.get_running_loop().time() + self.timeouts.request_s

    def _unknown(self, reason: str) -> StoreUnavailable:
        return StoreUnavailable(
            f"etcd did not confirm a change ({reason}), which may have been made or not; "
            "look at what it was about before you repeat it"
        )

    def _translate(self, error: Refused) -> Exception:
        """What a refusal means for the operator. Nothing was changed."""
        text = error.text.removeprefix("etcdserver: ")
        who = f"user {self.options.user!r}" if self.options.user else "user of the certificate"
        if error.code in (grpc.NOT_FOUND, grpc.OUT_OF_RANGE):
            return error
        if error.code == grpc.RESOURCE_EXHAUSTED and "space" in text:
            return StoreUnavailable(
                f"etcd is full ({text}), nothing was changed; compact and defragment it, or raise its "
                "--quota-backend-bytes, then `etcdctl alarm disarm`"
            )
        if error.code == grpc.RESOURCE_EXHAUSTED:
            return StoreUnavailable(f"etcd is overloaded ({text}); nothing was changed")
        if error.code == grpc.PERMISSION_DENIED:
            return StoreError(
                f"etcd does not let the {who} use the keys below {self.options.prefix}; "
                f"`etcdctl role grant-permission ROLE readwrite --prefix=true {self.options.prefix}`"
            )
        if STALE_TOKEN_TEXTS[0] in text:
            return StoreError("etcd wants a user; add user=NAME&password_file=FILE to the store's URL")
        if error.code == grpc.UNIMPLEMENTED:
            return StoreError(f"this is no etcd of version 3.4 or newer ({text}); check the store's URL")
        return StoreError(f"etcd refused a request ({text}); nothing was changed")

    # Connections ------------------------------------------------------------------------------------------------------

    async def _connected(self, deadline: float) -> Connection:
        """The present connection, or a new one to the first endpoint that can be used. StoreError."""
        try:
            async with asyncio.timeout_at(deadline), self._connecting:
                while True:
                    if not self.is_open:
                        raise StoreError("the store is not open")
                    if self._broken:
                        raise StoreError(self._broken)
                    if self._connection is not None and self._connection.is_open:
                        return self._connection
                    await self._try_endpoints()
        except TimeoutError:
            names = {index: f"{host}:{port}" for index, (host, port) in enumerate(self.options.endpoints)}
            reasons = "; ".join(f"{names[index]}: {reason}" for index, reason in sorted(self._reasons.items()))
            raise self.unavailable(
                f"cannot be used now, nothing was changed ({reasons or 'no answer in time'})"
            ) from None

    async def _try_endpoints(self) -> None:
        """Each endpoint once, the preferred one first. StoreError: no endpoint would do any better."""
        for turn in range(len(self.options.endpoints)):
            index = (self._preferred + turn) % len(self.options.endpoints)
            try:
                connection = await self._connect(index)
            except grpc.CallError as error:
                self._reasons[index] = str(error)
                continue
            self._connection, self._preferred = connection, index
            self._reasons.clear()
            return
        await asyncio.sleep(RETRY_S)

    async def _connect(self, index: int) -> Connection:
        """A connection to this endpoint that can be used. NotSent, Lost, Refused: it cannot be."""
        host, port = self.options.endpoints[index]
        tls = await asyncio.to_thread(self.options.tls)  # certificates may have been renewed
        try:
            async with asyncio.timeout(self.timeouts.connect_s):
                connection = await Connection.open(host, port, tls)
        except TimeoutError:
            raise NotSent(f"no HTTP/2 connection within {self.timeouts.connect_s:.1f} s") from None
        self._token = None  # an etcd that was started again knows none
        try:
            await self._admit(connection)
            if not self.is_open:
                raise StoreError("the store is not open")
        except BaseException as error:
            connection.abort("it cannot be used")
            if isinstance(error, Refused) and error.code in SURELY_REFUSED:
                raise self._translate(error) from None
            raise
        self.connections += 1
        guard = asyncio.create_task(self._guard(connection))
        self._guards.add(guard)
        guard.add_done_callback(self._guards.discard)
        return connection

    async def _admit(self, connection: Connection) -> None:
        """A linearizable read shows that the endpoint is of the same cluster, has a quorum, and has not gone back."""
        seen = self._revision
        header = (await self.call_on(connection, RANGE, self._probe, RangeAnswer)).header
        if self._cluster_id not in (0, header.cluster_id):
            raise NotSent("it belongs to another etcd cluster; take it out of the store's URL")
        if header.revision < seen:
            # Watches wait for revisions that were given out already: they would miss what is written now.
            self._broken = (
                f"etcd has gone back from revision {seen} to {header.revision} (was it restored from a backup?); "
                "restart this member"
            )
            raise StoreError(self._broken)
        self._cluster_id = header.cluster_id
        self._revision = max(self._revision, header.revision)

    def _leave(self, connection: Connection, reason: str) -> None:
        """Use the next endpoint from now on."""
        connection.retire(reason)
        if self._connection is connection:
            self._connection = None
            self._reasons[self._preferred] = reason
            self._preferred = (self._preferred + 1) % len(self.options.endpoints)

    async def _guard(self, connection: Connection) -> None:
        """An endpoint that is stopped, or cut off from the others, says nothing: ask while a watch relies on it."""
        while connection.is_open:
            await asyncio.sleep(self.timeouts.guard_s)
            if not connection.is_open or not connection.has_streams:
                continue
            try:
                await self.call_on(connection, RANGE, self._probe, RangeAnswer)
            except (NotSent, Lost) as error:
                self._leave(connection, str(error))
            except Refused as error:
                if error.code not in SURELY_REFUSED:
                    self._leave(connection, str(error))
            except StoreError:
                pass  # its user is no longer accepted: whoever asks next is told

    # Authentication ---------------------------------------------------------------------------------------------------

    def _is_stale_token(self, error: Refused) -> bool:
        if not self.options.user:
            return False
        stale = error.code == grpc.INVALID_ARGUMENT and any(text in error.text for text in STALE_TOKEN_TEXTS)
        return stale or error.code == grpc.UNAUTHENTICATED

    def token_refused(self) -> None:
        """The next request asks for a new one."""
        self._token = None

    async def _metadata(self, connection: Connection) -> dict[str, str]:
        """NotSent, StoreError: no token can be had."""
        if self.options.user and self._token is None:
            async with self._authenticating:
                if self._token is None:
                    self._token = await self._authenticate(connection)
        return {"token": self._token} if self._token else {}

    async def _authenticate(self, connection: Connection) -> str:
        password = await asyncio.to_thread(self.options.password)
        request = AuthenticateRequest(self.options.user, password)
        try:
            data = await connection.call(AUTHENTICATE, request.encode(), {}, self.timeouts.attempt_s)
            return decode(AuthenticateAnswer, data).token
        except (Lost, MessageError) as error:
            raise NotSent(str(error)) from None
        except Refused as error:
            if error.code == grpc.FAILED_PRECONDITION and "not enabled" in error.text:
                return ""  # as etcdctl does: users can be set up before they are asked for
            if error.code not in SURELY_REFUSED:
                raise NotSent(str(error)) from None
            raise StoreError(
                f"etcd does not accept the user {self.options.user!r} with the password in "
                f"{self.options.password_file} ({error.text.removeprefix('etcdserver: ')})"
            ) from None


async def decoded(kind: type[M], data: bytes) -> M:
    """`decode`, which lets the event loop serve others now and then. MessageError."""
    if len(data) < LARGE_BYTES:
        return decode(kind, data)
    steps = decode_in_steps(kind, data, STEP_FIELDS)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            message: M = end.value
            return message
        await asyncio.sleep(0)


def prefix_end(prefix: bytes) -> bytes:
    """The first key after all that begin with `prefix`, which is not empty nor ends with FFh."""
    return prefix[:-1] + bytes([prefix[-1] + 1])
