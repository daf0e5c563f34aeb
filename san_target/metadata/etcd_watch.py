"""A watch on etcd: whole revisions, without a gap or a repetition, over failures of endpoints.

etcd sends several revisions in one answer, never a part of one, except in fragments. It makes those only if asked to,
and slowly (in the square of the number of events), so they are asked for only after an answer that was too large. After
a failure the watch goes on, at another endpoint, from the first revision that was not complete.
"""

import asyncio
from collections.abc import AsyncIterator

from san_target.metadata import etcd_connection as grpc
from san_target.metadata.changes import batches
from san_target.metadata.etcd_client import RANGE, EtcdClient, decoded, prefix_end
from san_target.metadata.etcd_connection import CallError, Lost, Refused, Stream, TooLarge
from san_target.metadata.etcd_messages import (
    DELETE,
    KeyEvent,
    KeyValue,
    MessageError,
    RangeAnswer,
    RangeRequest,
    WatchAnswer,
    WatchCreate,
    WatchRequest,
)
from san_target.metadata.store import Event, Item, RevisionCompacted, StoreError, StoreUnavailable, WatchBatch

WATCH = "/etcdserverpb.Watch/Watch"
RETRY_S = 0.2


def item_of(found: KeyValue, prefix: str) -> Item:
    """etcd's key and value as the store's."""
    key = found.key.decode(errors="backslashreplace").removeprefix(prefix)
    return Item(key, found.value, found.create_revision, found.mod_revision, found.lease)


class Revisions:
    """Whole revisions out of answers. next: the first revision that has not come completely."""

    def __init__(self, prefix: str, from_revision: int) -> None:
        self._prefix = prefix
        self._fragments: list[KeyEvent] = []
        self.next = from_revision

    def take(self, answer: WatchAnswer) -> list[WatchBatch]:
        self._fragments += answer.events
        if answer.fragment:
            return []
        events, self._fragments = self._fragments, []
        # A watch that begins in the future may be sent older events too (etcd 3.4).
        found = batches(
            (event.kv.mod_revision, self._event(event)) for event in events if event.kv.mod_revision >= self.next
        )
        if found:
            self.next = found[-1].revision + 1
        elif not events and not answer.created and not answer.canceled:
            # A sign of progress: all up to this revision has been sent. Keeps an idle watch ahead of compactions.
            self.next = max(self.next, answer.header.revision + 1)
        return found

    def _event(self, event: KeyEvent) -> Event:
        item = item_of(event.kv, self._prefix)
        return Event(item.key, None if event.type == DELETE else item)


async def watch(client: EtcdClient, prefix: str, from_revision: int) -> AsyncIterator[WatchBatch]:
    """Ends without an error only when the client is closed. prefix: of the store's keys.

    RevisionCompacted; StoreUnavailable after `Timeouts.watch_s` without an endpoint that can be used.
    """
    revision = max(1, from_revision)  # for etcd 0 is now
    loop = asyncio.get_running_loop()
    working_at = loop.time()
    fragment = False
    while client.is_open:
        stream = None
        try:
            revisions = Revisions(client.options.prefix, revision)
            stream = await _begin(client, prefix, revision, fragment)
            while True:
                answer = await _receive(client, stream)
                working_at = loop.time()
                for batch in revisions.take(answer):
                    revision = batch.revision + 1
                    yield batch
                revision = revisions.next
        except (CallError, StoreUnavailable) as error:
            fragment = isinstance(error, TooLarge)
            if client.is_open and loop.time() - working_at > client.timeouts.watch_s:
                raise client.unavailable(f"cannot be watched ({error})") from None
            if client.is_open:
                await asyncio.sleep(RETRY_S)
        except StoreError:
            if client.is_open:
                raise
        finally:
            if stream is not None:
                stream.close()


async def _begin(client: EtcdClient, prefix: str, revision: int, fragment: bool) -> Stream:
    """A watch that etcd has accepted, and that surely begins with this revision."""
    key = (client.options.prefix + prefix).encode()
    create = WatchCreate(key, prefix_end(key), revision, progress_notify=True, fragment=fragment)
    stream = await client.stream(WATCH, WatchRequest(create))
    try:
        async with asyncio.timeout(client.timeouts.attempt_s):
            answer = await _receive(client, stream)
        if not answer.created:
            raise Lost("the watch was not created")
        # At exactly the compacted revision etcd accepts a watch, but deletions of that revision may be gone.
        before = RangeRequest(key, limit=1, revision=revision - 1, count_only=True)
        await client.call_on(stream.connection, RANGE, before, RangeAnswer)
    except BaseException as error:
        if isinstance(error, Refused) and error.code == grpc.OUT_OF_RANGE and "compacted" not in error.text:
            return stream  # that revision is still to come
        stream.close()
        if isinstance(error, Refused) and error.code == grpc.OUT_OF_RANGE:
            raise RevisionCompacted(f"revision {revision} is no longer kept by etcd; read again") from None
        if isinstance(error, TimeoutError):
            raise Lost("the watch was not created in time") from None
        raise
    return stream


async def _receive(client: EtcdClient, stream: Stream) -> WatchAnswer:
    """RevisionCompacted, StoreError; Lost: begin again."""
    try:
        answer = await decoded(WatchAnswer, await stream.receive())
    except MessageError as error:
        raise Lost(str(error)) from None
    if answer.compact_revision:
        raise RevisionCompacted(f"etcd keeps only what follows revision {answer.compact_revision}; read again")
    if answer.canceled:
        # Rights are checked when the watch begins; there is no status, only this text.
        if "permission denied" in answer.cancel_reason:
            raise StoreError(
                f"etcd does not let user {client.options.user!r} watch the keys below {client.options.prefix}; "
                f"`etcdctl role grant-permission ROLE readwrite --prefix=true {client.options.prefix}`"
            )
        client.token_refused()
        raise Lost(f"etcd ended the watch ({answer.cancel_reason or 'without a reason'})")
    return answer
