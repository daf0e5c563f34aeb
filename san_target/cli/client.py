"""The commands' way to a member: one blocking request at a time, and every failure as one clear line.

httpx is imported only when a request is made; it takes longer to load than the rest of the program.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, TypeVar
from urllib.parse import quote

import click

from san_target.cli.output import printable
from san_target.cli.values import read_secret

API_DEFAULT = "http://127.0.0.1:3280"
UNREACHABLE_HEADER = "San-Target-Unreachable"  # as in admin.operations, which takes long to load
TIMEOUT_S = 30.0

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Api:
    """One member's API. url: without the /api/v1 prefix."""

    url: str
    token: str | None = None

    def get(self, path: str, **parameters: Any) -> Any:
        return self.ask("GET", path, parameters=parameters)

    def ask(
        self, method: str, path: str, body: Any = None, parameters: Any = None, timeout_s: float = TIMEOUT_S
    ) -> Any:
        """The decoded answer, None if it has no content. Raises ClickException with one line for operators."""
        import httpx

        headers = {} if self.token is None else {"Authorization": f"Bearer {self.token}"}
        try:
            # The member is named by --api alone: a proxy of the environment would be asked for our own loopback.
            with httpx.Client(base_url=self.url, headers=headers, timeout=timeout_s, trust_env=False) as client:
                answer = client.request(method, f"/api/v1{path}", json=body, params=parameters or None)
        except (httpx.ConnectError, httpx.ConnectTimeout):
            raise click.ClickException(
                f"no member answers at {self.url}: start one with `san-target serve` or `san-target demo`, "
                "or name another with --api URL"
            ) from None
        except httpx.TimeoutException:
            raise click.ClickException(f"the member at {self.url} did not answer within {timeout_s:.0f} s") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise click.ClickException(f"cannot talk to {self.url}: {error}") from None
        return self._content(answer)

    def _content(self, answer: Any) -> Any:
        unreachable = answer.headers.get(UNREACHABLE_HEADER)
        if unreachable:
            click.echo(
                f"san-target: no answer from member {printable(unreachable)}: what it knows is missing here", err=True
            )
        if answer.status_code == 204:
            return None
        try:
            content = answer.json()
        except ValueError:
            content = None
        if answer.status_code < 300 and content is not None:
            return content
        try:
            message = content["error"]["message"]
        except (TypeError, KeyError):
            raise click.ClickException(
                f"{self.url} does not answer as a san-target member does (HTTP status {answer.status_code})"
            ) from None
        if answer.status_code == 401:
            message = f"{message}: give --token-file FILE or SAN_TARGET_TOKEN"
        raise click.ClickException(message)


def segment(name: str) -> str:
    """A name as one segment of a path. ClickException for what can be none, and so names nothing."""
    if "/" in name or name in {"", ".", ".."}:
        raise click.ClickException(f"{name!r} is no name")
    return quote(name, safe="")


def _checked_url(_: click.Context, __: click.Parameter, url: str | None) -> str | None:
    if url is not None and not url.startswith(("http://", "https://")):
        raise click.BadParameter(f"{url!r} is no URL: expected http://HOST:PORT")
    return url


def _with_options(command: Callable[..., R]) -> Callable[..., R]:
    command = click.option(
        "--token-file", metavar="FILE", help="File with the API token (or SAN_TARGET_TOKEN).", type=click.Path()
    )(command)
    return click.option(
        "--api",
        metavar="URL",
        callback=_checked_url,
        help=f"The member to talk to (or SAN_TARGET_API) [{API_DEFAULT}].",
    )(command)


def global_options(command: Callable[..., R]) -> Callable[..., R]:
    """--api and --token-file before the command's name."""
    return _with_options(command)


def with_api(command: Callable[..., R]) -> Callable[..., R]:
    """--api and --token-file after the command's name; the command gets an `Api` as its first argument."""

    @wraps(command)
    def wrapped(api: str | None, token_file: str | None, **options: Any) -> R:
        outer: dict[str, str | None] = click.get_current_context().find_root().params
        return command(open_api(api or outer.get("api"), token_file or outer.get("token_file")), **options)

    return _with_options(wrapped)


def open_api(url: str | None, token_file: str | None) -> Api:
    """The API that options and environment name; an option comes before the environment."""
    import os

    if token_file is not None:
        try:
            token: str | None = read_secret(token_file)
        except ValueError as error:
            raise click.ClickException(str(error)) from None
    else:
        token = os.environ.get("SAN_TARGET_TOKEN") or None
    chosen = url or os.environ.get("SAN_TARGET_API") or API_DEFAULT
    return Api(str(_checked_url(click.get_current_context(), None, chosen)).rstrip("/"), token)  # type: ignore[arg-type]
