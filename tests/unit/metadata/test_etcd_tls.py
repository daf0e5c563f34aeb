"""The etcd store over TLS: whom it trusts, how it proves itself, and what it says when that fails."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import uvloop

from san_target.metadata.etcd import EtcdStore
from san_target.metadata.etcd_client import Timeouts
from san_target.metadata.etcd_url import parse_etcd_url
from san_target.metadata.store import Put, StoreError, StoreUnavailable
from tests.support.certificates import CLIENT, SERVER, Authority, Certificate
from tests.support.etcd import Etcd
from tests.unit.metadata.conftest import QUICK_LEASES

pytestmark = pytest.mark.tool("etcd", "openssl")

# Tries again and again, and then tells what the last try that ended has met.
QUICK = Timeouts(connect_s=20.0, request_s=2.0)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def client(authority: Authority) -> Certificate:
    return authority.issue("member", CLIENT)


def start(etcd: Etcd, authority: Authority, server: Certificate, *options: str) -> None:
    files = ("--cert-file", str(server.certificate), "--key-file", str(server.key))
    etcd.start(*QUICK_LEASES, *files, "--trusted-ca-file", str(authority.certificate), *options)
    etcd.wait_until_listening()


@pytest.fixture(scope="module")
def strict(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    """An etcd that wants client certificates, and whose own is for servers only."""
    etcd = Etcd(tmp_path_factory.mktemp("strict"), scheme="https")
    start(etcd, authority, authority.issue("strict-server", SERVER), "--client-cert-auth")
    yield etcd
    etcd.kill()


def run(body: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await body()

    uvloop.run(bounded())  # as members do; the other tests use asyncio's own loop


def store_on(etcd: Etcd, timeouts: Timeouts | None = None, **options: object) -> EtcdStore:
    query = "&".join(f"{name}={value}" for name, value in options.items())
    return EtcdStore(parse_etcd_url(f"etcd://{etcd.host}?{query}"), timeouts)


async def use(store: EtcdStore) -> None:
    """Everything, once."""
    await store.open()
    at = (await store.transact([], [Put("a", b"1")])).revision
    assert (await anext(store.watch("", at))).revision == at
    lease = await store.grant_lease(10)
    assert await store.renew_lease(lease)
    await store.revoke_lease(lease)
    await store.close()


async def refusal(store: EtcdStore) -> str:
    with pytest.raises(StoreError) as caught:
        await store.open()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_client_certificates(strict: Etcd, authority: Authority, client: Certificate) -> None:
    async def body() -> None:
        await use(store_on(strict, ca=authority.certificate, cert=client.certificate, key=client.key))

    run(body)


def test_without_a_client_certificate_where_one_is_wanted(strict: Etcd, authority: Authority) -> None:
    async def body() -> None:
        message = await refusal(store_on(strict, QUICK, ca=authority.certificate))
        # By an end of the connection (3.4), or by a TLS alert before that (3.5).
        assert re.search(f"{strict.host}: (it ended the connection at once|TLS failed .* certificate, or one)", message)

    run(body)


def test_without_tls_where_it_is_spoken(strict: Etcd) -> None:
    async def body() -> None:
        message = await refusal(store_on(strict, QUICK, prefix="/a/"))
        assert f"{strict.host}: it ended the connection at once" in message
        assert "does it want TLS?" in message

    run(body)


def test_tls_where_it_is_not_spoken(etcd: Etcd, authority: Authority) -> None:
    async def body() -> None:
        message = await refusal(store_on(etcd, QUICK, ca=authority.certificate))
        assert f"{etcd.host}: it ended the connection during the TLS handshake; does it speak TLS?" in message

    run(body)


def test_an_etcd_of_another_authority(strict: Etcd, client: Certificate, tmp_path: Path) -> None:
    other = Authority(tmp_path, "other")

    async def body() -> None:
        with pytest.raises(StoreUnavailable, match="its certificate is not accepted") as caught:
            await store_on(strict, QUICK, ca=other.certificate, cert=client.certificate, key=client.key).open()
        assert strict.host in str(caught.value)
        # The system's authorities do not know it either.
        assert "its certificate is not accepted" in await refusal(
            store_on(strict, QUICK, cert=client.certificate, key=client.key)
        )

    run(body)


def test_a_certificate_and_the_key_of_another(strict: Etcd, authority: Authority, client: Certificate) -> None:
    other = authority.issue("other-member", CLIENT)

    async def body() -> None:
        message = await refusal(store_on(strict, ca=authority.certificate, cert=client.certificate, key=other.key))
        assert f"cert={client.certificate} and key={other.key} are not a certificate and its unencrypted key" in message

    run(body)


def test_users_with_certificates_and_passwords(authority: Authority, client: Certificate, tmp_path: Path) -> None:
    """The user is the certificate's name, unless the URL has another with its password."""
    etcd = Etcd(tmp_path, scheme="https")
    etcd.tls = authority.context(client)
    password = tmp_path / "password"
    password.write_text("secret")
    files = {"ca": authority.certificate, "cert": client.certificate, "key": client.key}
    as_san = {**files, "user": "san", "password_file": password}

    async def body() -> None:
        await use(store_on(etcd, **files, prefix="/member/"))
        await use(store_on(etcd, **as_san, prefix="/san/"))
        message = await refusal(store_on(etcd, **files, prefix="/san/"))
        assert "does not let the user of the certificate use the keys below /san/" in message
        assert "does not let the user 'san' use the keys" in await refusal(store_on(etcd, **as_san, prefix="/member/"))

    try:
        # Its gateway, by which users are set up here, needs a server certificate that may be a client's too.
        start(etcd, authority, authority.issue("both", SERVER, CLIENT), "--client-cert-auth", "--bcrypt-cost", "4")
        etcd.make_user("member", "secret", "/member/")
        etcd.make_user("san", "secret", "/san/")
        etcd.enable_users()
        run(body)
    finally:
        etcd.kill()
