"""Who may talk to the admin port: exposure, token, Host and Origin, size and type of bodies, silence about secrets."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from san_target.admin.app import create_app
from san_target.admin.security import BODY_BYTES_MAX, check_exposure, host_of, is_loopback
from san_target.admin.service import ChapUser, VolumeSpec
from san_target.group.errors import Invalid
from san_target.metadata.store import StoreUnavailable
from tests.unit.admin.client import AppClient
from tests.unit.admin.fake_service import FakeService

TOKEN = "0123456789abcdef0123456789abcdef"
VOLUMES = "/api/v1/volumes"
JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "[::1]", "localhost", "LOCALHOST"])
def test_loopback_needs_no_token(host: str) -> None:
    assert is_loopback(host)
    check_exposure(host, None)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "san.example", "localhost.example", ""])
def test_other_addresses_need_a_token(host: str) -> None:
    with pytest.raises(Invalid, match="API token"):
        check_exposure(host, None)
    check_exposure(host, TOKEN)


def test_short_token_is_refused_even_on_loopback() -> None:
    with pytest.raises(Invalid, match="16"):
        check_exposure("127.0.0.1", "short")


def test_application_cannot_be_made_exposed() -> None:
    with pytest.raises(Invalid):
        create_app(FakeService(), None, "0.0.0.0")


@pytest.mark.parametrize(
    ("authority", "host"), [("a:1", "a"), ("a", "a"), ("[::1]:80", "::1"), ("[::1]", "::1"), ("", "")]
)
def test_host_of_an_authority(authority: str, host: str) -> None:
    assert host_of(authority) == host


@pytest.fixture
def guarded(service: FakeService) -> AppClient:
    return AppClient(create_app(service, TOKEN, "0.0.0.0"))


@pytest.mark.parametrize("path", [VOLUMES, "/metrics", "/api/v1/openapi.json", "/api/v1/nothing"])
@pytest.mark.parametrize("authorization", [None, "Bearer wrong", f"Basic {TOKEN}", TOKEN, "Bearer ", "Bearer \xff"])
def test_without_the_token_nothing_is_told(guarded: AppClient, path: str, authorization: str | None) -> None:
    headers = {} if authorization is None else {"Authorization": authorization.encode("latin-1")}
    answer = guarded.get(path, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"]["code"] == "unauthorized"


@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
def test_the_token_opens(guarded: AppClient, scheme: str) -> None:
    assert guarded.get(VOLUMES, headers={"Authorization": f"{scheme} {TOKEN}"}).json() == []


def test_page_and_health_are_open_but_tell_no_reasons(guarded: AppClient, service: FakeService) -> None:
    service.health_value = type(service.health_value)(status="degraded", reasons=("the pool /srv/a is low",))
    assert guarded.get("/").status_code == 200
    assert guarded.get("/healthz").json() == {"status": "degraded", "reasons": []}
    told = guarded.get("/healthz", headers={"Authorization": f"Bearer {TOKEN}"}).json()
    assert told["reasons"] == ["the pool /srv/a is low"]


@pytest.mark.parametrize("host", ["evil.example", "evil.example:3280", "localhost.evil.example", ""])
def test_on_loopback_a_foreign_host_header_is_refused(client: AppClient, host: str) -> None:
    assert client.get(VOLUMES, headers={"Host": host}).status_code == 403
    assert client.get("/", headers={"Host": host}).status_code == 403


@pytest.mark.parametrize("host", ["localhost", "localhost:1", "127.0.0.1:3280", "[::1]:3280"])
def test_on_loopback_its_own_names_are_accepted(client: AppClient, host: str) -> None:
    assert client.get(VOLUMES, headers={"Host": host}).status_code == 200


def test_off_loopback_any_host_header_is_accepted(guarded: AppClient) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}", "Host": "san.example:3280"}
    assert guarded.get(VOLUMES, headers=headers).status_code == 200


def test_changes_from_another_origin_are_refused(client: AppClient, service: FakeService) -> None:
    body = {"name": "disk", "size_bytes": 512}
    for origin in ("https://evil.example", "null", "http://127.0.0.1:9"):
        assert client.post(VOLUMES, json=body, headers={"Origin": origin}).status_code == 403
    assert client.get(VOLUMES).json() == []
    assert client.post(VOLUMES, json=body, headers={"Origin": "http://127.0.0.1:3280"}).status_code == 201


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "", "application/jsonx"])
def test_body_must_say_it_is_json(client: AppClient, content_type: str) -> None:
    body = b'{"name": "disk", "size_bytes": 512}'
    answer = client.post(VOLUMES, content=body, headers={"Content-Type": content_type})
    assert answer.status_code == 415
    assert client.get(VOLUMES).json() == []


def test_body_with_a_charset_is_json(client: AppClient) -> None:
    body = b'{"name": "disk", "size_bytes": 512}'
    headers = {"Content-Type": "application/json; charset=utf-8"}
    assert client.post(VOLUMES, content=body, headers=headers).status_code == 201


def test_large_bodies_are_refused_announced_or_not(client: AppClient) -> None:
    async def chunks() -> Iterator[bytes]:  # type: ignore[misc]
        for _ in range(3):
            yield b" " * (BODY_BYTES_MAX // 2)

    assert client.post(VOLUMES, content=b" " * (BODY_BYTES_MAX + 1), headers=JSON).status_code == 413
    assert client.post(VOLUMES, content=chunks(), headers=JSON).status_code == 413


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "JSON"),
        (b"{", "JSON"),
        (b"\xff", "JSON"),
        (b'{"name": "\xff", "size_bytes": 512}', "JSON"),
        (b"[]", "object"),
        (b"{}", "name"),
        (b'{"name": "Disk", "size_bytes": 512}', "name: Expected a name"),
        (b'{"name": "disk\\n", "size_bytes": 512}', "name: Expected a name"),
        (b'{"name": "d", "size_bytes": 0}', "size_bytes"),
        (b'{"name": "d", "size_bytes": 1e30}', "size_bytes"),
        (b'{"name": "d", "size_bytes": "10G"}', "size_bytes"),
        (b'{"name": "d", "size_bytes": 512, "block_size": 520}', "block_size"),
        (b'{"name": "d", "size_bytes": 512, "read-only": true}', "read-only"),
        (b'{"name": "d", "size_bytes": 512, "allow": ["host"]}', "allow[0]: Expected an iSCSI name"),
        (b'{"name": "d", "size_bytes": 512, "chap": [{"user": "u", "secret": "short"}]}', "chap[0].secret"),
    ],
)
def test_bad_bodies_say_what_is_wrong(client: AppClient, body: bytes, words: str) -> None:
    answer = client.post(VOLUMES, content=body, headers=JSON)
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]


def test_unknown_paths_methods_and_parameters(client: AppClient) -> None:
    assert client.get("/api/v1/nothing").json()["error"]["code"] == "not_found"
    refused = client.request("PUT", VOLUMES, json={})
    assert refused.status_code == 405
    assert "GET" in refused.headers["allow"]
    assert "colour" in client.get(VOLUMES + "?colour=red").json()["error"]["message"]


def test_no_secret_is_ever_told(client: AppClient, service: FakeService, caplog: pytest.LogCaptureFixture) -> None:
    secret = "the very secret of all"
    users = [{"user": "host", "secret": secret}]
    body = {"name": "disk", "size_bytes": 512, "chap": users, "mutual_chap": {"user": "san", "secret": secret + "2"}}
    answers = [
        client.post(VOLUMES, json=body),
        client.post(VOLUMES, json=body),
        client.post(VOLUMES, json={**body, "name": "Bad"}),
        client.post(VOLUMES, json={**body, "chap": [{"user": "u", "secret": secret * 20}]}),
        client.request("PATCH", f"{VOLUMES}/disk", json={"chap": users}),
        client.get(f"{VOLUMES}/disk"),
        client.get(VOLUMES),
    ]
    assert [answer.status_code for answer in answers] == [201, 409, 400, 400, 200, 200, 200]
    assert service.secrets["disk"][0].secret == secret
    assert not any(secret in answer.text for answer in answers)
    assert json.loads(answers[5].text)["chap"] == ["host"]
    assert secret not in caplog.text
    assert secret not in repr(VolumeSpec(name="d", size_bytes=1, chap=(ChapUser(user="u", secret=secret),)))


def test_store_outage_is_a_503_with_its_reason(client: AppClient, service: FakeService) -> None:
    service.failure = StoreUnavailable("the store at /srv/store.db did not answer in 5 s")
    answer = client.get(VOLUMES)
    assert answer.status_code == 503
    assert answer.json()["error"] == {"code": "store_unavailable", "message": str(service.failure)}


def test_our_own_mistake_is_logged_and_not_told(
    client: AppClient, service: FakeService, capsys: pytest.CaptureFixture[str]
) -> None:
    service.failure = RuntimeError("internal detail")
    answer = client.get(VOLUMES)
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal"
    assert "internal detail" not in answer.text
    assert "internal detail" in capsys.readouterr().out
