"""What an initiator offers at login, and what both sides agreed on (RFC 7143 section 13), seen from the initiator.

Written without the target's own table of keys on purpose: where the two read the standard differently, a login fails.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, NamedTuple

Pair = tuple[str, str]

NOT_VALUES: Final = frozenset({"Reject", "NotUnderstood", "Irrelevant"})
"""Answers that leave a key at its default (RFC 7143 6.2)."""


class NegotiationError(Exception):
    """The target's answers break the rules of RFC 7143 6.2."""


class Rule(Enum):
    """How offer and answer make the result (RFC 7143 6.2.1, 6.2.2)."""

    OR = "Yes if either side says Yes"
    AND = "Yes if both sides say Yes"
    MINIMUM = "the smaller number"
    MAXIMUM = "the larger number"
    CHOICE = "the offered value that the other side picked"
    DECLARED = "each side says its own; no answer"


class KeyRule(NamedTuple):
    """One negotiable key: its rule, the range of a number, the default of RFC 7143, and the field of `Parameters`."""

    rule: Rule
    lowest: int
    highest: int
    default: str
    parameter: str


_LENGTH: Final = (512, (1 << 24) - 1)
RULES: Final[Mapping[str, KeyRule]] = {
    "HeaderDigest": KeyRule(Rule.CHOICE, 0, 0, "None", "header_digest"),  # 13.1
    "DataDigest": KeyRule(Rule.CHOICE, 0, 0, "None", "data_digest"),  # 13.1
    "MaxConnections": KeyRule(Rule.MINIMUM, 1, 65535, "1", "max_connections"),  # 13.2
    "InitialR2T": KeyRule(Rule.OR, 0, 0, "Yes", "initial_r2t"),  # 13.10
    "ImmediateData": KeyRule(Rule.AND, 0, 0, "Yes", "immediate_data"),  # 13.11
    "MaxRecvDataSegmentLength": KeyRule(Rule.DECLARED, *_LENGTH, "8192", "max_send_data_segment_length"),  # 13.12
    "MaxBurstLength": KeyRule(Rule.MINIMUM, *_LENGTH, "262144", "max_burst_length"),  # 13.13
    "FirstBurstLength": KeyRule(Rule.MINIMUM, *_LENGTH, "65536", "first_burst_length"),  # 13.14
    "DefaultTime2Wait": KeyRule(Rule.MAXIMUM, 0, 3600, "2", "default_time2wait_s"),  # 13.15
    "DefaultTime2Retain": KeyRule(Rule.MINIMUM, 0, 3600, "20", "default_time2retain_s"),  # 13.16
    "MaxOutstandingR2T": KeyRule(Rule.MINIMUM, 1, 65535, "1", "max_outstanding_r2t"),  # 13.17
    "DataPDUInOrder": KeyRule(Rule.OR, 0, 0, "Yes", "data_pdu_in_order"),  # 13.18
    "DataSequenceInOrder": KeyRule(Rule.OR, 0, 0, "Yes", "data_sequence_in_order"),  # 13.19
    "ErrorRecoveryLevel": KeyRule(Rule.MINIMUM, 0, 2, "0", "error_recovery_level"),  # 13.20
    "TaskReporting": KeyRule(Rule.CHOICE, 0, 0, "RFC3720", ""),  # 13.23
    "iSCSIProtocolLevel": KeyRule(Rule.MINIMUM, 0, 31, "1", "iscsi_protocol_level"),  # 13.24
}
# What the target says about itself, which nobody answers.
_ABOUT_THE_TARGET: Final = frozenset({"TargetAlias", "TargetAddress", "TargetPortalGroupTag", "TargetName"})


@dataclass(slots=True)
class Parameters:
    """The result of a login. Lengths are bytes, times seconds.

    max_recv_data_segment_length is what we told the target, max_send_data_segment_length what it told us.
    `others` has everything else the target said about itself: TargetPortalGroupTag, TargetAlias.
    """

    header_digest: bool = False
    data_digest: bool = False
    max_recv_data_segment_length: int = 8192
    max_send_data_segment_length: int = 8192
    max_burst_length: int = 262144
    first_burst_length: int = 65536
    initial_r2t: bool = True
    immediate_data: bool = True
    max_outstanding_r2t: int = 1
    data_pdu_in_order: bool = True
    data_sequence_in_order: bool = True
    default_time2wait_s: int = 2
    default_time2retain_s: int = 20
    error_recovery_level: int = 0
    max_connections: int = 1
    iscsi_protocol_level: int = 1
    others: dict[str, str] = field(default_factory=dict)


def settle(offered: Mapping[str, str], answered: Mapping[str, str]) -> Parameters:
    """The parameters that follow from our offers and the target's answers (its own declarations included).

    A key that nobody mentioned, or that the target refused, has its default. Raises NegotiationError for an answer
    that no offer allows, such as a digest that was not offered or a number out of its range.
    """
    parameters = Parameters()
    for key, rule in RULES.items():
        answer = answered.get(key)
        if rule.rule is Rule.DECLARED:
            if answer is not None:
                _set(parameters, rule, _number(key, rule, answer))
            continue
        offer = offered.get(key)
        if answer in NOT_VALUES or (answer is None and offer is None):
            continue
        if answer is None:
            # 6.2: an offer has an answer, but for the Boolean ones whose result the offer alone decides.
            decides = (rule.rule is Rule.OR and offer == "Yes") or (rule.rule is Rule.AND and offer == "No")
            if decides:
                _set(parameters, rule, offer == "Yes")
            continue
        _set(parameters, rule, _result(key, rule, answer if offer is None else offer, answer))
    if "MaxRecvDataSegmentLength" in offered:
        parameters.max_recv_data_segment_length = int(offered["MaxRecvDataSegmentLength"])
    # 13.14: FirstBurstLength MUST NOT exceed MaxBurstLength.
    parameters.first_burst_length = min(parameters.first_burst_length, parameters.max_burst_length)
    parameters.others = {key: value for key, value in answered.items() if key not in RULES}
    return parameters


def _set(parameters: Parameters, rule: KeyRule, value: bool | int) -> None:
    if rule.parameter:
        setattr(parameters, rule.parameter, value)


def _result(key: str, rule: KeyRule, offer: str, answer: str) -> bool | int:
    if rule.rule is Rule.CHOICE:
        if answer not in offer.split(","):
            raise NegotiationError(f"{key}: {answer!r} was not among the offered {offer!r}")
        return answer == "CRC32C"
    if rule.rule in (Rule.OR, Rule.AND):
        if answer not in ("Yes", "No"):
            raise NegotiationError(f"{key}: {answer!r} is neither Yes nor No")
        both = (offer == "Yes", answer == "Yes")
        return any(both) if rule.rule is Rule.OR else all(both)
    pick = min if rule.rule is Rule.MINIMUM else max
    return pick(int(offer), _number(key, rule, answer))


def _number(key: str, rule: KeyRule, value: str) -> int:
    try:
        number = int(value, 0)
    except ValueError:
        raise NegotiationError(f"{key}: {value[:40]!r} is no number") from None
    if not rule.lowest <= number <= rule.highest:
        raise NegotiationError(f"{key}: {number} is not within {rule.lowest} to {rule.highest}")
    return number


def replies(offered: Mapping[str, str], received: Iterable[Pair]) -> list[Pair]:
    """Our answers to what the target offered of its own accord; empty where everything received answers our offers."""
    answers: list[Pair] = []
    for key, value in received:
        if key in offered or key in _ABOUT_THE_TARGET or value in NOT_VALUES:
            continue
        rule = RULES.get(key)
        if rule is None:
            answers.append((key, "NotUnderstood"))
        elif rule.rule is Rule.CHOICE:
            answers.append((key, rule.default if rule.default in value.split(",") else "Reject"))
        elif rule.rule is not Rule.DECLARED:
            answers.append((key, value))
    return answers
