"""What checks work with: the target as the user named it, and for each check sessions that end with it."""

import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from initiator_sim import cdb as cdbs
from initiator_sim.chap import Chap, Credentials
from initiator_sim.conformance.check import Failed, NotApplicable
from initiator_sim.conformance.hooks import Hooks
from initiator_sim.conformance.raw_session import RawSession
from initiator_sim.conformance.wire import ANSWER_S, Gone, Wire, named
from initiator_sim.login import LoggedIn, Login, LoginError, LoginRequest, Redirected
from initiator_sim.nexus import lun_value, random_isid
from initiator_sim.packets import ISCSI, ISCSI_LoginRequest
from initiator_sim.parameters import Pair
from initiator_sim.personalities import OPEN_ISCSI
from san_target.wire import opcodes
from san_target.wire.text import TextError, decode_pairs, encode_pairs

REDIRECTS_MAX: Final = 16
ROUNDS_MAX: Final = 32
SCRATCH_BLOCKS: Final = 128
PAIRS_MAX: Final = 12
AUTHENTICATION_FAILURE: Final = 0x0201
REDIRECTION: Final = 1
SECURITY: Final = 0
OPERATIONAL: Final = 1
FULL_FEATURE: Final = 3

KEYS: Final = (
    ("HeaderDigest", "None"),
    ("DataDigest", "None"),
    ("InitialR2T", "Yes"),
    ("ImmediateData", "Yes"),
    ("MaxRecvDataSegmentLength", "65536"),
    ("MaxBurstLength", "262144"),
    ("FirstBurstLength", "65536"),
    ("MaxOutstandingR2T", "1"),
    ("MaxConnections", "1"),
    ("DefaultTime2Wait", "0"),
    ("DefaultTime2Retain", "0"),
    ("ErrorRecoveryLevel", "0"),
    ("DataPDUInOrder", "Yes"),
    ("DataSequenceInOrder", "Yes"),
)
_DISCOVERY_KEYS: Final = frozenset({"HeaderDigest", "DataDigest", "MaxRecvDataSegmentLength", "ErrorRecoveryLevel"})


def offer(**changes: str) -> tuple[Pair, ...]:
    """KEYS with other values, and further keys: offer(MaxBurstLength="4096")."""
    known = dict(KEYS)
    return tuple((known | changes).items())


@dataclass(frozen=True, slots=True)
class Setting:
    """Who is checked, and as whom. portals: at least one; the disk is `lun` with `blocks` of `block_bytes`.

    digests: what sessions offer where a check does not care. patience_s: how long an answer may take.
    """

    portals: tuple[str, ...]
    iqn: str
    name: str
    lun: int
    block_bytes: int
    blocks: int
    chap: Credentials | None = None
    mutual: Credentials | None = None
    digests: tuple[Pair, ...] = ()
    hooks: Hooks = field(default_factory=Hooks)
    patience_s: float = ANSWER_S


@dataclass(slots=True)
class Hop:
    """What one portal did with a login. responses: how many it gave, the last included; keys: all that it said."""

    address: str
    responses: int = 0
    keys: dict[str, str] = field(default_factory=dict)
    status: int = 0
    sent_to: str | None = None


@dataclass(slots=True)
class Attempt:
    """What came of a single hand-made Login Request: the response, or None where the target closed the connection."""

    wire: Wire
    response: Any
    keys: dict[str, str]

    @property
    def status(self) -> int | None:
        """Class << 8 | detail."""
        return None if self.response is None else self.response.status_class << 8 | self.response.status_detail

    def __str__(self) -> str:
        if self.response is None:
            return "the connection was closed without a Login Response"
        return f"status 0x{self.status:04x}"


class Bench:
    """The means of one check. `close` ends all its connections, after what `at_end` was given.

    hops: the way of the last login. places: the addresses at which sessions of this check ended up.
    """

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.hops: list[Hop] = []
        self.places: set[str] = set()
        self._home: tuple[str, bytes] | None = None
        self._wires: list[Wire] = []
        self._at_end: list[Callable[[], Awaitable[None]]] = []

    @property
    def block_bytes(self) -> int:
        return self.setting.block_bytes

    @property
    def scratch_lba(self) -> int:
        """The first of SCRATCH_BLOCKS blocks whose contents are put back after the check."""
        return self.setting.blocks - SCRATCH_BLOCKS

    @property
    def lun_value(self) -> int:
        return lun_value(self.setting.lun)

    def pattern(self, seed: int, blocks: int = 1) -> bytes:
        """Blocks full of something that is told from any other seed."""
        return bytes((seed + 31 * index) & 0xFF for index in range(64)) * (blocks * self.block_bytes // 64)

    def at_end(self, undo: Callable[[], Awaitable[None]]) -> None:
        """Call it when the check has ended, however."""
        self._at_end.append(undo)

    async def undo(self) -> None:
        while self._at_end:
            await self._at_end.pop()()

    def close(self) -> None:
        for wire in self._wires:
            wire.close()
        self._wires.clear()

    # --- portals ------------------------------------------------------------------------------------------------------

    @property
    def portal(self) -> str:
        return self.setting.portals[0]

    def pairs(self) -> list[tuple[str, str]]:
        """Portals for two sessions: every ordered pair of different ones, or twice the only one."""
        portals = self.setting.portals
        pairs = [(one, other) for one in portals for other in portals if one != other]
        return (pairs or [(portals[0], portals[0])])[:PAIRS_MAX]

    def different_portals(self) -> list[tuple[str, str]]:
        """Ordered pairs of different portals. Raises NotApplicable where only one was given."""
        if len(self.setting.portals) < 2:
            raise NotApplicable("only one portal was given (--portal names more)")
        return self.pairs()

    def across(self) -> str:
        """Where this check's sessions were. Raises NotApplicable where redirections led all of them to one place."""
        if len(self.places) < 2:
            raise NotApplicable(
                f"all sessions were sent to {', '.join(self.places)}: let each portal serve (policy none)"
            )
        return "sessions at " + ", ".join(sorted(self.places))

    # --- connections and logins ---------------------------------------------------------------------------------------

    async def connect(self, portal: str | None = None) -> Wire:
        wire = await Wire.open(portal or self.portal, self.setting.patience_s)
        self._wires.append(wire)
        return wire

    async def login(
        self,
        portal: str | None = None,
        *,
        keys: Sequence[Pair] = KEYS,
        isid: bytes | None = None,
        name: str | None = None,
        cmd_sn: int = 1,
        tsih: int = 0,
        cid: int = 0,
        discovery: bool = False,
        authenticate: bool = True,
    ) -> RawSession:
        """Log in as an initiator does, redirections included; `hops` tells the way.

        Raises LoginError, Unreachable, Gone, Silence; Failed for a loop of redirections.
        """
        setting = self.setting
        isid = isid or random_isid()
        address = portal or self.portal
        self.hops = []
        for _ in range(REDIRECTS_MAX + 1):
            chap = None
            if setting.chap is not None and authenticate:
                chap = Chap(setting.chap, setting.mutual, OPEN_ISCSI.chap_algorithms, secrets.token_bytes)
            request = LoginRequest(
                name or setting.name,
                isid,
                None if discovery else setting.iqn,
                self._offers(keys, discovery),
                chap,
                tsih=tsih,
                cid=cid,
                cmd_sn=cmd_sn,
            )
            wire = await self.connect(address)
            hop = Hop(address)
            self.hops.append(hop)
            result = await _carry_out(Login(request), wire, hop)
            if isinstance(result, LoggedIn):
                if not discovery:
                    self.places.add(address)
                return RawSession(wire, result, isid, request.initiator_name, self.lun_value)
            wire.close()
            address = result.address
        way = " -> ".join(hop.address for hop in self.hops[:6])
        raise Failed(f"{REDIRECTS_MAX} redirections and no end: {way} ...", "a login at the address told")

    async def discovery(self, portal: str | None = None) -> RawSession:
        """A discovery session, authenticated where the portal wants it: it need not, whatever the target wants."""
        try:
            return await self.login(portal, discovery=True, authenticate=False)
        except LoginError as error:
            if error.status != AUTHENTICATION_FAILURE or self.setting.chap is None:
                raise
        return await self.login(portal, discovery=True)

    def _offers(self, keys: Sequence[Pair], discovery: bool) -> list[Pair]:
        wanted = {} if discovery else dict(self.setting.digests)
        return [
            (key, wanted.get(key, value) if value == "None" else value)
            for key, value in keys
            if not discovery or key in _DISCOVERY_KEYS
        ]

    async def ready(self, portal: str | None = None, **options: Any) -> RawSession:
        """`login`, and the unit attentions of a new nexus taken."""
        session = await self.login(portal, **options)
        await session.ready()
        return session

    async def home(self) -> tuple[str, bytes]:
        """Where a login ends that redirections are followed from, and the ISID that ends there; logged out again."""
        if self._home is None:
            session = await self.login()
            await session.logout()
            session.wire.close()
            self._home = (session.address, session.isid)
        return self._home

    async def attempt(self, pairs: Sequence[Pair], **fields: Any) -> Attempt:
        """A connection and a first Login Request made by hand: security stage to operational, unless fields differ.

        At `home`; where members take turns it may still be sent elsewhere, and is made again there.
        """
        address, isid = await self.home()
        for _ in range(REDIRECTS_MAX):
            attempt = await self.attempt_on(await self.connect(address), pairs, **({"isid": isid} | fields))
            if attempt.status is None or attempt.status >> 8 != REDIRECTION or "TargetAddress" not in attempt.keys:
                break
            address = attempt.keys["TargetAddress"]
        return attempt

    async def attempt_on(self, wire: Wire, pairs: Sequence[Pair] | bytes, **fields: Any) -> Attempt:
        """The next Login Request made by hand on a connection. Raises Silence; Failed for any other answer."""
        data = pairs if isinstance(pairs, bytes) else encode_pairs(pairs)
        usual = {"transit": 1, "current_stage": SECURITY, "next_stage": OPERATIONAL, "cmd_sn": 1}
        values: dict[str, Any] = usual | {"isid": random_isid(), "data": data} | fields
        try:
            await wire.send(ISCSI_LoginRequest(**values))
            response = await wire.receive()
        except Gone:
            return Attempt(wire, None, {})
        if response.opcode != opcodes.LOGIN_RESPONSE:
            raise Failed(f"{named(response)} instead of a Login Response")
        return Attempt(wire, response, _text(response.data))

    def names(self) -> list[Pair]:
        """What the first Login Request of a normal session must say, without authentication."""
        return [
            ("InitiatorName", self.setting.name),
            ("TargetName", self.setting.iqn),
            ("SessionType", "Normal"),
            ("AuthMethod", "None" if self.setting.chap is None else "CHAP"),
        ]

    # --- blocks -------------------------------------------------------------------------------------------------------

    async def read(self, session: RawSession, lba: int, blocks: int = 1) -> bytes:
        return await session.good(cdbs.read16(lba, blocks), read_bytes=blocks * self.block_bytes)

    async def write(self, session: RawSession, lba: int, data: bytes, **options: Any) -> None:
        await session.good(cdbs.write16(lba, len(data) // self.block_bytes), data=data, **options)


async def _carry_out(login: Login, wire: Wire, hop: Hop) -> LoggedIn | Redirected:
    login.begin()
    for _ in range(ROUNDS_MAX):
        login.outgoing, ready = [], login.outgoing
        await wire.send(*ready)
        pdu = await wire.receive_bytes()
        hop.responses += 1
        response = ISCSI(pdu)
        if response.opcode == opcodes.LOGIN_RESPONSE:
            hop.keys |= _text(response.data)
            hop.status = response.status_class << 8 | response.status_detail
            hop.sent_to = hop.keys.get("TargetAddress") if response.status_class == 1 else None
        login.receive(pdu[: opcodes.BHS_BYTES], response.data)
        if login.result is not None:
            return login.result
    raise LoginError(f"no end of the login after {ROUNDS_MAX} rounds")


def _text(data: bytes) -> dict[str, str]:
    try:
        return dict(decode_pairs(data))
    except TextError as error:
        raise Failed(f"malformed text: {error}", "key=value pairs, each ended by NUL (RFC 7143 6.1)") from None
