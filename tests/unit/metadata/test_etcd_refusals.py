"""An etcd that is refused (another cluster, gone back, unsafe, no etcd at all), and one that refuses (full, users)."""

import asyncio
import shutil
from pathlib import Path

import pytest

from san_target.metadata.etcd import EtcdStore
from san_target.metadata.etcd_durability import is_unsafe
from san_target.metadata.store import Put, StoreError, StoreUnavailable
from tests.support.etcd import Etcd
from tests.support.target import free_port
from tests.unit.metadata.conftest import QUICK_LEASES
from tests.unit.metadata.etcd_support import GIVES_UP, Watcher, put, run, store_on

pytestmark = pytest.mark.tool("etcd")

# Another store, an unsafe one, a full one ----------------------------------------------------------------------------


def test_an_endpoint_of_another_cluster_is_not_used(etcd: Etcd, own: Etcd) -> None:
    own.start(*QUICK_LEASES)

    async def body() -> None:
        await asyncio.to_thread(own.wait_until_healthy)
        store = store_on(own.port, etcd.port, timeouts=GIVES_UP)
        await store.open()
        own.kill()
        with pytest.raises(StoreUnavailable, match=f"127.0.0.1:{etcd.port}: it belongs to another etcd cluster"):
            await store.get("a")
        await store.close()

    run(body)


def test_a_store_that_has_gone_back_is_refused_until_the_member_starts_again(own: Etcd) -> None:
    own.start(*QUICK_LEASES)

    async def body() -> None:
        await asyncio.to_thread(own.wait_until_healthy)
        store = store_on(own.port)
        await store.open()
        await put(store, b"1")
        own.kill()
        shutil.rmtree(own.directory)
        own.start(*QUICK_LEASES)
        await asyncio.to_thread(own.wait_until_healthy)
        for _ in range(2):
            with pytest.raises(StoreError, match=r"has gone back from revision .* restart this member"):
                await put(store, b"2")
        await store.close()
        await store.open()
        assert await store.get("a") is None
        await store.close()

    run(body)


def test_an_etcd_that_does_not_sync_is_refused(own: Etcd) -> None:
    own.start(*QUICK_LEASES, "--unsafe-no-fsync")

    async def body() -> None:
        await asyncio.to_thread(own.wait_until_healthy)
        with pytest.raises(StoreError, match=f"127.0.0.1:{own.port} does not sync its log .--unsafe-no-fsync"):
            await store_on(own.port).open()

    run(body)


def test_what_counts_as_unsafe() -> None:
    assert is_unsafe((2, 10), (2, 12))
    assert not is_unsafe((2, 10), (3, 12))
    assert not is_unsafe((2, 10), (2, 10))
    assert not is_unsafe((9, 10), (1, 2))  # started again in between
    assert not is_unsafe(None, (2, 12))
    assert not is_unsafe((2, 10), None)


def test_a_full_etcd_says_what_to_do(own: Etcd) -> None:
    own.start(*QUICK_LEASES, "--quota-backend-bytes", "1000000")

    async def body() -> None:
        await asyncio.to_thread(own.wait_until_healthy)
        store = store_on(own.port)
        await store.open()

        async def fill() -> None:
            for _ in range(1000):  # more than fits, also while etcd has not counted the last ones yet
                await put(store, bytes(100_000))
                await asyncio.sleep(0.01)

        with pytest.raises(StoreUnavailable, match=r"etcd is full .*nothing was changed; compact and defragment"):
            await fill()
        assert await store.get("a") is not None
        await store.close()

    run(body)


def test_nobody_is_there() -> None:
    port = free_port()

    async def body() -> None:
        with pytest.raises(StoreUnavailable) as caught:
            await store_on(port, timeouts=GIVES_UP).open()
        assert str(caught.value) == (
            f"etcd cannot be used now, nothing was changed (127.0.0.1:{port}: Connection refused); "
            "check that its processes run and reach each other"
        )

    run(body)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "it speaks HTTP/1 only; is it etcd's client port?"),
        (b"\0\0\0\x01\0\0\0\0\0" * 9, "it does not speak HTTP/2 as expected"),
        (b"", "it ended the connection at once; is it etcd's client port, and does it want TLS?"),
        (None, "no HTTP/2 connection within 0.5 s"),
    ],
    ids=["HTTP 1", "noise", "hangs up", "says nothing"],
)
def test_another_service_is_there(words: bytes | None, problem: str) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        if words != b"":
            writer.write(words or b"")
            await reader.read()  # until the other end gives up
        writer.close()

    async def body() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        with pytest.raises(StoreUnavailable) as caught:
            await store_on(server.sockets[0].getsockname()[1], timeouts=GIVES_UP).open()
        assert problem in str(caught.value)
        server.close()

    run(body)


# Users ---------------------------------------------------------------------------------------------------------------


def test_users(own: Etcd, tmp_path: Path) -> None:
    own.start(*QUICK_LEASES, "--bcrypt-cost", "4")
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    right.write_text("correct horse\n")
    wrong.write_text("battery staple\n")

    def store(password: Path | None, prefix: str = "/san/") -> EtcdStore:
        options = f"&user=san&password_file={password}" if password else ""
        return store_on(own.port, options=options, prefix=prefix)

    async def refusal(unusable: EtcdStore) -> str:
        with pytest.raises(StoreError) as caught:
            await unusable.open()
        assert not isinstance(caught.value, StoreUnavailable)
        return str(caught.value)

    async def body() -> None:
        await asyncio.to_thread(own.wait_until_healthy)
        own.make_user("san", "correct horse", "/san/")
        early = store(right)
        await early.open()  # before etcd asks for users
        watcher = Watcher(early, 1)
        first = await put(early, b"1")
        own.enable_users()
        second = await put(early, b"2")
        assert "etcd wants a user; add user=NAME&password_file=FILE" in await refusal(store(None))
        assert f"does not accept the user 'san' with the password in {wrong}" in await refusal(store(wrong))
        advice = "does not let the user 'san' use the keys below /other/; `etcdctl role grant-permission ROLE readwrite"
        assert advice in await refusal(store(right, "/other/"))
        late = store(right)
        await late.open()
        lease = await late.grant_lease(60)
        assert await late.renew_lease(lease)
        third = (await late.transact([], [Put("b", b"", lease)])).revision
        assert await watcher.until(third) == [first, second, third]
        # An etcd that starts again has forgotten its tokens.
        own.kill()
        own.start(*QUICK_LEASES, "--bcrypt-cost", "4")
        await asyncio.to_thread(own.wait_until_listening)
        fourth = await put(late, b"4")
        assert await watcher.until(fourth) == [first, second, third, fourth]
        await late.revoke_lease(lease)
        assert await early.get("b") is None
        await early.close()
        await late.close()

    run(body)


@pytest.mark.slow
def test_a_token_that_etcd_has_forgotten_is_renewed(own: Etcd, tmp_path: Path) -> None:
    """A change of rights makes all tokens old ones; a transaction that is turned away for it was not made."""
    own.start(*QUICK_LEASES, "--bcrypt-cost", "4", "--auth-token-ttl", "1")
    password = tmp_path / "password"
    password.write_text("secret\n")

    async def body() -> None:
        await asyncio.to_thread(own.wait_until_healthy)
        own.make_user("san", "secret", "/san/")
        own.enable_users()
        options = f"&user=san&password_file={password}"
        writing, watching = (store_on(own.port, options=options, prefix="/san/") for _ in range(2))
        await writing.open()
        await watching.open()
        first = await put(writing, b"1")
        await asyncio.sleep(2.5)  # longer than a token lives
        second = await put(writing, b"2")
        assert second == first + 1  # made once
        assert await Watcher(watching, first).until(second) == [first, second]
        await writing.close()
        await watching.close()

    run(body)
