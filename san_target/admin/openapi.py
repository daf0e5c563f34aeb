"""The OpenAPI 3.1 document, generated from the operation table and the structs that requests are checked against."""

import re
from collections.abc import Sequence
from typing import Any

import msgspec

import san_target
from san_target.admin.operations import Operation

API_PREFIX = "/api/v1"
REFERENCE = "#/components/schemas/{name}"

FAILURES = {
    400: "The request is malformed or can never be carried out",
    401: "An API token is needed",
    403: "The Host or Origin header is not acceptable",
    404: "There is no such object",
    409: "The present state forbids it",
    413: "The body is too large",
    415: "The body is not JSON",
    503: "The metadata store does not answer",
}
ALWAYS = (401, 403, 503)
WITH_BODY = (400, 413, 415)


class ErrorDetail(msgspec.Struct, kw_only=True, frozen=True):
    """code: a stable word for programs; message: a sentence for operators."""

    code: str
    message: str


class Error(msgspec.Struct, kw_only=True, frozen=True):
    """The body of every answer with a status of 400 or more."""

    error: ErrorDetail


def document(operations: Sequence[Operation]) -> dict[str, Any]:
    """The whole document as JSON-ready values."""
    types = [Error, *(kind for operation in operations for kind in (operation.answer, operation.body) if kind)]
    schemas, components = msgspec.json.schema_components(types, ref_template=REFERENCE)
    schema_of = dict(zip(map(repr, types), schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        methods = paths.setdefault(API_PREFIX + operation.path, {})
        methods[operation.method.lower()] = _describe(operation, schema_of)
    for component in components.values():
        if "description" in component:
            component["description"] = re.sub(r"\s+", " ", component["description"])
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "san-target",
            "version": san_target.__version__,
            "description": "Administration of a group of iSCSI members. Every member answers for the group.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}, {}],
    }


def _describe(operation: Operation, schema_of: dict[str, Any]) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "responses": _responses(operation, schema_of),
    }
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"{(\w+)}", operation.path)
    ]
    parameters += [
        {"name": name, "in": "query", "required": False, "schema": {"type": kind}}
        for name, kind in (operation.query or {}).items()
    ]
    if parameters:
        described["parameters"] = parameters
    if operation.body is not None:
        described["requestBody"] = {"required": True, "content": _json(schema_of[repr(operation.body)])}
    return described


def _responses(operation: Operation, schema_of: dict[str, Any]) -> dict[str, Any]:
    done: dict[str, Any] = {"description": "Done"}
    if operation.answer is not None:
        done["content"] = _json(schema_of[repr(operation.answer)])
    failures = {*ALWAYS, *operation.failures}
    if operation.body is not None:
        failures |= {*WITH_BODY}
    if operation.query:
        failures |= {400}
    error = _json(schema_of[repr(Error)])
    return {
        str(operation.status): done,
        **{str(status): {"description": FAILURES[status], "content": error} for status in sorted(failures)},
    }


def _json(schema: Any) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}
