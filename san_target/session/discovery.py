"""Text exchanges in the full feature phase: SendTargets, and the few keys that may be said anew there.

RFC 7143 6.4 (negotiation outside login), 11.10 and 11.11 (Text Request and Response), appendix C (SendTargets).
A connection has at most one exchange at a time; a request without a target transfer tag begins a new one and drops
whatever the old one had not finished (11.10.4).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from san_target.session.keys import KEYS, Kind, Stage
from san_target.session.negotiation import (
    REJECT,
    Negotiation,
    NegotiationError,
    Pair,
    accept,
    answer,
    encode_answers,
    next_segment,
)
from san_target.session.parameters import Parameters
from san_target.session.target import Directory, Target
from san_target.wire import pdus
from san_target.wire.errors import TextError
from san_target.wire.opcodes import RESERVED_TAG
from san_target.wire.text import decode_pairs

if TYPE_CHECKING:
    from typing_extensions import Buffer

TEXT_BYTES_MAX: Final = 64 * 1024
"""What an initiator may send in one exchange."""


@dataclass(slots=True)
class TextRequest:
    """RFC 7143 11.10. `lun` is the raw 8-byte field, reserved unless ttt is valid."""

    final: bool
    continue_: bool
    itt: int
    ttt: int
    lun: bytes
    data: bytes

    @classmethod
    def parse(cls, bhs: bytes, data: "Buffer") -> "TextRequest":
        header = pdus.parse(bhs)
        return cls(
            final=header.final,
            continue_=header.continue_,
            itt=header.initiator_task_tag,
            ttt=header.target_transfer_tag,
            lun=bytes(header.lun),
            data=bytes(data),
        )


@dataclass(slots=True)
class TextResponse:
    """RFC 7143 11.11, but for the task tag (the request's), LUN (zero) and sequence numbers."""

    final: bool
    continue_: bool
    ttt: int
    data: bytes


@dataclass(slots=True)
class _Exchange:
    itt: int
    ttt: int
    received: bytes = b""
    received_bytes: int = 0
    unsent: bytes = b""


class TextExchange:
    """The text exchanges of one connection.

    parameters    those of the connection; MaxRecvDataSegmentLength declared anew takes effect here, in place
    target        what the session is logged in to; None in a discovery session
    portal_address  the "host:port" the initiator reached
    """

    def __init__(
        self,
        directory: Directory,
        parameters: Parameters,
        initiator_name: str,
        target: Target | None,
        portal_address: str,
    ) -> None:
        self._directory = directory
        self._parameters = parameters
        self._initiator_name = initiator_name
        self._target = target
        self._portal_address = portal_address
        self._exchange: _Exchange | None = None
        self._negotiation = Negotiation()
        self._next_ttt = 0

    def reset(self) -> None:
        """Forget an unfinished exchange; what it negotiated never takes effect."""
        self._exchange = None

    def respond(self, request: TextRequest) -> TextResponse | None:
        """The response to a Text Request, or None for a protocol error: Reject it; the exchange is gone."""
        try:
            return self._respond(request)
        except (NegotiationError, TextError):
            self.reset()
            return None

    def _respond(self, request: TextRequest) -> TextResponse:
        if request.final and request.continue_:
            raise NegotiationError("F and C in one request (RFC 7143 11.10.2)")
        exchange = self._find_exchange(request)
        if exchange.unsent:
            if request.data or request.continue_:
                raise NegotiationError("text was sent before all of the answer was fetched")
            return self._reply(request, exchange)
        exchange.received += request.data
        exchange.received_bytes += len(request.data)
        if exchange.received_bytes > TEXT_BYTES_MAX:
            raise NegotiationError("too much text in one exchange")
        if request.continue_:
            return TextResponse(final=False, continue_=False, ttt=exchange.ttt, data=b"")
        pairs, exchange.received = decode_pairs(exchange.received), b""
        exchange.unsent = encode_answers(self._answers(pairs))
        return self._reply(request, exchange)

    def _find_exchange(self, request: TextRequest) -> _Exchange:
        if request.ttt == RESERVED_TAG:
            self._exchange = _Exchange(request.itt, self._next_ttt)
            self._next_ttt = (self._next_ttt + 1) % RESERVED_TAG
            self._negotiation = Negotiation()
            return self._exchange
        exchange = self._exchange
        if exchange is None or (request.ttt, request.itt) != (exchange.ttt, exchange.itt):
            # RFC 7143 11.10.3, 11.10.4: all requests of an exchange carry its tags.
            raise NegotiationError("no text exchange with these tags")
        return exchange

    def _reply(self, request: TextRequest, exchange: _Exchange) -> TextResponse:
        limit = self._parameters.max_send_data_segment_length
        data, exchange.unsent = next_segment(exchange.unsent, limit)
        # RFC 7143 11.11.1: the target ends an exchange only if the initiator is ready to end it.
        if exchange.unsent or not request.final:
            return TextResponse(final=False, continue_=bool(exchange.unsent), ttt=exchange.ttt, data=data)
        self._exchange = None
        length = self._negotiation.agreed.get("MaxRecvDataSegmentLength")
        if length is not None:
            self._parameters.max_send_data_segment_length = int(length)
        return TextResponse(final=True, continue_=False, ttt=RESERVED_TAG, data=data)

    # --- Answers ------------------------------------------------------------------------------------------------------

    def _answers(self, pairs: list[Pair]) -> list[Pair]:
        legal, answers = [], []
        for name, value in pairs:
            key = KEYS.get(name)
            if key is not None and Stage.FULL_FEATURE not in key.stages:
                answers.append((name, REJECT))  # a parameter of login cannot change any more
            else:
                legal.append((name, value))
        for name, value in accept(self._negotiation, legal, Stage.FULL_FEATURE):
            if name == "SendTargets":
                answers += self._send_targets(value)
                continue
            reply, result = self._answer(name, value)
            if result is not None:
                self._negotiation.agreed[name] = result
            if reply is not None:
                answers.append((name, reply))
        return answers

    def _answer(self, name: str, value: str) -> tuple[str | None, str | None]:
        if self._target is None and name in KEYS and KEYS[name].kind is not Kind.REQUEST:
            # RFC 7143 4.3: a discovery session takes SendTargets and nothing else.
            return REJECT, None
        return answer(name, value, None)

    def _send_targets(self, value: str) -> list[Pair]:
        """Appendix C: "All" and names in discovery sessions; in normal sessions nothing, or the target's own name."""
        if self._target is None:
            if value == "":
                return [("SendTargets", REJECT)]
            visible = self._directory.visible_to(self._initiator_name)
            return self._records([target for target in visible if value in ("All", target.iqn)])
        if value in ("", self._target.iqn):
            return self._records([self._target])
        return [("SendTargets", REJECT)]

    def _records(self, targets: list[Target]) -> list[Pair]:
        pairs = []
        for target in targets:
            pairs.append(("TargetName", target.iqn))
            for address, tag in self._directory.portals_of(target, self._portal_address):
                pairs.append(("TargetAddress", f"{address},{tag}"))  # with the tag, unlike a redirection
        return pairs
