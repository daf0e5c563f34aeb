"""The login phase, target side: one `Login` per connection, one response per request (RFC 7143 6.3, 11.12, 11.13).

The stage machine is the table `TRANSITIONS`. Invariants kept here:
- nobody reaches the full feature phase unauthenticated if the access rule asks for CHAP;
- an initiator is redirected, turned away or sent to wait before its first authentication step, never in the middle;
- what one login may cost is bounded: requests, bytes of text, and nothing is kept after it ends.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Final

from san_target.session.chap import AuthenticationError, Chap, Step
from san_target.session.keys import KEYS, Kind, Stage, is_iscsi_name
from san_target.session.negotiation import (
    LOGIN_SEGMENT_BYTES_MAX,
    Negotiation,
    NegotiationError,
    Pair,
    accept,
    answer,
    answer_all,
    declare,
    encode_answers,
    next_segment,
    target_offer,
    to_parameters,
)
from san_target.session.parameters import Parameters, TargetLimits
from san_target.session.target import Access, Directory, Target
from san_target.wire import pdus
from san_target.wire.errors import TextError
from san_target.wire.text import decode_pairs

if TYPE_CHECKING:
    from typing_extensions import Buffer

VERSION: Final = 0x00
"""The only version of the protocol (RFC 7143 11.12.4)."""
REQUESTS_MAX: Final = 64
TEXT_BYTES_MAX: Final = 64 * 1024

TRANSITIONS: Final[Mapping[Stage | None, frozenset[Stage]]] = {
    None: frozenset({Stage.SECURITY, Stage.OPERATIONAL}),
    Stage.SECURITY: frozenset({Stage.OPERATIONAL, Stage.FULL_FEATURE}),
    Stage.OPERATIONAL: frozenset({Stage.FULL_FEATURE}),
    Stage.FULL_FEATURE: frozenset(),
}
"""The table of RFC 7143 6.3: where each stage may lead; None is the start of the connection."""


class LoginStatus(IntEnum):
    """Status-Class and Status-Detail (RFC 7143 11.13.5)."""

    SUCCESS = 0x0000
    TARGET_MOVED_TEMPORARILY = 0x0101
    INITIATOR_ERROR = 0x0200
    AUTHENTICATION_FAILURE = 0x0201
    AUTHORIZATION_FAILURE = 0x0202
    NOT_FOUND = 0x0203
    UNSUPPORTED_VERSION = 0x0205
    TOO_MANY_CONNECTIONS = 0x0206
    MISSING_PARAMETER = 0x0207
    SESSION_TYPE_NOT_SUPPORTED = 0x0209
    SESSION_DOES_NOT_EXIST = 0x020A
    INVALID_DURING_LOGIN = 0x020B
    SERVICE_UNAVAILABLE = 0x0301
    OUT_OF_RESOURCES = 0x0302


@dataclass(slots=True)
class LoginRequest:
    """RFC 7143 11.12. `isid` has 6 bytes; stages are the raw CSG and NSG."""

    transit: bool
    continue_: bool
    current_stage: int
    next_stage: int
    version_max: int
    version_min: int
    isid: bytes
    tsih: int
    itt: int
    cid: int
    cmd_sn: int
    exp_stat_sn: int
    data: bytes

    @classmethod
    def parse(cls, bhs: bytes, data: "Buffer") -> "LoginRequest":
        """From the header and data segment (without padding) of a Login Request PDU."""
        header = pdus.parse(bhs)
        return cls(
            transit=header.transit,
            continue_=header.continue_,
            current_stage=header.current_stage,
            next_stage=header.next_stage,
            version_max=header.version_max,
            version_min=header.version_min,
            isid=bytes(header.isid),
            tsih=header.tsih,
            itt=header.initiator_task_tag,
            cid=header.cid,
            cmd_sn=header.cmd_sn,
            exp_stat_sn=header.exp_stat_sn,
            data=bytes(data),
        )


@dataclass(slots=True)
class LoginResponse:
    """RFC 7143 11.13, but for the sequence numbers, which the connection adds."""

    transit: bool
    continue_: bool
    current_stage: int
    next_stage: int
    isid: bytes
    tsih: int
    itt: int
    version_max: int = VERSION
    version_active: int = VERSION
    status_class: int = 0
    status_detail: int = 0
    data: bytes = b""

    def header(self) -> dict[str, object]:
        """The fields of its header."""
        return {
            "transit": self.transit,
            "continue_": self.continue_,
            "current_stage": self.current_stage,
            "next_stage": self.next_stage,
            "version_max": self.version_max,
            "version_active": self.version_active,
            "isid": self.isid,
            "tsih": self.tsih,
            "initiator_task_tag": self.itt,
            "status_class": self.status_class,
            "status_detail": self.status_detail,
        }


@dataclass(slots=True)
class LoginResult:
    """Who logged in where, and what was agreed. target None = discovery session; tsih is that of the request."""

    initiator_name: str
    initiator_alias: str
    isid: bytes
    tsih: int
    cid: int
    target: Target | None
    parameters: Parameters
    authenticated_user: str | None


class LoginRefused(Exception):
    """Ends the login with a status; `data` goes into the response."""

    def __init__(self, status: LoginStatus, reason: str, data: bytes = b"") -> None:
        super().__init__(reason)
        self.status = status
        self.data = data


def check_stages(current: Stage | None, request: LoginRequest) -> None:
    """Raise LoginRefused unless CSG, NSG, T and C of the request fit the stage the connection is in."""
    if current is None:
        fits = request.current_stage in TRANSITIONS[None]
    else:
        fits = request.current_stage == current and bool(TRANSITIONS[current])
    if not fits:
        raise LoginRefused(LoginStatus.INITIATOR_ERROR, f"CSG {request.current_stage} does not follow {current!r}")
    if not request.transit:
        return  # NSG means nothing then (RFC 7143 11.12.3)
    if request.continue_:
        raise LoginRefused(LoginStatus.INITIATOR_ERROR, "T and C in one request (RFC 7143 11.12.2)")
    if request.next_stage not in TRANSITIONS[Stage(request.current_stage)]:
        raise LoginRefused(
            LoginStatus.INITIATOR_ERROR, f"NSG {request.next_stage} cannot follow CSG {request.current_stage}"
        )


class Login:
    """One login.

    finish       awaited just before the final response; returns the TSIH to answer, or None if there is no room
    result       set when the final response has been made
    failed       set when a response with another status than success has been made: send it, then close
    reason       why it failed, for the operator's log
    """

    def __init__(
        self,
        directory: Directory,
        limits: TargetLimits,
        portal_address: str,
        random_bytes: Callable[[int], bytes],
        finish: Callable[[LoginResult], Awaitable[int | None]],
        weak_chap: bool = True,
    ) -> None:
        self._directory = directory
        self._limits = limits
        self._portal_address = portal_address
        self._random_bytes = random_bytes
        self._finish = finish
        self._weak_chap = weak_chap
        self._offer = target_offer(limits)
        self._stage: Stage | None = None
        self._first: LoginRequest | None = None
        self._request_count = 0
        self._text_bytes = 0
        self._received = b""  # text of requests with the C bit, until its last part is here
        self._unsent = b""  # what is left of an answer that did not fit into one response
        self._negotiation = Negotiation()
        self._identified = False
        self._target: Target | None = None
        self._access = Access()
        self._chap: Chap | None = None
        self.result: LoginResult | None = None
        self.failed = False
        self.reason = ""

    async def respond(self, request: LoginRequest) -> LoginResponse:
        """The response to the next Login Request of this connection. Does not raise for an initiator's mistakes."""
        try:
            return await self._respond(request)
        except LoginRefused as refused:
            return self._refuse(request, refused.status, refused, refused.data)
        except (NegotiationError, TextError) as error:
            return self._refuse(request, LoginStatus.INITIATOR_ERROR, error)
        except AuthenticationError as error:
            return self._refuse(request, LoginStatus.AUTHENTICATION_FAILURE, error)

    def interrupted(self) -> LoginResponse:
        """The response to another PDU than a Login Request, after the first of those was answered."""
        status = LoginStatus.INVALID_DURING_LOGIN
        return self._refuse(self._the_first, status, LoginRefused(status, "another PDU during login"))

    def _refuse(
        self, request: LoginRequest, status: LoginStatus, reason: Exception, data: bytes = b""
    ) -> LoginResponse:
        self.failed = True
        self.reason = str(reason)
        response = self._response(request)
        response.status_class, response.status_detail = divmod(status, 256)
        response.data = data
        return response

    def _response(self, request: LoginRequest) -> LoginResponse:
        return LoginResponse(
            transit=False,
            continue_=False,
            current_stage=request.current_stage,
            next_stage=0,
            isid=request.isid,
            tsih=request.tsih,
            itt=request.itt,
        )

    async def _respond(self, request: LoginRequest) -> LoginResponse:
        self._check_header(request)
        self._stage = Stage(request.current_stage)
        if self._unsent:
            # RFC 7143 6.2: while the answer is being fetched, requests are empty.
            if request.data or request.continue_:
                raise NegotiationError("text was sent before all of the answer was fetched")
            return await self._reply(request)
        self._received += request.data
        if request.continue_:
            return self._response(request)
        pairs, self._received = decode_pairs(self._received), b""
        self._unsent = encode_answers(await self._answers(pairs, self._stage))
        return await self._reply(request)

    def _check_header(self, request: LoginRequest) -> None:
        if self.failed or self.result is not None:
            raise LoginRefused(LoginStatus.INVALID_DURING_LOGIN, "a Login Request after the end of login")
        self._request_count += 1
        self._text_bytes += len(request.data)
        if self._request_count > REQUESTS_MAX or self._text_bytes > TEXT_BYTES_MAX:
            raise LoginRefused(LoginStatus.INITIATOR_ERROR, "a login without end: too many requests or too much text")
        if request.version_min > VERSION:
            raise LoginRefused(LoginStatus.UNSUPPORTED_VERSION, f"version {request.version_min} or later is asked for")
        first = self._first = self._first or request
        # RFC 7143 6.3: the login phase is one task of one connection.
        if (request.isid, request.tsih, request.itt, request.cid) != (first.isid, first.tsih, first.itt, first.cid):
            raise LoginRefused(LoginStatus.INITIATOR_ERROR, "ISID, TSIH, CID or task tag changed during login")
        check_stages(self._stage, request)

    async def _answers(self, pairs: list[Pair], stage: Stage) -> list[Pair]:
        """The answer to one complete set of keys."""
        left = accept(self._negotiation, pairs, stage)
        answers: list[Pair] = []
        if self._identified:
            self._check_late_identity(left)
        else:
            answers += await self._identify(self._negotiation.received)
        kinds = {name: KEYS[name].kind if name in KEYS else None for name, _ in left}
        if stage is Stage.SECURITY:
            steps = {name: value for name, value in left if kinds[name] is Kind.AUTHENTICATION}
            answers += self._authenticate(dict(left).get("AuthMethod"), steps)
        elif not self._is_authenticated():
            raise AuthenticationError("CHAP is asked for, and the initiator skips the security stage")
        mine = (Kind.AUTHENTICATION, Kind.IDENTITY)
        rest = [(name, value) for name, value in left if kinds[name] not in mine and name != "AuthMethod"]
        answers += answer_all(self._negotiation, rest, self._offer, discovery=self._target is None)
        if stage is Stage.OPERATIONAL:
            length = self._limits.max_recv_data_segment_length
            answers += declare(self._negotiation, [("MaxRecvDataSegmentLength", str(length))])
        return answers

    def _check_late_identity(self, left: list[Pair]) -> None:
        """Only the alias may come after the first request (RFC 7143 6.3); SessionType may be repeated as it stands."""
        for name, value in left:
            late = name in KEYS and KEYS[name].kind is Kind.IDENTITY and name != "InitiatorAlias"
            if late and (name, value) != ("SessionType", KEYS["SessionType"].default):
                raise NegotiationError(f"{name} belongs into the first Login Request")

    # --- Who, and where to -------------------------------------------------------------------------------------------

    async def _identify(self, received: Mapping[str, str]) -> list[Pair]:
        """Judge the names of the first request: all that can turn this initiator away or elsewhere is decided here."""
        self._identified = True
        name = received.get("InitiatorName")
        if name is None:
            raise LoginRefused(LoginStatus.MISSING_PARAMETER, "no InitiatorName")
        if not is_iscsi_name(name):
            raise LoginRefused(LoginStatus.INITIATOR_ERROR, f"not an iSCSI name: {name[:64]!r}")
        session_type = received.get("SessionType", KEYS["SessionType"].default)
        if session_type == "Discovery":
            return await self._identify_discovery(name, received.get("TargetName"))
        if session_type != "Normal":
            raise LoginRefused(LoginStatus.SESSION_TYPE_NOT_SUPPORTED, "SessionType is neither Normal nor Discovery")
        if "TargetName" not in received:
            raise LoginRefused(LoginStatus.MISSING_PARAMETER, "no TargetName")
        target = await self._find(received["TargetName"])
        self._access = self._admit(target.access, name)
        self._check_tsih(target, name)
        self._check_ready(target)
        await self._place(target, name)
        self._check_ready(target)  # much can happen while others are asked
        self._target = target
        return self._declare_target(target)

    async def _identify_discovery(self, name: str, target_name: str | None) -> list[Pair]:
        self._access = self._admit(self._directory.discovery_access(), name)
        if self._the_first.tsih:
            raise LoginRefused(LoginStatus.SESSION_DOES_NOT_EXIST, "a discovery session has one connection")
        if target_name is None:
            return []
        # RFC 7143 6.3.1: the tag is owed to sessions of every type if a target is named.
        target = await self._find(target_name)
        self._admit(target.access, name)
        return self._declare_target(target)

    async def _find(self, iqn: str) -> Target:
        target = self._directory.find(iqn) or await self._directory.look_up(iqn)
        if target is None:
            raise LoginRefused(LoginStatus.NOT_FOUND, f"no target {iqn[:256]!r}")
        return target

    def _admit(self, access: Access, initiator_name: str) -> Access:
        if not access.admits(initiator_name):
            raise LoginRefused(LoginStatus.AUTHORIZATION_FAILURE, f"{initiator_name} is not allowed here")
        return access

    def _check_tsih(self, target: Target, initiator_name: str) -> None:
        """RFC 7143 6.3.1. A session has one connection here, so no second one can join (MaxConnections=1)."""
        first = self._the_first
        if not first.tsih:
            return
        session = target.sessions.get((initiator_name, first.isid))
        if session is None or session.tsih != first.tsih:
            raise LoginRefused(LoginStatus.SESSION_DOES_NOT_EXIST, f"no session with TSIH {first.tsih}")
        raise LoginRefused(LoginStatus.TOO_MANY_CONNECTIONS, f"session {first.tsih} has its only connection")

    def _check_ready(self, target: Target) -> None:
        if not target.ready:
            # Class 3 is retried, class 2 would be final: a disk that is not there yet must not fail a boot.
            raise LoginRefused(LoginStatus.SERVICE_UNAVAILABLE, f"{target.iqn} is not ready")

    async def _place(self, target: Target, initiator_name: str) -> None:
        """Send the initiator to another member if that is to serve it. Before authentication: a redirection after it is
        reported as a failed one by initiators."""
        address = await self._directory.place(target, initiator_name, self._the_first.isid, self._portal_address)
        # Initiators follow a redirection without delay and without counting: never one to where they are.
        if address is None or address == self._portal_address:
            return
        # RFC 7143 13.8: here the address stands without a portal group tag.
        data = encode_answers([("TargetAddress", address)])
        raise LoginRefused(LoginStatus.TARGET_MOVED_TEMPORARILY, f"redirected to {address}", data)

    def _declare_target(self, target: Target) -> list[Pair]:
        pairs = [("TargetPortalGroupTag", str(target.portal_group_tag))]
        if target.alias:
            pairs.append(("TargetAlias", target.alias))
        return declare(self._negotiation, pairs)

    @property
    def _the_first(self) -> LoginRequest:
        assert self._first is not None
        return self._first

    # --- Authentication ----------------------------------------------------------------------------------------------

    def _authenticate(self, method: str | None, steps: dict[str, str]) -> list[Pair]:
        """Choose the method, or do one step of it; never both at once (RFC 7143 12.1.3)."""
        if method is None:
            if not steps:
                return []
            if self._chap is None:
                raise NegotiationError("CHAP keys before CHAP was chosen")
            return self._chap.receive(steps)
        if steps:
            raise NegotiationError("CHAP keys together with AuthMethod")
        reply, chosen = answer("AuthMethod", method, ("CHAP",) if self._access.chap else ("None",))
        if reply is None or chosen is None:
            wanted = "CHAP" if self._access.chap else "no authentication"
            raise AuthenticationError(f"{wanted} is wanted, AuthMethod={method[:64]!r} does not offer it")
        if chosen == "CHAP":
            self._chap = Chap(self._access, self._random_bytes, self._weak_chap)
        return [("AuthMethod", reply)]

    def _is_authenticated(self) -> bool:
        return not self._access.chap or (self._chap is not None and self._chap.step is Step.DONE)

    # --- The response -------------------------------------------------------------------------------------------------

    async def _reply(self, request: LoginRequest) -> LoginResponse:
        """Send (more of) the answer, and move on to the next stage if the initiator asked for it and may."""
        response = self._response(request)
        response.data, self._unsent = next_segment(self._unsent, LOGIN_SEGMENT_BYTES_MAX)
        if self._unsent:
            response.continue_ = True
            return response
        if not request.transit:
            return response
        if not self._is_authenticated():
            if self._chap is None:
                raise AuthenticationError("CHAP is asked for, and the initiator offers no AuthMethod")
            return response  # T=0: more steps to come
        self._stage = Stage(request.next_stage)
        if self._stage is Stage.FULL_FEATURE:
            response.tsih = await self._end(request)
        response.transit = True
        response.next_stage = self._stage
        return response

    async def _end(self, request: LoginRequest) -> int:
        """The TSIH of the final response; from here on there is a session."""
        received = self._negotiation.received
        result = LoginResult(
            initiator_name=received["InitiatorName"],
            initiator_alias=received.get("InitiatorAlias", ""),
            isid=request.isid,
            tsih=request.tsih,
            cid=request.cid,
            target=self._target,
            parameters=to_parameters(self._negotiation, self._limits),
            authenticated_user=self._chap.user if self._chap else None,
        )
        tsih = await self._finish(result)
        if tsih is None:
            raise LoginRefused(LoginStatus.OUT_OF_RESOURCES, "no room for another session")
        self.result = result
        return tsih
