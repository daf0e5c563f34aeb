"""Text negotiation as pure functions over the key table (RFC 7143 section 6.2).

Initiators propose, this target answers: it never proposes a key of its own, so every answer ends its negotiation and a
response may carry T=1 at once. What the target states for itself it declares (`declare`).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from san_target.session.keys import BOOLEAN, KEYS, NUMERIC, TEXT_VALUE_BYTES_MAX, Key, Kind, Sender, Stage
from san_target.session.parameters import Parameters, TargetLimits
from san_target.wire.errors import TextError
from san_target.wire.text import decode_number, encode_pairs

Pair: TypeAlias = tuple[str, str]
Offer: TypeAlias = Mapping[str, bool | int | tuple[str, ...]]

NOT_UNDERSTOOD: Final = "NotUnderstood"
REJECT: Final = "Reject"
IRRELEVANT: Final = "Irrelevant"
ANSWERS_WITHOUT_VALUE: Final = frozenset({NOT_UNDERSTOOD, REJECT, IRRELEVANT})

PROTOCOL_LEVEL: Final = 2
"""RFC 7144: with iSCSIProtocolLevel 2 the initiator may use its task management functions and command priority."""

LOGIN_SEGMENT_BYTES_MAX: Final = 8192
"""During login the default MaxRecvDataSegmentLength holds for both sides (RFC 7143 6.3)."""


class NegotiationError(Exception):
    """The initiator broke a rule of text negotiation: login ends with "initiator error", text exchanges with Reject."""


def target_offer(limits: TargetLimits) -> Offer:
    """What this target wants of each key that is negotiated: a flag, a number, or the supported values."""
    return {
        "HeaderDigest": ("CRC32C", "None"),
        "DataDigest": ("CRC32C", "None"),
        "MaxConnections": 1,
        "InitialR2T": False,
        "ImmediateData": True,
        "MaxBurstLength": limits.max_burst_length,
        "FirstBurstLength": limits.first_burst_length,
        "DefaultTime2Wait": limits.default_time2wait_s,
        "DefaultTime2Retain": limits.default_time2retain_s,
        "MaxOutstandingR2T": limits.max_outstanding_r2t,
        "DataPDUInOrder": True,
        "DataSequenceInOrder": True,
        "ErrorRecoveryLevel": 0,
        "TaskReporting": ("RFC3720",),
        "iSCSIProtocolLevel": PROTOCOL_LEVEL,
    }


@dataclass(slots=True)
class Negotiation:
    """What was said so far in one login or one text exchange.

    received   every key the initiator sent, with its value
    agreed     key -> result, for keys that ended with a value ("Reject" and the like leave the default in force)
    declared   keys this target declared itself
    """

    received: dict[str, str] = field(default_factory=dict)
    agreed: dict[str, str] = field(default_factory=dict)
    declared: set[str] = field(default_factory=set)


def accept(negotiation: Negotiation, pairs: Iterable[Pair], stage: Stage) -> list[Pair]:
    """Enter a set of received pairs; those that are left need an answer or a look, in the order they came.

    Left out are replies to what this target said, and identities repeated with the same value. Raises NegotiationError
    for a key said twice, out of its stage, or by the wrong side. Unknown keys pass: `answer` knows what to say.
    """
    left = []
    for name, value in pairs:
        if value in ANSWERS_WITHOUT_VALUE and (name in negotiation.received or name in negotiation.declared):
            continue
        key = KEYS.get(name)
        if key is not None:
            _check_legal(key, value, stage)
        if name in negotiation.received:
            # RFC 7143 6.3: whoever negotiates or declares a key twice gets "initiator error". One mercy: libiscsi says
            # who it is again at the start of the operational stage; the same name twice is no contradiction.
            if key is not None and key.kind is Kind.IDENTITY and negotiation.received[name] == value:
                continue
            raise NegotiationError(f"{name} was sent twice")
        negotiation.received[name] = value
        left.append((name, value))
    return left


def _check_legal(key: Key, value: str, stage: Stage) -> None:
    if key.sender is Sender.TARGET:
        raise NegotiationError(f"{key.name} is for targets to send ({key.section})")
    if stage not in key.stages:
        raise NegotiationError(f"{key.name} is not for the {stage.name} stage ({key.section})")
    if key.kind in (Kind.IDENTITY, Kind.DECLARED_TEXT) and len(value.encode()) > TEXT_VALUE_BYTES_MAX:
        raise NegotiationError(f"the value of {key.name} is too long (RFC 7143 6.1)")


def answer_all(negotiation: Negotiation, pairs: Iterable[Pair], offer: Offer, discovery: bool) -> list[Pair]:
    """Answer the pairs that `accept` left of a Login Request and keep the results in `agreed`.

    Raises NegotiationError for a declared number that cannot be right: a Reject beside this target's own declaration of
    the same key would be that key twice in one response.
    """
    pairs = list(pairs)
    # FirstBurstLength must not exceed MaxBurstLength (RFC 7143 13.14), which may stand behind it in the same PDU.
    answers: dict[str, Pair] = {}
    for name, value in sorted(pairs, key=lambda pair: pair[0] == "FirstBurstLength"):
        own = offer.get(name)
        if name == "FirstBurstLength" and isinstance(own, int):
            own = min(own, int(negotiation.agreed.get("MaxBurstLength", KEYS["MaxBurstLength"].default or own)))
        reply, result = answer(name, value, own, discovery)
        if result is not None:
            negotiation.agreed[name] = result
        if name in KEYS and KEYS[name].kind is Kind.DECLARED_NUMBER and result is None:
            raise NegotiationError(f"{name}={value[:64]!r} is out of range")
        if reply is not None:
            answers[name] = (name, reply)
    return [answers[name] for name, _ in pairs if name in answers]


def answer(
    name: str, value: str, own: bool | int | tuple[str, ...] | None, discovery: bool = False
) -> tuple[str | None, str | None]:
    """The (answer, result) to one proposed or declared key; `own` is what this target wants of it.

    An answer of None means that none is sent; a result of None leaves the default (or what held before) in force.
    """
    key = KEYS.get(name)
    if key is None:
        return NOT_UNDERSTOOD, None
    if discovery and not key.discovery:
        # A number here would be harmless but untrue: discovery sessions carry no SCSI.
        return IRRELEVANT, None
    result = _result(key, value, own)
    if key.kind is Kind.OBSOLETE_BOOLEAN:
        # RFC 7143 13.25 allows No or Reject, but not NotUnderstood. No is what initiators of RFC 3720's time expect.
        return "No", None
    if key.kind in (Kind.DECLARED_NUMBER, Kind.DECLARED_TEXT, Kind.IDENTITY):
        # A declaration is not answered; one that cannot be right is refused and changes nothing.
        return (None, result) if result is not None else (REJECT, None)
    return (result, result) if result is not None else (REJECT, None)


def _result(key: Key, value: str, own: bool | int | tuple[str, ...] | None) -> str | None:
    if key.kind in NUMERIC:
        return _number_result(key, value, own)
    if key.kind in BOOLEAN:
        return _boolean_result(key, value, own)
    if key.kind is Kind.LIST:
        supported = own if isinstance(own, tuple) else ()
        return next((item for item in value.split(",") if item in supported), None)
    if key.kind in (Kind.DECLARED_TEXT, Kind.IDENTITY):
        return value
    return None


def _number_result(key: Key, value: str, own: bool | int | tuple[str, ...] | None) -> str | None:
    try:
        number = decode_number(value)
    except TextError:
        return None
    if not key.lowest <= number <= key.highest:
        return None
    if key.kind is Kind.DECLARED_NUMBER:
        return str(number)
    if not isinstance(own, int):
        return None
    return str(min(number, own) if key.kind is Kind.MINIMUM else max(number, own))


def _boolean_result(key: Key, value: str, own: bool | int | tuple[str, ...] | None) -> str | None:
    if value not in ("Yes", "No") or not isinstance(own, bool):
        return None
    theirs = value == "Yes"
    return "Yes" if (theirs or own if key.kind is Kind.BOOLEAN_OR else theirs and own) else "No"


def declare(negotiation: Negotiation, pairs: Iterable[Pair]) -> list[Pair]:
    """Those of the pairs that this target has not declared yet; they count as declared from now on."""
    new = [(name, value) for name, value in pairs if name not in negotiation.declared]
    negotiation.declared.update(name for name, _ in new)
    return new


def to_parameters(negotiation: Negotiation, limits: TargetLimits) -> Parameters:
    """The parameters that hold when login ends: results where there are any, RFC 7143's defaults elsewhere."""
    parameters = Parameters()
    for name, value in negotiation.agreed.items():
        key = KEYS[name]
        if key.parameter:
            setattr(parameters, key.parameter, _parameter_value(key, value))
    if "MaxRecvDataSegmentLength" in negotiation.declared:
        parameters.max_recv_data_segment_length = limits.max_recv_data_segment_length
    # An initiator that lowers MaxBurstLength and says nothing of FirstBurstLength (RFC 7143 13.14).
    parameters.first_burst_length = min(parameters.first_burst_length, parameters.max_burst_length)
    return parameters


def _parameter_value(key: Key, value: str) -> bool | int:
    if key.kind in NUMERIC:
        return int(value)
    return value == ("CRC32C" if key.kind is Kind.LIST else "Yes")


def encode_answers(pairs: Iterable[Pair]) -> bytes:
    """Text of any length. Each pair is held to the limits of the wire; the whole is not, as it is sent in segments."""
    return b"".join(encode_pairs((pair,)) for pair in pairs)


def next_segment(text: bytes, segment_bytes_max: int) -> tuple[bytes, bytes]:
    """(the data of the next PDU, what remains). Cut behind a pair where possible: not every receiver joins halves."""
    if len(text) <= segment_bytes_max:
        return text, b""
    cut = text.rfind(b"\0", 0, segment_bytes_max) + 1 or segment_bytes_max
    return text[:cut], text[cut:]
