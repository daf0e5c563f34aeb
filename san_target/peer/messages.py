"""Control messages from member to member: what goes into a CONTROL request, and what comes back. Pure.

Each is a tagged struct; whoever adds a kind declares it here and puts it into `AnyMessage`. Fields that are added later
have defaults, so that members of neighbouring versions understand each other.
"""

from typing import TYPE_CHECKING, Final

import msgspec

from san_target.peer.load_report import MemberLoad

if TYPE_CHECKING:
    from san_target.peer.frames import Payload

CONTROL_BYTES_MAX: Final = 1 << 20


class Message(msgspec.Struct, frozen=True, tag=True):
    """Base of all kinds; the tag is the name of the class."""


class Done(Message, frozen=True):
    """It is done; there is nothing more to say."""


class FenceIngress(Message, frozen=True):
    """Take nothing any more from this incarnation of a member, or from older ones; Done when what it had sent ended."""

    member: str
    incarnation: int


class TicketRequest(Message, frozen=True):
    """Will you serve this login? To be answered in milliseconds: an initiator waits. isid: 6 bytes; target: its IQN.

    moved: the session is logged in elsewhere, and will be asked to come to you.
    """

    target: str
    initiator_name: str
    isid: bytes
    moved: bool = False


class TicketReply(Message, frozen=True):
    """accepted: send it here, it will be served. sessions: as in `SessionCount`, this one counted."""

    accepted: bool
    sessions: int
    reason: str = ""


class SessionCountRequest(Message, frozen=True):
    """How many sessions do you have?"""


class SessionCount(Message, frozen=True):
    """sessions: logged in to targets, and logins that a ticket was given for."""

    sessions: int


class SessionInfo(msgspec.Struct, frozen=True):
    """A session as its member shows it; the fields are those of `admin.service.Session`."""

    id: str
    initiator: str
    isid: str
    volume: str
    member: str
    address: str
    since: str
    iops: float = 0.0
    bytes_per_second: float = 0.0
    owners: dict[str, float] = {}
    user: str = ""
    header_digest: bool = False
    data_digest: bool = False
    commands: int = 0
    commands_in_flight: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    problem: str = ""


class SessionsRequest(Message, frozen=True):
    """Your sessions, a page at a time: those with a session handle (TSIH) above `after`."""

    after: int = 0


class SessionsReply(Message, frozen=True):
    """next: the `after` of the next page, 0 = this is the last. problems: by volume, also of one without a session."""

    sessions: tuple[SessionInfo, ...]
    next: int = 0
    problems: dict[str, tuple[str, ...]] = {}


class DropSession(Message, frozen=True):
    """End this session; its initiator may log in again."""

    session_id: str


class Dropped(Message, frozen=True):
    """found: there was such a session."""

    found: bool


class PortalInfo(msgspec.Struct, frozen=True):
    """A portal as its member shows it: as bound, as told to initiators, and how many sessions came through it."""

    address: str
    advertised: str
    sessions: int = 0


class PortalsRequest(Message, frozen=True):
    """Your portals?"""


class PortalsReply(Message, frozen=True):
    portals: tuple[PortalInfo, ...]


class EndSessions(Message, frozen=True):
    """An initiator logs in here. Done when nothing is under way at your place of what it began there: its session of
    the same initiator port (isid) has been ended, and the sessions of its that had ended before have drained.

    address: where the login comes from, "host:port".
    """

    volume_id: str
    initiator_name: str
    isid: bytes
    address: str = ""


class SyncUnit(Message, frozen=True):
    """Done when your unit of this volume is in the state of this epoch, or a later one, and what it ends has ended."""

    volume_id: str
    epoch: int


class BindUnit(Message, frozen=True):
    """Somebody is about to be kept out of this volume: from now on, do not serve it without your lease."""

    volume_id: str


class LoadReport(Message, frozen=True):
    """My load, told once a second to everybody; the answer is Done."""

    load: MemberLoad


class MoveExpected(Message, frozen=True):
    """A session is about to be moved: if it logs in to this target at your portal, send it to this member, which has
    accepted it. isid: 6 bytes. seconds: how long that is true.
    """

    target: str
    initiator_name: str
    isid: bytes
    member: str
    seconds: float


class ArrivalRequest(Message, frozen=True):
    """Has the initiator logged in that you have accepted? Answered when it has, or after `seconds`."""

    target: str
    initiator_name: str
    seconds: float


class Arrival(Message, frozen=True):
    """session_id: "" = it has not come."""

    session_id: str


class SessionsEnded(Message, frozen=True):
    """The answer to EndSessions where the same nexus was on its way: it was asked to go from here to there.

    attentions: unit attentions (ASC, ASCQ) that it is still owed. epoch, blocks: of the unit when it left; where they
    have changed since, the nexus has to be told so like any other.
    """

    attentions: tuple[tuple[int, int], ...]
    epoch: int
    blocks: int


class MoveSession(Message, frozen=True):
    """Move a session of yours to another member; answered when that is done."""

    session_id: str
    to: str
    reason: str = ""


class MoveReply(Message, frozen=True):
    """session_id: the session at its new member; reason: why it was not moved, or "".

    dropped: it did not obey within its time, so that its connection was closed. seconds: from the moment at which
    nothing was executed any more to the new session.
    """

    session_id: str = ""
    reason: str = ""
    dropped: bool = False
    seconds: float = 0.0


class BalanceRequest(Message, frozen=True):
    """To the member that decides: what have you decided? action: explain | plan | run."""

    action: str


class BalanceReply(Message, frozen=True):
    """report: of the admin's type `BalanceReport`, as JSON."""

    report: bytes


AnyMessage = (
    Done
    | LoadReport
    | MoveExpected
    | ArrivalRequest
    | Arrival
    | SessionsEnded
    | MoveSession
    | MoveReply
    | BalanceRequest
    | BalanceReply
    | SyncUnit
    | BindUnit
    | FenceIngress
    | EndSessions
    | TicketRequest
    | TicketReply
    | SessionCountRequest
    | SessionCount
    | SessionsRequest
    | SessionsReply
    | DropSession
    | Dropped
    | PortalsRequest
    | PortalsReply
)


class ControlRefused(Exception):
    """The other member does not do what was asked; the message says why."""


class MessageError(Exception):
    """These bytes are no control message that this version knows."""


_encode: Final = msgspec.msgpack.Encoder().encode
_decoder: Final = msgspec.msgpack.Decoder(AnyMessage)


def encode(message: Message) -> bytes:
    return _encode(message)


def decode(payload: "Payload") -> Message:
    """Raises MessageError."""
    try:
        message: Message = _decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MessageError(f"no control message: {error}") from None
    return message
