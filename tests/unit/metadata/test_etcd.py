"""What only the etcd store has: a network in between, processes that start again, unknown outcomes, rights."""

import asyncio

import pytest
import uvloop

from san_target.metadata import etcd_connection
from san_target.metadata.etcd_client import Timeouts
from san_target.metadata.etcd_messages import PUT, Header, KeyEvent, KeyValue, WatchAnswer
from san_target.metadata.etcd_watch import Revisions
from san_target.metadata.store import (
    Compare,
    Delete,
    Put,
    RevisionCompacted,
    StoreError,
    StoreUnavailable,
    WatchBatch,
)
from tests.support.etcd import Etcd, Proxy
from tests.support.target import free_port
from tests.unit.metadata.conftest import QUICK_LEASES
from tests.unit.metadata.etcd_support import GIVES_UP, QUICK, SECONDS_MAX, Watcher, put, run, store_on, value_of

pytestmark = pytest.mark.tool("etcd")


# The connection ------------------------------------------------------------------------------------------------------


def test_it_works_on_uvloop(etcd: Etcd) -> None:
    async def body() -> None:
        store = store_on(etcd.port)
        await store.open()
        watcher = Watcher(store, (await store.range("")).revision + 1)
        at = await put(store, b"1")
        assert await watcher.until(at) == [at]
        await store.close()
        assert await watcher.end() is None

    uvloop.run(asyncio.wait_for(body(), SECONDS_MAX))


@pytest.mark.slow
def test_an_etcd_that_starts_again_is_found_again_and_a_watch_goes_on(own: Etcd) -> None:
    own.start(*QUICK_LEASES)

    async def body() -> None:
        await asyncio.to_thread(own.wait_until_healthy)
        store = store_on(own.port, timeouts=Timeouts(watch_s=60), prefix="/again/")
        impatient = store_on(own.port, timeouts=GIVES_UP, prefix="/again/")
        await store.open()
        await impatient.open()
        watcher = Watcher(store, (await store.range("")).revision + 1)
        before = [await put(store, b"%d" % number) for number in range(3)]
        await watcher.until(before[-1])
        own.kill()
        for request in (impatient.get("a"), impatient.grant_lease(10)):
            with pytest.raises(StoreUnavailable, match=f"127.0.0.1:{own.port}: Connection refused"):
                await request
        with pytest.raises(StoreUnavailable, match="nothing was changed"):
            await put(impatient, b"lost")
        own.start(*QUICK_LEASES)
        await asyncio.to_thread(own.wait_until_healthy)
        assert await value_of(store) == b"2"
        after = [await put(store, b"%d" % number) for number in range(3)]
        assert await watcher.until(after[-1]) == before + after
        await impatient.close()
        await store.close()
        assert await watcher.end() is None

    run(body)


@pytest.mark.slow
def test_a_watch_does_not_wait_for_ever(own: Etcd) -> None:
    own.start(*QUICK_LEASES)

    async def body() -> None:
        await asyncio.to_thread(own.wait_until_healthy)
        store = store_on(own.port, timeouts=GIVES_UP)
        await store.open()
        watcher = Watcher(store, 1)
        await watcher.until(await put(store, b"1"))
        own.kill()
        error = await watcher.end()
        assert isinstance(error, StoreUnavailable)
        assert "cannot be watched" in str(error)
        await store.close()

    run(body)


def test_what_was_compacted_while_a_watch_was_cut_off_is_told(etcd: Etcd) -> None:
    async def body() -> None:
        async with Proxy(etcd) as proxy:
            store = store_on(proxy.port, prefix="/compacted/")
            other = store_on(etcd.port, prefix="/compacted/")
            await store.open()
            await other.open()
            watcher = Watcher(store, (await store.range("")).revision + 1)
            await watcher.until(await put(store, b"1"))
            proxy.drop_answers = True
            for number in range(5):
                at = await put(other, b"%d" % number)
            await asyncio.to_thread(etcd.compact, at)
            proxy.drop_answers = False
            proxy.cut()
            error = await watcher.end()
            assert isinstance(error, RevisionCompacted)
            snapshot = await store.range("")
            assert [item.value for item in snapshot.items] == [b"4"]
            again = Watcher(store, snapshot.revision + 1)
            await again.until(await put(other, b"5"))
            await store.close()
            await other.close()

    run(body)


def test_a_deletion_of_the_compacted_revision_is_not_lost(etcd: Etcd) -> None:
    """etcd accepts a watch from the very revision of a compaction, and has forgotten the deletions of that revision."""

    async def body() -> None:
        store = store_on(etcd.port)
        await store.open()
        await put(store, b"1")
        deleted = (await store.transact([], [Delete("a")])).revision
        await put(store, b"1", "b")
        await asyncio.to_thread(etcd.compact, deleted)
        with pytest.raises(RevisionCompacted):
            await anext(store.watch("", deleted))
        assert (await anext(store.watch("", deleted + 1))).revision == deleted + 1
        await store.close()

    run(body)


@pytest.mark.parametrize(
    ("window_bytes", "message_bytes"),
    [
        (etcd_connection.STREAM_WINDOW_BYTES, etcd_connection.MESSAGE_BYTES_MAX),
        (100_000, etcd_connection.MESSAGE_BYTES_MAX),
        (etcd_connection.STREAM_WINDOW_BYTES, 3_000_000),
    ],
    ids=["usual", "small windows", "too large at once"],
)
def test_an_answer_larger_than_etcd_sends_at_once_and_a_watch_that_is_not_read(
    etcd: Etcd, window_bytes: int, message_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a message is larger than the stream's window, and where it has to come in fragments."""
    monkeypatch.setattr(etcd_connection, "STREAM_WINDOW_BYTES", window_bytes)
    monkeypatch.setattr(etcd_connection, "MESSAGE_BYTES_MAX", message_bytes)

    async def body() -> None:
        store = store_on(etcd.port)
        await store.open()
        first = await put(store, b"first")
        idle = store.watch("", first)
        assert (await anext(idle)).revision == first
        size_bytes = 1_000_000  # more than a stream's window together
        revisions = [await put(store, b"%d" % number * size_bytes, f"k{number % 3}") for number in range(8)]
        assert (await store.get("k2")) is not None
        # At once, from the past; and those that waited for their reader.
        for watch in (store.watch("", first + 1), idle):
            seen = [await anext(watch) for _ in revisions]
            assert [batch.revision for batch in seen] == revisions
            items = [event.item for batch in seen for event in batch.events]
            assert [item and len(item.value) for item in items] == [size_bytes] * len(revisions)
        await store.close()

    run(body)


def test_a_transaction_that_etcd_finds_too_large(etcd: Etcd) -> None:
    async def body() -> None:
        store = store_on(etcd.port)
        await store.open()
        with pytest.raises(StoreError, match=r"request is too large\); nothing was changed"):
            await put(store, bytes(2_000_000))
        assert await store.get("a") is None
        await store.close()

    run(body)


# Whole revisions, without etcd ---------------------------------------------------------------------------------------


def answer(*events: tuple[str, int], fragment: bool = False, created: bool = False, revision: int = 0) -> WatchAnswer:
    found = [KeyEvent(PUT, KeyValue(b"/p/" + key.encode(), at, at)) for key, at in events]
    return WatchAnswer(Header(revision=revision), created=created, fragment=fragment, events=found)


def keys(batches: list[WatchBatch]) -> list[tuple[int, str]]:
    return [(batch.revision, "".join(event.key for event in batch.events)) for batch in batches]


def test_fragments_are_joined_also_within_a_revision() -> None:
    revisions = Revisions("/p/", 5)
    assert revisions.take(answer(created=True, revision=9)) == []
    assert revisions.take(answer(("a", 5), ("a", 6), fragment=True)) == []
    assert revisions.take(answer(("b", 6), fragment=True)) == []
    assert revisions.next == 5  # a watch that begins again here misses nothing
    assert keys(revisions.take(answer(("c", 6), ("a", 8)))) == [(5, "a"), (6, "abc"), (8, "a")]
    assert revisions.next == 9


def test_what_came_before_is_not_told_again() -> None:
    revisions = Revisions("/p/", 5)
    assert keys(revisions.take(answer(("a", 3), ("b", 4), revision=9))) == []
    assert revisions.next == 5
    assert keys(revisions.take(answer(("a", 5)))) == [(5, "a")]


def test_a_sign_of_progress_moves_on_but_the_creation_of_a_watch_does_not() -> None:
    revisions = Revisions("/p/", 5)
    revisions.take(answer(created=True, revision=20))
    assert revisions.next == 5
    revisions.take(answer(revision=20))
    assert revisions.next == 21
    revisions.take(answer(revision=7))
    assert revisions.next == 21


# Endpoints that fail, and outcomes that nobody knows -----------------------------------------------------------------


def test_an_endpoint_that_is_down_is_passed_over(etcd: Etcd) -> None:
    async def body() -> None:
        store = store_on(free_port(), etcd.port)
        await store.open()
        assert (await store.transact([Compare("a", 0)], [Put("a", b"1")])).succeeded
        await store.close()

    run(body)


@pytest.mark.parametrize("other_endpoint", [False, True])
def test_a_transaction_whose_answer_is_lost_is_not_repeated(etcd: Etcd, other_endpoint: bool) -> None:
    async def body() -> None:
        async with Proxy(etcd) as proxy:
            ports = (proxy.port, etcd.port) if other_endpoint else (proxy.port,)
            prefix = f"/unknown-{other_endpoint}/"
            store = store_on(*ports, timeouts=QUICK, prefix=prefix)
            await store.open()
            proxy.drop_answers = True
            with pytest.raises(StoreUnavailable, match=r"did not confirm a change .*may have been made or not"):
                await put(store, b"1")
            # It was made: "failed" would have been a lie; and once.
            assert etcd.version_of(f"{prefix}a".encode()) == 1
            proxy.drop_answers = False
            assert await value_of(store) == b"1"
            assert etcd.version_of(f"{prefix}a".encode()) == 1
            await store.close()

    run(body)


def test_a_transaction_on_a_connection_that_breaks_is_not_repeated(etcd: Etcd) -> None:
    async def body() -> None:
        async with Proxy(etcd) as proxy:
            store = store_on(proxy.port, etcd.port, prefix="/broken/")
            await store.open()
            proxy.drop_answers = True
            changing = asyncio.ensure_future(put(store, b"1"))
            while etcd.version_of(b"/broken/a") == 0:
                await asyncio.sleep(0.01)
            proxy.cut()
            with pytest.raises(StoreUnavailable, match="may have been made or not"):
                await changing
            assert etcd.version_of(b"/broken/a") == 1
            await store.close()

    run(body)


def test_a_read_whose_answer_is_lost_goes_on_elsewhere(etcd: Etcd) -> None:
    async def body() -> None:
        async with Proxy(etcd) as proxy:
            store = store_on(proxy.port, etcd.port, timeouts=QUICK)
            await store.open()
            await put(store, b"1")
            lease = await store.grant_lease(60)
            proxy.drop_answers = True
            assert await value_of(store) == b"1"
            assert await store.renew_lease(lease)
            await store.revoke_lease(lease)
            assert not await store.renew_lease(lease)
            await store.close()

    run(body)


def test_a_watch_on_an_endpoint_that_falls_silent_goes_on_elsewhere(etcd: Etcd) -> None:
    async def body() -> None:
        async with Proxy(etcd) as proxy:
            store = store_on(proxy.port, etcd.port, timeouts=QUICK, prefix="/silent/")
            other = store_on(etcd.port, prefix="/silent/")
            await store.open()
            await other.open()
            watcher = Watcher(store, (await store.range("")).revision + 1)
            first = await put(other, b"1")
            await watcher.until(first)
            proxy.drop_answers = True
            second = await put(other, b"2")
            assert await watcher.until(second) == [first, second]
            await store.close()
            await other.close()

    run(body)


@pytest.mark.slow
def test_a_stopped_etcd_ends_requests_in_time(own: Etcd) -> None:
    own.start(*QUICK_LEASES)

    async def body() -> None:
        await asyncio.to_thread(own.wait_until_healthy)
        store = store_on(own.port, timeouts=GIVES_UP)
        await store.open()
        await put(store, b"1")
        own.pause()
        with pytest.raises(StoreUnavailable):
            await store.get("a")
        with pytest.raises(StoreUnavailable, match="nothing was changed"):
            await put(store, b"2")  # there is no connection any more by which it could have been sent
        own.resume()
        await asyncio.to_thread(own.wait_until_healthy)
        assert await value_of(store) == b"1"
        await store.close()

    run(body)


def test_requests_in_an_event_loop_that_was_late_keep_their_answers(etcd: Etcd) -> None:
    """The answer is in the socket when the loop comes back, long after the deadline."""

    async def body() -> None:
        store = store_on(etcd.port, timeouts=QUICK)
        await store.open()
        changing = asyncio.ensure_future(put(store, b"1"))
        await asyncio.sleep(0)  # it is sent
        while etcd.version_of(f"{store._prefix}a".encode()) == 0:
            pass  # holding up this event loop
        await asyncio.to_thread(lambda: None)
        blocked = asyncio.get_running_loop().time() + 2 * QUICK.transaction_s
        while asyncio.get_running_loop().time() < blocked:
            pass
        await changing
        await store.close()

    run(body)
