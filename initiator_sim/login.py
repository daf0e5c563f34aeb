"""The login phase from the initiator's side (RFC 7143 6.3): stages, authentication, negotiation, redirection. Pure.

Bytes to send collect in `outgoing`; `receive` takes one Login Response at a time and sets `result` at the end.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from initiator_sim.chap import Chap, ChapError
from initiator_sim.parameters import NegotiationError, Pair, Parameters, replies, settle
from san_target.wire import opcodes, pdus
from san_target.wire.text import TextError, decode_pairs, encode_pairs, split_text

if TYPE_CHECKING:
    from typing_extensions import Buffer

SECURITY: Final = 0
OPERATIONAL: Final = 1
FULL_FEATURE: Final = 3
ROUNDS_MAX: Final = 32
_SEGMENT_BYTES: Final = 8192  # RFC 7143 13.12: during login the default MaxRecvDataSegmentLength holds
_SUCCESS: Final = 0
_REDIRECTION: Final = 1

STATUS_NAMES: Final = {
    0x0101: "target moved temporarily",
    0x0102: "target moved permanently",
    0x0200: "initiator error",
    0x0201: "authentication failure",
    0x0202: "authorization failure",
    0x0203: "target not found",
    0x0204: "target removed",
    0x0205: "unsupported version",
    0x0206: "too many connections",
    0x0207: "missing parameter",
    0x0208: "cannot include connection in session",
    0x0209: "session type not supported",
    0x020A: "session does not exist",
    0x020B: "invalid request during login",
    0x0300: "target error",
    0x0301: "service unavailable",
    0x0302: "out of resources",
}
"""RFC 7143 11.13.5: Status-Class << 8 | Status-Detail."""


class LoginError(Exception):
    """The login did not succeed. `status` is class << 8 | detail, 0 where the target broke a rule instead."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status

    @property
    def final(self) -> bool:
        """True where trying again cannot help: an initiator error, class 2 (RFC 7143 11.13.5)."""
        return self.status >> 8 == 2


@dataclass(frozen=True, slots=True)
class LoggedIn:
    """`exp_stat_sn` and the command window are where the full feature phase begins."""

    parameters: Parameters
    tsih: int
    cmd_sn: int
    exp_stat_sn: int
    exp_cmd_sn: int
    max_cmd_sn: int


@dataclass(frozen=True, slots=True)
class Redirected:
    """Go to `address` ("host:port", or only a host) instead; `permanent` for status 0x0102."""

    address: str
    permanent: bool


@dataclass(slots=True)
class LoginRequest:
    """Who logs in where, and how.

    target_name None = a discovery session. keys: the operational offers, in order. security_first: begin in the
    security stage even without CHAP, as most initiators do. isid has 6 bytes.
    """

    initiator_name: str
    isid: bytes
    target_name: str | None
    keys: Sequence[Pair]
    chap: Chap | None = None
    security_first: bool = True
    alias: str = ""
    tsih: int = 0
    cid: int = 0
    cmd_sn: int = 1

    def names(self) -> list[Pair]:
        pairs = [("InitiatorName", self.initiator_name)]
        if self.alias:
            pairs.append(("InitiatorAlias", self.alias))
        if self.target_name is not None:
            pairs.append(("TargetName", self.target_name))
        pairs.append(("SessionType", "Discovery" if self.target_name is None else "Normal"))
        return pairs


class Login:
    """One login on one connection: `begin`, then `receive` every PDU until `result` is there. Raises LoginError."""

    def __init__(self, request: LoginRequest) -> None:
        self.request = request
        self.outgoing: list[bytes] = []
        self.result: LoggedIn | Redirected | None = None
        self.stage = SECURITY if request.security_first or request.chap else OPERATIONAL
        self._offered: dict[str, str] = {}
        self._answered: dict[str, str] = {}
        self._text = b""
        self._exp_stat_sn: int | None = None
        self._rounds = 0
        self._challenged = False
        self._awaiting_proof = False
        self._authenticated = False
        self._to_send: list[bytes] = []
        self._transit = False

    def begin(self) -> None:
        pairs = self.request.names()
        if self.stage == SECURITY:
            pairs.append(("AuthMethod", "CHAP" if self.request.chap else "None"))
            self._say(pairs, transit=self.request.chap is None)
        else:
            self._say(pairs + self._operational(), transit=True)

    def receive(self, bhs: bytes, data: "Buffer") -> None:
        """One PDU from the target. Raises LoginError for a refusal and for a broken rule."""
        self._rounds += 1
        if self._rounds > ROUNDS_MAX:
            raise LoginError(f"no end of the login after {ROUNDS_MAX} rounds")
        if bhs[0] & opcodes.OPCODE_MASK != opcodes.LOGIN_RESPONSE:
            raise LoginError(f"PDU 0x{bhs[0]:02x} during login")
        header = pdus.parse(bhs)
        self._text += bytes(data)
        if header.status_class == _SUCCESS and header.continue_:
            self._check(header)
            self._send(b"", more=False, transit=False)  # RFC 7143 6.1: an empty request asks for the rest
            return
        try:
            pairs = decode_pairs(self._text)
        except TextError as error:
            raise LoginError(f"malformed text in the answer: {error}") from None
        self._text = b""
        if header.status_class == _REDIRECTION:
            self._redirect(header.status_class << 8 | header.status_detail, dict(pairs))
        elif header.status_class != _SUCCESS:
            status = header.status_class << 8 | header.status_detail
            raise LoginError(f"login refused: {STATUS_NAMES.get(status, 'unknown status')} (0x{status:04x})", status)
        else:
            self._check(header)
            self._advance(header, pairs)

    def _check(self, header: Any) -> None:
        if header.version_active != 0:
            raise LoginError(f"version {header.version_active} is active, 0 was offered")
        if header.initiator_task_tag != 0 or bytes(header.isid) != self.request.isid:
            raise LoginError("the answer has another initiator task tag or ISID (RFC 7143 11.13)")
        if header.current_stage != self.stage:
            raise LoginError(f"the answer is in stage {header.current_stage}, asked in {self.stage} (RFC 7143 11.13.3)")
        # 11.13.4: StatSN counts from whatever the first response says.
        if self._exp_stat_sn is not None and header.stat_sn != self._exp_stat_sn:
            raise LoginError(f"StatSN {header.stat_sn}, expected {self._exp_stat_sn}")
        self._exp_stat_sn = header.stat_sn + 1 & 0xFFFFFFFF

    def _redirect(self, status: int, keys: dict[str, str]) -> None:
        if status not in (0x0101, 0x0102) or not keys.get("TargetAddress"):
            raise LoginError(f"a redirection (0x{status:04x}) without TargetAddress (RFC 7143 11.13.5)", status)
        address = keys["TargetAddress"].partition(",")[0]
        self.result = Redirected(address, permanent=status == 0x0102)

    def _advance(self, header: Any, pairs: list[Pair]) -> None:
        if self._to_send:  # the target confirmed a part of a long text
            self._send_next()
            return
        keys = dict(pairs)
        if len(keys) != len(pairs):
            raise LoginError("a key twice in one answer (RFC 7143 6.1)")
        self._answered |= {key: value for key, value in keys.items() if not key.startswith("CHAP_")}
        if self._awaiting_proof:
            self._prove_target(keys)
        if header.transit and not self._transit:
            raise LoginError("the target left a stage that we did not offer to leave (RFC 7143 6.3.2)")
        if header.transit and header.next_stage == FULL_FEATURE:
            self._finish(header)
        elif header.transit:
            self.stage = header.next_stage
            if self.stage != OPERATIONAL:
                raise LoginError(f"next stage {header.next_stage}")
            self._say(self._operational(), transit=True)
        elif self.stage == SECURITY:
            self._authenticate(keys)
        else:
            self._say(replies(self._offered, pairs), transit=True)

    def _authenticate(self, keys: dict[str, str]) -> None:
        chap = self.request.chap
        if chap is None and keys.get("AuthMethod", "None") != "None":
            raise LoginError("the target wants authentication, and no user was given", 0x0201)
        if chap is None or self._authenticated:
            self._say([], transit=True)
            return
        if "CHAP_C" not in keys:
            if self._challenged:
                raise LoginError("CHAP: no challenge")
            if keys.get("AuthMethod") != "CHAP":
                raise LoginError(f"the target does not do CHAP, it says {keys.get('AuthMethod')!r}")
            self._challenged = True
            self._say(chap.offer(), transit=False)
            return
        try:
            answer = chap.answer(keys)
        except ChapError as error:
            raise LoginError(f"CHAP: {error}") from None
        self._awaiting_proof = True
        self._say(answer, transit=True)

    def _prove_target(self, keys: dict[str, str]) -> None:
        assert self.request.chap is not None
        self._awaiting_proof = False
        self._authenticated = True
        try:
            self.request.chap.check(keys)
        except ChapError as error:
            raise LoginError(f"CHAP: {error}") from None

    def _operational(self) -> list[Pair]:
        self._offered = dict(self.request.keys)
        return list(self.request.keys)

    def _finish(self, header: Any) -> None:
        if self.request.chap is not None and not self._authenticated:
            raise LoginError("the target skipped the authentication that was asked for")
        if header.tsih == 0:
            raise LoginError("TSIH 0 at the end of a login (RFC 7143 11.13.2)")
        try:
            parameters = settle(self._offered, self._answered)
        except NegotiationError as error:
            raise LoginError(f"negotiation: {error}") from None
        assert self._exp_stat_sn is not None
        self.result = LoggedIn(
            parameters,
            tsih=header.tsih,
            cmd_sn=self.request.cmd_sn,
            exp_stat_sn=self._exp_stat_sn,
            exp_cmd_sn=header.exp_cmd_sn,
            max_cmd_sn=header.max_cmd_sn,
        )

    def _say(self, pairs: Sequence[Pair], transit: bool) -> None:
        self._to_send = list(split_text(encode_pairs(pairs), _SEGMENT_BYTES))
        self._transit = transit
        self._send_next()

    def _send_next(self) -> None:
        data = self._to_send.pop(0)
        more = bool(self._to_send)
        self._send(data, more=more, transit=self._transit and not more)

    def _send(self, data: bytes, more: bool, transit: bool) -> None:
        following = OPERATIONAL if self.stage == SECURITY else FULL_FEATURE
        self.outgoing.append(
            pdus.build(
                opcodes.LOGIN_REQUEST,
                len(data),
                transit=transit,
                continue_=more,
                current_stage=self.stage,
                next_stage=following if transit else 0,
                isid=self.request.isid,
                tsih=self.request.tsih,
                cid=self.request.cid,
                cmd_sn=self.request.cmd_sn,
                exp_stat_sn=self._exp_stat_sn or 0,
            )
            + data
            + bytes(-len(data) % 4)
        )
