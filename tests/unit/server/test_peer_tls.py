"""Peer links over TLS: members with certificates of the group's authority, and everybody else."""

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop

from san_target.peer.peers import Peers
from san_target.peer.service import PeerService
from san_target.server import config, peer_socket
from san_target.server.config import ConfigError, load
from san_target.server.environment import Environment
from san_target.server.peer_tls import PeerTls
from tests.support.certificates import CLIENT, SERVER, Authority
from tests.unit.peer.kit import Address, Owner, own, write
from tests.unit.server.test_peer_socket import HUGE, End, Pair, Run, ended

pytestmark = pytest.mark.tool("openssl")


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    with asyncio.Runner(loop_factory=request.param) as runner:
        yield lambda coroutine: runner.run(asyncio.wait_for(coroutine, 60))


class Files:
    """The group's authority with the certificates of two members, and a stranger's."""

    def __init__(self, directory: Path) -> None:
        self.authority = Authority(directory, "group-authority")
        self.a = self.authority.issue("member-a", SERVER, CLIENT)
        self.b = self.authority.issue("member-b", SERVER, CLIENT)
        self.other_authority = Authority(directory, "other-authority")
        self.stranger = self.other_authority.issue("stranger", SERVER, CLIENT)

    def tls(self, who: str, authority: Authority | None = None) -> PeerTls:
        certificate = getattr(self, who)
        options = {
            "directory": "d",
            "peer": "h:1",
            "peer_tls_ca": str((authority or self.authority).certificate),
            "peer_tls_cert": str(certificate.certificate),
            "peer_tls_key": str(certificate.key),
        }
        found = config.peer_tls(load(None, options))
        assert found is not None
        return found


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("certificates"))


def environment(tls: PeerTls | None) -> Environment:
    found = Environment()
    found.peer_tls = tls
    return found


def test_bytes_go_through_and_are_kept_until_taken(run: Run, files: Files) -> None:
    async def scenario() -> None:
        pair = Pair(environment(files.tls("a")))
        here, there = await pair.connect()
        there.transport.pause()
        buffer = bytearray(b"a" * HUGE)
        here.transport.send([b"head", memoryview(buffer)])
        buffer[:] = bytes(HUGE)
        assert here.transport.unsent_bytes > 0
        there.transport.resume()
        await there.until(lambda: len(there.data) == HUGE + 4)
        assert there.data == b"head" + b"a" * HUGE
        await here.until(lambda: here.drains > 0)
        assert here.transport.unsent_bytes == 0
        there.transport.close()
        await here.until(lambda: bool(here.reasons))
        assert there.reasons == []
        pair.listener.close()
        await ended(here, there)

    run(scenario())


def test_abort_is_noticed_at_the_other_end_only(run: Run, files: Files) -> None:
    async def scenario() -> None:
        pair = Pair(environment(files.tls("a")))
        here, there = await pair.connect()
        here.transport.abort()
        await there.until(lambda: bool(there.reasons))
        await asyncio.sleep(0.01)
        assert here.reasons == []
        assert len(there.reasons) == 1
        pair.listener.close()

    run(scenario())


async def reason_of(caller: Environment, answerer: Environment) -> str:
    """Why a link between the two does not come up; "" if it does."""
    owner = Owner()
    service = owner.service = PeerService(answerer, owner)
    address = await service.listen("127.0.0.1:0")
    service.begin(own("b"), {"a": 1}.get)
    peers = Peers(caller)
    peers.begin(own("a"))
    peers.follow([Address("b", 1, address)])
    link = peers.link("b")
    assert link is not None
    while link.state == "connecting":
        await asyncio.sleep(0.01)
    reason = link.reason
    if link.state == "up":
        answer = await link.request(write(3, b"over TLS"), caller.now_s() + 5)
        assert answer.detail == 8
        assert owner.medium == {3: b"over TLS"}
    peers.end()
    await service.stop()
    return reason


def test_members_of_one_authority(run: Run, files: Files) -> None:
    async def scenario() -> None:
        assert await reason_of(environment(files.tls("a")), environment(files.tls("b"))) == ""

    run(scenario())


def test_an_answerer_that_is_not_trusted(run: Run, files: Files) -> None:
    async def scenario() -> None:
        stranger = environment(files.tls("stranger"))
        reason = await reason_of(environment(files.tls("a")), stranger)
        assert "its certificate is not of this group's authority" in reason
        assert reason.endswith("check peer_tls_ca")

    run(scenario())


def test_a_caller_that_is_not_trusted(run: Run, files: Files) -> None:
    async def scenario() -> None:
        trusting = environment(files.tls("stranger"))
        trusting.peer_tls = files.tls("stranger", files.authority)
        reason = await reason_of(trusting, environment(files.tls("b")))
        assert "check peer_tls_cert" in reason or "same peer_tls_* settings" in reason

    run(scenario())


def test_one_with_and_one_without(run: Run, files: Files) -> None:
    async def scenario() -> None:
        reason = await reason_of(environment(files.tls("a")), environment(None))
        assert reason.endswith("give all members of the group peer_tls_* settings, or none")
        reason = await reason_of(environment(None), environment(files.tls("b")))
        assert "do both members have the same peer_tls_* settings?" in reason

    run(scenario())


def test_files_that_do_not_belong_together(files: Files) -> None:
    options = {
        "directory": "d",
        "peer": "h:1",
        "peer_tls_ca": str(files.authority.certificate),
        "peer_tls_cert": str(files.a.certificate),
        "peer_tls_key": str(files.b.key),
    }
    with pytest.raises(ConfigError, match=r"peer_tls_key: .*member-b.key is not the key of .*member-a.pem"):
        config.peer_tls(load(None, options))
    with pytest.raises(ConfigError, match="are no certificate and key in PEM form, without a password"):
        config.peer_tls(load(None, options | {"peer_tls_key": str(files.a.certificate)}))


def test_who_says_nothing_is_given_up(run: Run, files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_socket, "HANDSHAKE_S", 0.1)
    monkeypatch.setattr(peer_socket, "SECURING_MAX", 2)

    async def scenario() -> None:
        answerer = environment(files.tls("b"))
        listener = await answerer.listen_peers("127.0.0.1:0", End)
        host, port = listener.address.split(":")

        async def wait_for_the_end() -> None:
            with contextlib.suppress(ConnectionResetError):
                reader, writer = await asyncio.open_connection(host, int(port))
                assert await reader.read() == b""
                writer.close()

        await asyncio.gather(*(wait_for_the_end() for _ in range(3)))  # one more than may try
        listener.close()

        async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.close()

        server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(OSError, match="no answer in the TLS handshake"):
            await environment(files.tls("a")).connect_peer(f"127.0.0.1:{port}", End)
        server.close()

    run(scenario())
