"""Who may talk to the admin port: exposure rule, API token, Host and Origin checks, size limit of bodies.

Without a token everyone who reaches the port is the operator, so it then stays on loopback. A browser on the same
machine reaches loopback too, on behalf of any web page: the Host check stops DNS rebinding, the Origin check and the
demand for a JSON content type stop forged requests.
"""

import hmac
import ipaddress
from typing import TYPE_CHECKING

import msgspec
from starlette.datastructures import Headers
from starlette.responses import Response

from san_target.group.errors import Invalid

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

BODY_BYTES_MAX = 64 * 1024
TOKEN_CHARACTERS_MIN = 16
OPEN_PATHS = frozenset({"/", "/healthz"})
"""Answered without a token: the page holds no data and asks for the token itself, healthz then says one word."""


def is_loopback(host: str) -> bool:
    """Whether an address or name stands for this machine alone. Other names than "localhost" are not resolved."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_exposure(host: str, token: str | None) -> None:
    """Raise Invalid unless the admin port may be bound to `host`: on loopback, or protected by a usable token."""
    if token is not None and len(token) < TOKEN_CHARACTERS_MIN:
        raise Invalid(
            f"the API token has {len(token)} characters, at least {TOKEN_CHARACTERS_MIN} are needed; "
            "make one with: openssl rand -hex 32"
        )
    if token is None and not is_loopback(host):
        raise Invalid(
            f"the admin port would be open to everyone who reaches {host}: give an API token (--api-token-file FILE) "
            "or bind it to loopback (--admin 127.0.0.1:3280)"
        )


def host_of(authority: str) -> str:
    """The host part of "host:port", "host", "[address]:port"."""
    if authority.startswith("["):
        return authority[1:].partition("]")[0]
    return authority.partition(":")[0]


def failure(status: int, code: str, message: str) -> Response:
    """The one shape of every error answer: {"error": {"code", "message"}}."""
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
    body = msgspec.json.encode({"error": {"code": code, "message": message}})
    return Response(body, status_code=status, media_type="application/json", headers=headers)


class Guard:
    """ASGI middleware around the whole API. `bound_host` is the address the admin port is bound to."""

    def __init__(self, app: "ASGIApp", token: str | None, bound_host: str) -> None:
        self._app = app
        self._token = None if token is None else token.encode()
        self._loopback_only = is_loopback(bound_host)

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        if scope["type"] != "http":
            return
        refusal = self._refusal(scope["method"], scope["path"], Headers(scope=scope))
        await (refusal or self._app)(scope, receive, send)

    def _refusal(self, method: str, path: str, headers: Headers) -> Response | None:
        host = headers.get("host", "")
        if self._loopback_only and not is_loopback(host_of(host)):
            return failure(403, "forbidden", "the Host header does not name this machine (localhost, 127.0.0.1)")
        origin = headers.get("origin")
        if method not in {"GET", "HEAD"} and origin is not None and origin.partition("://")[2] != host:
            return failure(403, "forbidden", "requests from web pages of another origin are refused")
        if path not in OPEN_PATHS and not token_matches(self._token, headers):
            return failure(401, "unauthorized", "this member asks for an API token (Authorization: Bearer ...)")
        length = headers.get("content-length", "0")
        if not length.isascii() or not length.isdigit() or int(length) > BODY_BYTES_MAX:
            return failure(413, "too_large", f"a request body may have at most {BODY_BYTES_MAX} bytes")
        return None


def token_matches(token: bytes | None, headers: Headers) -> bool:
    """Whether a request carries the token, if one is set; compared in constant time."""
    if token is None:
        return True
    scheme, _, given = headers.get("authorization", "").partition(" ")
    return hmac.compare_digest(given.strip().encode(), token) and scheme.lower() == "bearer"
