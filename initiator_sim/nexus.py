"""Who talks to whom, and what happens to a path between them."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final

from initiator_sim.chap import Credentials
from initiator_sim.parameters import Pair

ISCSI_PORT: Final = 3260


class Kind(Enum):
    """What can happen to a path; MIGRATED happens to the disk."""

    UP = "logged in"
    REDIRECTED = "redirected"
    ASKED_TO_MOVE = "asked to log out"
    LOST = "connection lost"
    MOVED = "logged in elsewhere"
    BACK = "logged in again"
    LOGIN_FAILED = "login failed"
    FAILED = "given up"
    VIOLATION = "the target broke a rule"
    TIMED_OUT = "command without an answer"
    RESCAN = "logical units may have changed"
    MIGRATED = "data migrated"


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a path. at_s is of the reactor's clock; pause_s how long commands had to wait."""

    at_s: float
    kind: Kind
    address: str
    text: str = ""
    pause_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Nexus:
    """Who talks to whom. portal is "host:port"; iqn None = a discovery session; keys None = the personality's."""

    portal: str
    iqn: str | None
    initiator_name: str
    isid: bytes
    credentials: Credentials | None = None
    mutual: Credentials | None = None
    keys: tuple[Pair, ...] | None = None


def split_address(text: str, default_port: int = ISCSI_PORT) -> tuple[str, int]:
    """(host, port) of "host", "host:port", "[IPv6]" or "[IPv6]:port". ValueError for anything else."""
    host, bracket, rest = text.rpartition("]")
    if bracket:
        host = host.removeprefix("[")
    else:
        host, colon, rest = text.partition(":")
        rest = colon + rest
    if not host or (rest and (not rest.startswith(":") or not rest[1:].isdigit() or int(rest[1:]) > 65535)):
        raise ValueError(f"{text!r} is no portal: expected HOST or HOST:PORT, IPv6 as [ADDRESS]:PORT")
    return host, int(rest[1:]) if rest else default_port


def random_isid(random_bytes: Callable[[int], bytes] = secrets.token_bytes) -> bytes:
    """RFC 7143 11.12.5: the random format, T = 10b."""
    return b"\x80" + random_bytes(5)


def lun_value(number: int) -> int:
    """The 64 bits of a LUN as PDUs carry it: peripheral device addressing up to 255, else flat (SAM-5 4.7)."""
    if not 0 <= number < 1 << 14:
        raise ValueError(f"LUN {number} is not within 0 to 16383")
    return number << 48 if number < 256 else (0x4000 | number) << 48
