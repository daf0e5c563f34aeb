"""Every operation's answers, good and bad, fit the OpenAPI document; the document lists every route."""

from __future__ import annotations

from typing import Any

import pytest

from san_target.admin.openapi import API_PREFIX
from san_target.admin.operations import OPERATIONS, Operation
from tests.unit.admin.client import AppClient
from tests.unit.admin.fake_service import FakeService
from tests.unit.admin.schema_check import mismatches

SIZE = 1 << 20
SPEC = {
    "name": "disk",
    "size_bytes": SIZE,
    "allow": ["iqn.1993-08.org.debian:01:host"],
    "chap": [{"user": "host", "secret": "a secret of the host"}],
    "mutual_chap": {"user": "san", "secret": "a secret of the san"},
}

# Operation -> (path, body, query) of a request that succeeds once `disk` exists and has the session m1-1.
GOOD: dict[str, tuple[str, Any, str]] = {
    "group_status": ("/group", None, ""),
    "list_members": ("/members", None, ""),
    "show_member": ("/members/m1", None, ""),
    "remove_member": ("/members/gone", None, "?force=true"),
    "drain_member": ("/members/m1/drain", None, ""),
    "drain_status": ("/members/m1/drain", None, ""),
    "activate_member": ("/members/m1/activate", None, ""),
    "list_volumes": ("/volumes", None, ""),
    "create_volume": ("/volumes", {"name": "other", "size_bytes": 4096, "block_size": 4096}, ""),
    "show_volume": ("/volumes/disk", None, ""),
    "change_volume": ("/volumes/disk", {"read_only": True, "mutual_chap": None}, ""),
    "delete_volume": ("/volumes/disk", None, "?force=true"),
    "resize_volume": ("/volumes/disk/resize", {"size_bytes": 2 * SIZE}, ""),
    "volume_map": ("/volumes/disk/map", None, "?from=7"),
    "list_migrations": ("/migrations", None, ""),
    "start_migrations": ("/migrations", {"volume": "disk", "to": "m2", "start_lba": 0, "end_lba": 2048}, ""),
    "show_migration": ("/migrations/g1", None, ""),
    "pause_migration": ("/migrations/g1/pause", None, ""),
    "resume_migration": ("/migrations/g1/resume", None, ""),
    "cancel_migration": ("/migrations/g1/cancel", None, ""),
    "list_portals": ("/portals", None, ""),
    "show_portal": ("/portals/127.0.0.1:3260", None, ""),
    "change_portals": ("/portals", {"policy": "least-loaded"}, ""),
    "list_sessions": ("/sessions", None, ""),
    "show_session": ("/sessions/m1-1", None, ""),
    "drop_session": ("/sessions/m1-1", None, ""),
    "move_session": ("/sessions/m1-1/move", {"to": "m2"}, ""),
    "show_loads": ("/load", None, ""),
    "show_balance": ("/balance", None, ""),
    "change_balance": ("/balance", {"paused": True}, ""),
    "run_balance": ("/balance/run", {"dry_run": True}, ""),
    "start_trace": ("/sessions/m1-1/trace", {"seconds": 5}, ""),
    "read_trace": ("/sessions/m1-1/trace", None, "?after=0"),
    "stop_trace": ("/sessions/m1-1/trace", None, ""),
}
# Operation -> (path, body, query, status) of requests that are refused.
BAD: list[tuple[str, str, Any, str, int]] = [
    ("show_member", "/members/m9", None, "", 404),
    ("remove_member", "/members/m9", None, "", 404),
    ("remove_member", "/members/m1", None, "?force=true", 409),
    ("remove_member", "/members/gone", None, "", 409),
    ("remove_member", "/members/gone", None, "?force=1", 400),
    ("drain_member", "/members/m9/drain", None, "", 404),
    ("drain_status", "/members/m9/drain", None, "", 404),
    ("activate_member", "/members/m9/activate", None, "", 404),
    ("create_volume", "/volumes", SPEC, "", 409),
    ("create_volume", "/volumes", {"name": "x", "size_bytes": 4096, "members": ["m9"]}, "", 404),
    ("create_volume", "/volumes", {"name": "x", "size_bytes": 513}, "", 400),
    ("create_volume", "/volumes", {"name": "x", "size_bytes": 512, "copies": 2}, "", 400),
    ("show_volume", "/volumes/none", None, "", 404),
    ("change_volume", "/volumes/none", {}, "", 404),
    ("delete_volume", "/volumes/none", None, "", 404),
    ("delete_volume", "/volumes/disk", None, "", 409),
    ("delete_volume", "/volumes/disk", None, "?force=yes", 400),
    ("resize_volume", "/volumes/none/resize", {"size_bytes": 512}, "", 404),
    ("resize_volume", "/volumes/disk/resize", {"size_bytes": 512}, "", 409),
    ("resize_volume", "/volumes/disk/resize", {"size_bytes": 513}, "", 400),
    ("volume_map", "/volumes/none/map", None, "", 404),
    ("volume_map", "/volumes/disk/map", None, "?from=x", 400),
    ("start_migrations", "/migrations", {"volume": "none", "to": "m2"}, "", 404),
    ("start_migrations", "/migrations", {"volume": "disk", "to": "m1"}, "", 409),
    ("start_migrations", "/migrations", {"volume": "disk"}, "", 400),
    ("start_migrations", "/migrations", {"volume": "disk", "to": "m2", "start_lba": -1}, "", 400),
    ("show_migration", "/migrations/g9", None, "", 404),
    ("pause_migration", "/migrations/g9/pause", None, "", 404),
    ("resume_migration", "/migrations/g9/resume", None, "", 404),
    ("cancel_migration", "/migrations/g9/cancel", None, "", 404),
    ("change_portals", "/portals", {"policy": "random"}, "", 400),
    ("show_portal", "/portals/10.0.0.1:3260", None, "", 404),
    ("show_session", "/sessions/m1-9", None, "", 404),
    ("drop_session", "/sessions/m1-9", None, "", 404),
    ("move_session", "/sessions/m1-9/move", {"to": "m2"}, "", 404),
    ("move_session", "/sessions/m1-1/move", {"to": "m9"}, "", 404),
    ("move_session", "/sessions/m1-1/move", {"to": "busy"}, "", 409),
    ("move_session", "/sessions/m1-1/move", {}, "", 400),
    ("change_balance", "/balance", {}, "", 400),
    ("run_balance", "/balance/run", {"dry": True}, "", 400),
    ("start_trace", "/sessions/m1-9/trace", {}, "", 404),
    ("start_trace", "/sessions/m1-1/trace", {"seconds": 0}, "", 400),
    ("read_trace", "/sessions/m1-9/trace", None, "", 404),
    ("read_trace", "/sessions/m1-1/trace", None, "?after=-1", 400),
    ("stop_trace", "/sessions/m1-9/trace", None, "", 404),
]
BY_NAME = {operation.name: operation for operation in OPERATIONS}


def ask(client: AppClient, operation: Operation, path: str, body: Any, query: str) -> Any:
    return client.request(operation.method, API_PREFIX + path + query, json=body)


def prepare(client: AppClient, service: FakeService) -> None:
    """The volume `disk` with the session m1-1, which is traced, and the migration g1."""
    assert client.post(f"{API_PREFIX}/volumes", json=SPEC).status_code == 201
    service.log_in("disk")
    assert client.post(f"{API_PREFIX}/sessions/m1-1/trace", json={}).status_code == 201
    assert client.post(f"{API_PREFIX}/migrations", json={"volume": "disk", "to": "m2"}).status_code == 201


def documented(document: dict[str, Any], operation: Operation, status: int) -> dict[str, Any]:
    responses = document["paths"][API_PREFIX + operation.path][operation.method.lower()]["responses"]
    assert str(status) in responses, f"{operation.name} answered {status}, which is not documented"
    response: dict[str, Any] = responses[str(status)]
    return response


def check_answer(document: dict[str, Any], operation: Operation, answer: Any) -> None:
    response = documented(document, operation, answer.status_code)
    if "content" not in response:
        assert answer.content == b""
        return
    assert answer.headers["content-type"] == "application/json"
    schema = response["content"]["application/json"]["schema"]
    assert mismatches(answer.json(), schema, document["components"]["schemas"]) == []


@pytest.fixture
def document(client: AppClient) -> dict[str, Any]:
    answer = client.get(f"{API_PREFIX}/openapi.json")
    assert answer.status_code == 200
    parsed: dict[str, Any] = answer.json()
    return parsed


def test_every_operation_has_a_good_request() -> None:
    assert GOOD.keys() == BY_NAME.keys()


def test_document_has_exactly_the_operations(document: dict[str, Any]) -> None:
    described = {
        (method.upper(), path, value["operationId"])
        for path, methods in document["paths"].items()
        for method, value in methods.items()
    }
    assert described == {(one.method, API_PREFIX + one.path, one.name) for one in OPERATIONS}
    assert document["openapi"] == "3.1.0"


@pytest.mark.parametrize("name", sorted(GOOD))
def test_success_fits_the_document(
    name: str, client: AppClient, service: FakeService, document: dict[str, Any]
) -> None:
    prepare(client, service)
    operation = BY_NAME[name]
    path, body, query = GOOD[name]
    answer = ask(client, operation, path, body, query)
    assert answer.status_code == operation.status, answer.text
    check_answer(document, operation, answer)


@pytest.mark.parametrize(("name", "path", "body", "query", "status"), BAD)
def test_refusal_fits_the_document(
    name: str,
    path: str,
    body: Any,
    query: str,
    status: int,
    client: AppClient,
    service: FakeService,
    document: dict[str, Any],
) -> None:
    prepare(client, service)
    answer = ask(client, BY_NAME[name], path, body, query)
    assert answer.status_code == status, answer.text
    check_answer(document, BY_NAME[name], answer)
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize("name", sorted(name for name in GOOD if GOOD[name][1] is not None))
def test_request_bodies_fit_the_document(name: str, document: dict[str, Any]) -> None:
    operation = BY_NAME[name]
    described = document["paths"][API_PREFIX + operation.path][operation.method.lower()]
    schema = described["requestBody"]["content"]["application/json"]["schema"]
    assert mismatches(GOOD[name][1], schema, document["components"]["schemas"]) == []
    assert mismatches({"surprise": 1}, schema, document["components"]["schemas"]) != []


def test_checker_sees_a_wrong_answer(document: dict[str, Any]) -> None:
    """The checker itself can fail: a volume without a name, and one with a text for a size."""
    schema = {"$ref": "#/components/schemas/Volume"}
    components = document["components"]["schemas"]
    volume = {"id": "1", "name": "d", "iqn": "i", "size_bytes": 1, "block_size": 512, "members": [], "sessions": []}
    assert mismatches(volume, schema, components) == []
    assert mismatches({**volume, "size_bytes": "1"}, schema, components) != []
    del volume["name"]
    assert mismatches(volume, schema, components) != []
