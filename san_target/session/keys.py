"""Every text key of RFC 7143 (sections 12 and 13) and RFC 7144 as one table: who may send it, when, and what it means.

The rows say what the standard says; what this target wants of each key is in `negotiation.py`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum
from types import MappingProxyType
from typing import Final


class Stage(IntEnum):
    """The stages of a connection that have their own text keys; the numbers are CSG and NSG (RFC 7143 11.12.3)."""

    SECURITY = 0
    OPERATIONAL = 1
    FULL_FEATURE = 3


class Kind(Enum):
    """How a key comes to its value (RFC 7143 6.2)."""

    BOOLEAN_OR = "the result is Yes if either side says Yes"
    BOOLEAN_AND = "the result is Yes if both sides say Yes"
    MINIMUM = "the result is the smaller number"
    MAXIMUM = "the result is the larger number"
    LIST = "the acceptor picks the first offered value that it supports"
    DECLARED_NUMBER = "a number that each sender states for itself; not answered"
    DECLARED_TEXT = "a text that the sender states; not answered"
    IDENTITY = "a declared text that says who logs in where; not answered"
    REQUEST = "asks for information"
    AUTHENTICATION = "a step of an authentication method"
    OBSOLETE_BOOLEAN = "of RFC 3720, no longer used; answered No"
    OBSOLETE_RANGE = "of RFC 3720, no longer used; answered Reject"


NUMERIC: Final = frozenset({Kind.MINIMUM, Kind.MAXIMUM, Kind.DECLARED_NUMBER})
BOOLEAN: Final = frozenset({Kind.BOOLEAN_OR, Kind.BOOLEAN_AND})


class Sender(Enum):
    INITIATOR = "initiator"
    TARGET = "target"
    BOTH = "both"


@dataclass(frozen=True, slots=True)
class Key:
    """One text key.

    section    where the standard defines it
    stages     where it may be sent
    lowest, highest   the range of a number, both included
    default    the value that holds if nobody mentions the key; None where there is no such value
    discovery  False: meaningless in a discovery session ("Irrelevant when: SessionType=Discovery")
    parameter  the field of `Parameters` that takes the result; "" if none does
    """

    name: str
    kind: Kind
    section: str
    stages: frozenset[Stage]
    sender: Sender = Sender.BOTH
    lowest: int = 0
    highest: int = 0
    default: str | None = None
    discovery: bool = True
    parameter: str = ""


_ANY_STAGE: Final = frozenset({Stage.SECURITY, Stage.OPERATIONAL})
_ALL: Final = frozenset(Stage)
_SECURITY: Final = frozenset({Stage.SECURITY})
_OPERATIONAL: Final = frozenset({Stage.OPERATIONAL})
_OPERATIONAL_AND_LATER: Final = frozenset({Stage.OPERATIONAL, Stage.FULL_FEATURE})
_FULL_FEATURE: Final = frozenset({Stage.FULL_FEATURE})

LENGTH_MIN: Final = 512
LENGTH_MAX: Final = (1 << 24) - 1
TEXT_VALUE_BYTES_MAX: Final = 255
"""The longest simple value (RFC 7143 6.1)."""
NAME_BYTES_MAX: Final = 223
"""The longest iSCSI name (RFC 7143 4.2.7.1)."""


def _length(name: str, section: str, default: int, parameter: str) -> Key:
    return Key(
        name,
        Kind.MINIMUM,
        section,
        _OPERATIONAL,
        lowest=LENGTH_MIN,
        highest=LENGTH_MAX,
        default=str(default),
        discovery=False,
        parameter=parameter,
    )


def _boolean(name: str, kind: Kind, section: str, parameter: str) -> Key:
    return Key(name, kind, section, _OPERATIONAL, default="Yes", discovery=False, parameter=parameter)


def _seconds(name: str, kind: Kind, section: str, default: int, parameter: str) -> Key:
    return Key(name, kind, section, _OPERATIONAL, lowest=0, highest=3600, default=str(default), parameter=parameter)


_ROWS: Final = (
    # Authentication: RFC 7143 section 12
    Key("AuthMethod", Kind.LIST, "RFC 7143 12", _SECURITY, default="None"),
    Key("CHAP_A", Kind.AUTHENTICATION, "RFC 7143 12.1.3", _SECURITY),
    Key("CHAP_I", Kind.AUTHENTICATION, "RFC 7143 12.1.3", _SECURITY),
    Key("CHAP_C", Kind.AUTHENTICATION, "RFC 7143 12.1.3", _SECURITY),
    Key("CHAP_N", Kind.AUTHENTICATION, "RFC 7143 12.1.3", _SECURITY),
    Key("CHAP_R", Kind.AUTHENTICATION, "RFC 7143 12.1.3", _SECURITY),
    # Names and addresses
    Key("SendTargets", Kind.REQUEST, "RFC 7143 13.3", _FULL_FEATURE, Sender.INITIATOR),
    Key("TargetName", Kind.IDENTITY, "RFC 7143 13.4", _ANY_STAGE),
    Key("InitiatorName", Kind.IDENTITY, "RFC 7143 13.5", _ANY_STAGE, Sender.INITIATOR),
    Key("TargetAlias", Kind.DECLARED_TEXT, "RFC 7143 13.6", _ALL, Sender.TARGET),
    Key("InitiatorAlias", Kind.IDENTITY, "RFC 7143 13.7", _ALL, Sender.INITIATOR),
    Key("TargetAddress", Kind.DECLARED_TEXT, "RFC 7143 13.8", _ALL, Sender.TARGET),
    Key("TargetPortalGroupTag", Kind.DECLARED_NUMBER, "RFC 7143 13.9", _ANY_STAGE, Sender.TARGET, highest=65535),
    Key("SessionType", Kind.IDENTITY, "RFC 7143 13.21", _ANY_STAGE, Sender.INITIATOR, default="Normal"),
    Key("X#NodeArchitecture", Kind.DECLARED_TEXT, "RFC 7143 13.26", _ANY_STAGE),
    # Operation of the session and connection
    Key("HeaderDigest", Kind.LIST, "RFC 7143 13.1", _OPERATIONAL, default="None", parameter="header_digest"),
    Key("DataDigest", Kind.LIST, "RFC 7143 13.1", _OPERATIONAL, default="None", parameter="data_digest"),
    Key(
        "MaxConnections",
        Kind.MINIMUM,
        "RFC 7143 13.2",
        _OPERATIONAL,
        lowest=1,
        highest=65535,
        default="1",
        discovery=False,
        parameter="max_connections",
    ),
    _boolean("InitialR2T", Kind.BOOLEAN_OR, "RFC 7143 13.10", "initial_r2t"),
    _boolean("ImmediateData", Kind.BOOLEAN_AND, "RFC 7143 13.11", "immediate_data"),
    Key(
        "MaxRecvDataSegmentLength",
        Kind.DECLARED_NUMBER,
        "RFC 7143 13.12",
        _OPERATIONAL_AND_LATER,
        lowest=LENGTH_MIN,
        highest=LENGTH_MAX,
        default="8192",
        parameter="max_send_data_segment_length",  # what the initiator can receive is what we may send
    ),
    _length("MaxBurstLength", "RFC 7143 13.13", 262144, "max_burst_length"),
    _length("FirstBurstLength", "RFC 7143 13.14", 65536, "first_burst_length"),
    _seconds("DefaultTime2Wait", Kind.MAXIMUM, "RFC 7143 13.15", 2, "default_time2wait_s"),
    _seconds("DefaultTime2Retain", Kind.MINIMUM, "RFC 7143 13.16", 20, "default_time2retain_s"),
    Key(
        "MaxOutstandingR2T",
        Kind.MINIMUM,
        "RFC 7143 13.17",
        _OPERATIONAL,
        lowest=1,
        highest=65535,
        default="1",
        discovery=False,
        parameter="max_outstanding_r2t",
    ),
    _boolean("DataPDUInOrder", Kind.BOOLEAN_OR, "RFC 7143 13.18", "data_pdu_in_order"),
    _boolean("DataSequenceInOrder", Kind.BOOLEAN_OR, "RFC 7143 13.19", "data_sequence_in_order"),
    Key(
        "ErrorRecoveryLevel",
        Kind.MINIMUM,
        "RFC 7143 13.20",
        _OPERATIONAL,
        lowest=0,
        highest=2,
        default="0",
        parameter="error_recovery_level",
    ),
    Key("TaskReporting", Kind.LIST, "RFC 7143 13.23", _OPERATIONAL, default="RFC3720", discovery=False),
    Key(
        "iSCSIProtocolLevel",
        Kind.MINIMUM,
        "RFC 7143 13.24, RFC 7144",
        _OPERATIONAL,
        lowest=0,
        highest=31,
        default="1",
        discovery=False,
        parameter="iscsi_protocol_level",
    ),
    # RFC 7143 13.25: obsolete, but NotUnderstood is forbidden as an answer
    Key("IFMarker", Kind.OBSOLETE_BOOLEAN, "RFC 7143 13.25", _OPERATIONAL),
    Key("OFMarker", Kind.OBSOLETE_BOOLEAN, "RFC 7143 13.25", _OPERATIONAL),
    Key("IFMarkInt", Kind.OBSOLETE_RANGE, "RFC 7143 13.25", _OPERATIONAL),
    Key("OFMarkInt", Kind.OBSOLETE_RANGE, "RFC 7143 13.25", _OPERATIONAL),
)

KEYS: Final[Mapping[str, Key]] = MappingProxyType({row.name: row for row in _ROWS})
"""All keys by name. Anything else, X- and Y- extensions among it, is answered NotUnderstood (RFC 7143 6.2)."""

_NAME_FORMATS: Final = re.compile(
    r"iqn\.[0-9]{4}-(?:0[1-9]|1[0-2])\.[^:]+(?::.*)?|eui\.[0-9A-Fa-f]{16}|naa\.[0-9A-Fa-f]{16}(?:[0-9A-Fa-f]{16})?"
)
_NAME_PUNCTUATION: Final = frozenset("-.:_")


def is_iscsi_name(name: str) -> bool:
    """True for a name in one of the formats iqn., eui. and naa. (RFC 7143 4.2.7.3 to 4.2.7.5), 223 bytes at most.

    Of ASCII, RFC 3722 allows letters, digits, "-", "." and ":". "_" is let through, since names are often made of host
    names that have one; capitals too, which initiators send as they were configured. No name is changed.
    """
    return (
        len(name.encode()) <= NAME_BYTES_MAX
        and all(
            letter.isalnum() or letter in _NAME_PUNCTUATION if letter.isascii() else letter.isprintable()
            for letter in name
        )
        and _NAME_FORMATS.fullmatch(name) is not None
    )
