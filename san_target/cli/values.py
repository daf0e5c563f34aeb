"""The values of options: sizes, durations, host:port addresses, CHAP users. Pure but for reading secret files."""

import os
import re
import stat
from pathlib import Path
from typing import Any

import click

UNITS = "KMGTPE"
SECRET_CHARACTERS_MIN = 12
SECRET_BYTES_MAX = 1024
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([KMGTPE])(?:i?B)?|B)?", re.IGNORECASE | re.ASCII)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(us|ms|s)?", re.ASCII)
_DURATION_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, None: 1.0}


def parse_size(text: str) -> int:
    """Bytes of "10G", "512M", "1.5T" (binary units) or "4096". ValueError says what is expected."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no size: expected bytes, or a number with K, M, G, T, P (binary), such as 10G")
    number: str = match.group(1)
    unit: str | None = match.group(2)
    factor = 1 if unit is None else 1 << 10 * (UNITS.index(unit.upper()) + 1)
    whole, _, fraction = number.partition(".")
    scaled = int(whole + fraction) * factor
    scale: int = 10 ** len(fraction)
    size_bytes, rest = divmod(scaled, scale)
    if rest or size_bytes == 0:
        raise ValueError(f"{text!r} is no whole number of bytes above zero")
    return size_bytes


def format_size(size_bytes: int) -> str:
    """Bytes as a person reads them: "10 GiB", "1.5 TiB", "512 B"; at most one decimal."""
    value = float(size_bytes)
    unit = "B"
    for prefix in UNITS:
        if value < 1024:
            break
        value /= 1024
        unit = f"{prefix}iB"
    return f"{value:.1f}".removesuffix(".0") + f" {unit}"


def parse_duration(text: str) -> float:
    """Seconds of "50us", "10ms", "2s" or "2". ValueError says what is expected."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no duration: expected a number with us, ms or s, such as 50us")
    return float(match.group(1)) * _DURATION_UNITS[match.group(2)]


def parse_address(text: str) -> tuple[str, int]:
    """(host, port) of "host:port" or "[IPv6]:port". ValueError says what is expected."""
    host, separator, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    bare = host[1:-1] if bracketed else host
    if not separator or not bare or (":" in bare and not bracketed) or not port.isascii() or not port.isdigit():
        raise ValueError(f"{text!r} is no address: expected HOST:PORT, IPv6 as [ADDRESS]:PORT")
    if int(port) > 65535:
        raise ValueError(f"{text!r}: a port is at most 65535")
    return bare, int(port)


def read_chap_user(text: str) -> dict[str, str]:
    """{"user", "secret"} of "USER:SECRET_FILE"; one line end at the end of the file is not part of the secret.

    The last colon separates, since user names are often iSCSI names. ValueError says what is wrong.
    """
    user, separator, path = text.rpartition(":")
    if not separator or not user or not path:
        raise ValueError(f"{text!r}: expected USER:SECRET_FILE")
    secret = read_secret(path)
    if len(secret) < SECRET_CHARACTERS_MIN:
        # RFC 7143 9.2.1: a CHAP secret has at least 96 bits.
        raise ValueError(f"the CHAP secret in {path} is shorter than {SECRET_CHARACTERS_MIN} characters")
    return {"user": user, "secret": secret}


def read_secret(path: str) -> str:
    """The first line of a file that holds only a secret; warns if other users can read it. ValueError if unusable."""
    try:
        with Path(path).open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(SECRET_BYTES_MAX + 1)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    if len(content) > SECRET_BYTES_MAX:
        raise ValueError(f"{path} is too long for a secret")
    if stat.S_ISREG(mode) and mode & 0o077:
        click.echo(f"warning: other users may read the secret in {path}; protect it: chmod 600 {path}", err=True)
    try:
        secret = content.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no UTF-8 text") from None
    if not secret or not secret.isprintable():
        raise ValueError(f"{path} must hold one line of printable text")
    return secret


class Parsed(click.ParamType[Any]):
    """A click type over one of the parsers above: its ValueError becomes a usage error."""

    def __init__(self, name: str, parse: Any) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _checked_address(text: str) -> str:
    parse_address(text)
    return text


SIZE = Parsed("SIZE", parse_size)
DURATION = Parsed("DURATION", parse_duration)
ADDRESS = Parsed("HOST:PORT", _checked_address)
CHAP_USER = Parsed("USER:SECRET_FILE", read_chap_user)
