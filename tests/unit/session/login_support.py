"""A directory, requests and a runner for tests of login and text exchanges. Nothing here knows the key table."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from san_target.session.login import Login, LoginRequest, LoginResponse, LoginResult
from san_target.session.parameters import TargetLimits
from san_target.session.session import Session
from san_target.session.target import Access, Moved, Target

INITIATOR = "iqn.1993-08.org.debian:01:host"
TARGET = "iqn.2020-01.net.example:disk"
PORTAL = "192.0.2.1:3260"
ISID = bytes.fromhex("00023d000001")


def make_target(iqn: str = TARGET, access: Access | None = None, alias: str = "", ready: bool = True) -> Target:
    unit: Any = None  # login never looks into the logical unit
    return Target(iqn, alias, 1, unit, access or Access(), ready)


@dataclass
class FakeDirectory:
    targets: list[Target] = field(default_factory=lambda: [make_target()])
    discovery: Access = field(default_factory=Access)
    redirect_to: str | None = None
    extra_portals: list[str] = field(default_factory=list)
    places_asked: list[tuple[str, str, bytes, str]] = field(default_factory=list)
    while_asked: Callable[[], None] = lambda: None

    def find(self, iqn: str) -> Target | None:
        return next((target for target in self.targets if target.iqn == iqn), None)

    async def look_up(self, iqn: str) -> Target | None:
        return None

    def visible_to(self, initiator_name: str) -> list[Target]:
        return [target for target in self.targets if target.access.admits(initiator_name)]

    def portals_of(self, target: Target, asked_at: str) -> list[tuple[str, int]]:
        return [(address, target.portal_group_tag) for address in (asked_at, *self.extra_portals)]

    async def place(self, target: Target, initiator_name: str, isid: bytes, asked_at: str) -> str | None:
        self.places_asked.append((target.iqn, initiator_name, isid, asked_at))
        await asyncio.sleep(0)
        self.while_asked()
        return self.redirect_to

    async def succeed(self, target: Target, initiator_name: str, isid: bytes, address: str) -> str:
        return ""

    def arrived(self, target: Target, initiator_name: str, isid: bytes) -> Moved | None:
        return None

    def reinstated(self, old: Session, by_address: str, now_s: float) -> None:
        raise AssertionError("login alone ends no session")

    def discovery_access(self) -> Access:
        return self.discovery

    def new_tsih(self) -> int:
        return 17


class CountingBytes:
    """Predictable "random" bytes: 01 02 03 ... over all calls."""

    def __init__(self) -> None:
        self.next = 1

    def __call__(self, count: int) -> bytes:
        start, self.next = self.next, self.next + count
        return bytes(value % 256 for value in range(start, self.next))


def add_session(target: Target, tsih: int, isid: bytes = ISID, initiator_name: str = INITIATOR) -> None:
    session: Any = SimpleNamespace(tsih=tsih)
    target.sessions[(initiator_name, isid)] = session


def make_login(
    directory: FakeDirectory | None = None,
    weak_chap: bool = True,
    tsih: int | None = 17,
    random_bytes: Callable[[int], bytes] | None = None,
    limits: TargetLimits | None = None,
) -> Login:
    async def finish(result: LoginResult) -> int | None:
        return tsih

    return Login(
        directory or FakeDirectory(),
        limits or TargetLimits(),
        PORTAL,
        random_bytes or CountingBytes(),
        finish,
        weak_chap,
    )


def text(*pairs: str) -> bytes:
    return b"".join(pair.encode() + b"\0" for pair in pairs)


NAMES = (f"InitiatorName={INITIATOR}", f"TargetName={TARGET}", "SessionType=Normal")
DISCOVERY_NAMES = (f"InitiatorName={INITIATOR}", "SessionType=Discovery")


def make_request(data: bytes = b"", **fields: Any) -> LoginRequest:
    """A Login Request that asks to go from the operational stage to the full feature phase, unless told otherwise."""
    values: dict[str, Any] = {
        "transit": True,
        "continue_": False,
        "current_stage": 1,
        "next_stage": 3,
        "version_max": 0,
        "version_min": 0,
        "isid": ISID,
        "tsih": 0,
        "itt": 1,
        "cid": 0,
        "cmd_sn": 1,
        "exp_stat_sn": 0,
        "data": data,
    }
    return LoginRequest(**(values | fields))


def respond(login: Login, data: bytes = b"", **fields: Any) -> LoginResponse:
    return asyncio.run(login.respond(make_request(data, **fields)))


def status(response: LoginResponse) -> int:
    return response.status_class << 8 | response.status_detail


def pairs_of(response: LoginResponse) -> dict[str, str]:
    return dict(pair.split("=", 1) for pair in response.data.decode().split("\0")[:-1])
