"""The HTTP application of a member: REST API, OpenAPI document, metrics, health and the web page."""

import asyncio
from collections.abc import Awaitable, Callable
from importlib import resources

import msgspec
import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from san_target.admin.metrics import exposition, registry_for
from san_target.admin.openapi import API_PREFIX, document
from san_target.admin.operations import OPERATIONS, Call, Operation
from san_target.admin.security import BODY_BYTES_MAX, Guard, check_exposure, failure, token_matches
from san_target.admin.service import INITIATOR_NAME_PATTERN, NAME_PATTERN, MemberService
from san_target.admin.trace import Tracer
from san_target.group.errors import AdministrationError, Conflict, Invalid, NotFound
from san_target.metadata.store import StoreError

BODY_SECONDS_MAX = 10.0

logger = structlog.get_logger(__name__)

REFUSALS: dict[type[AdministrationError], tuple[int, str]] = {
    NotFound: (404, "not_found"),
    Conflict: (409, "conflict"),
    Invalid: (400, "invalid"),
}
# Regular expressions tell an operator little; say what they ask for.
PATTERN_TEXTS = {
    NAME_PATTERN: "a name of 1 to 64 lower-case letters, digits, '-' and '.', beginning and ending with no sign",
    INITIATOR_NAME_PATTERN: "an iSCSI name such as iqn.1993-08.org.debian:01:host",
}
PAGE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class Refused(Exception):
    """A request that the HTTP layer itself refuses."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.answer = failure(status, code, message)


def create_app(service: MemberService, token: str | None, host: str = "127.0.0.1") -> Starlette:
    """The application for an admin port bound to `host`. Raises Invalid if that would expose it (check_exposure)."""
    check_exposure(host, token)
    tracer = Tracer(service)
    described = msgspec.json.encode(document(OPERATIONS))
    page = resources.files("san_target.admin").joinpath("page.html").read_text(encoding="utf-8")
    registry = registry_for(service)
    secret = None if token is None else token.encode()

    async def openapi(_: Request) -> Response:
        return Response(described, media_type="application/json")

    async def metrics(request: Request) -> Response:
        body, content_type = exposition(registry, request.headers.get("accept", ""))
        return Response(body, headers={"Content-Type": content_type})

    async def healthz(request: Request) -> Response:
        health = service.health()
        if not token_matches(secret, request.headers):
            health = msgspec.structs.replace(health, reasons=())
        status = 200 if health.status in {"ok", "degraded"} else 503
        return Response(msgspec.json.encode(health), status_code=status, media_type="application/json")

    async def web_page(_: Request) -> Response:
        return HTMLResponse(page, headers=PAGE_HEADERS)

    routes = [
        Route("/", web_page),
        Route("/healthz", healthz),
        Route("/metrics", metrics),
        Route(f"{API_PREFIX}/openapi.json", openapi),
        *(_route(operation, service, tracer) for operation in OPERATIONS),
    ]
    return Starlette(
        routes=routes,
        middleware=[Middleware(Guard, token=token, bound_host=host)],
        exception_handlers={HTTPException: _http_exception, Exception: _unexpected},
    )


def _route(operation: Operation, service: MemberService, tracer: Tracer) -> Route:
    return Route(
        API_PREFIX + operation.path,
        _endpoint(operation, service, tracer),
        methods=[operation.method],
        name=operation.name,
    )


def _endpoint(operation: Operation, service: MemberService, tracer: Tracer) -> Callable[[Request], Awaitable[Response]]:
    decoder = None if operation.body is None else msgspec.json.Decoder(operation.body)
    allowed = frozenset(operation.query or {})

    async def endpoint(request: Request) -> Response:
        try:
            unknown = request.query_params.keys() - allowed
            if unknown:
                raise Invalid(f"unknown query parameter: {', '.join(sorted(unknown))}")
            body = None if decoder is None else decoder.decode(await _read_body(request))
            call = Call(service, tracer, request.path_params, request.query_params, body)
            answer = await operation.handler(call)
        except Refused as refused:
            return refused.answer
        except msgspec.ValidationError as error:
            return failure(400, "invalid", validation_text(error))
        except msgspec.DecodeError as error:
            return failure(400, "invalid", f"the body is not valid JSON: {error}")
        except UnicodeDecodeError:
            return failure(400, "invalid", "the body is not valid JSON: it is not UTF-8")
        except AdministrationError as error:
            status, code = refusal(error)
            return failure(status, code, str(error))
        except StoreError as error:
            return failure(503, "store_unavailable", str(error))
        if operation.answer is None:
            return Response(status_code=operation.status, headers=call.headers)
        return Response(
            msgspec.json.encode(answer),
            status_code=operation.status,
            headers=call.headers,
            media_type="application/json",
        )

    return endpoint


async def _read_body(request: Request) -> bytes:
    """The body, bounded in size and time. A JSON content type is demanded: browsers then ask before they send."""
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        raise Refused(415, "unsupported_media_type", "the body must be sent as Content-Type: application/json")
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS_MAX):
            async for part in request.stream():
                body += part
                if len(body) > BODY_BYTES_MAX:
                    raise Refused(413, "too_large", f"a request body may have at most {BODY_BYTES_MAX} bytes")
    except TimeoutError:
        raise Refused(408, "timeout", "the body did not arrive in time") from None
    except ClientDisconnect:
        raise Refused(400, "invalid", "the body ended early") from None
    return bytes(body)


def refusal(error: AdministrationError) -> tuple[int, str]:
    """The HTTP status and the code word of a refusal; unknown kinds count as conflicts."""
    for kind, answer in REFUSALS.items():
        if isinstance(error, kind):
            return answer
    return 409, "conflict"


def validation_text(error: msgspec.ValidationError) -> str:
    """msgspec's message as "where: what", with patterns in words."""
    message, _, where = str(error).partition(" - at `$.")
    for pattern, text in PATTERN_TEXTS.items():
        message = message.replace(f"`str` matching regex {pattern!r}", text)
    message = message.replace("`", "")
    return f"{where.rstrip('`')}: {message}" if where else message


async def _http_exception(_: Request, error: Exception) -> Response:
    """Starlette's own refusals (404 for a path, 405 for a method) in our shape."""
    if not isinstance(error, HTTPException):
        raise error
    codes = {404: "not_found", 405: "method_not_allowed"}
    answer = failure(error.status_code, codes.get(error.status_code, "refused"), error.detail)
    answer.headers.update(error.headers or {})
    return answer


async def _unexpected(request: Request, error: Exception) -> Response:
    """Our own mistake: all of it into the log, nothing of it to the caller."""
    logger.error("admin request failed", method=request.method, path=request.url.path, exc_info=error)
    return failure(500, "internal", "the member failed to carry this out; its log has the details")
