"""Whether a member fits the others: by the schema of the records it writes, and by the peer protocol it speaks. Pure.

Members of different programs may run side by side, as while a group is upgraded one after another, as long as every
record that one writes can be read by all, and any two of them share a version of the peer protocol. The versions of
the programs themselves are for people.
"""

from collections.abc import Iterable
from typing import NamedTuple

from san_target import __version__
from san_target.metadata.schema import SCHEMA_VERSION, MemberRecord
from san_target.peer.handshake import VERSION_NEWEST, VERSION_OLDEST


class Versions(NamedTuple):
    """Of one member. schema: of what it writes; protocol_min, protocol_max: of the peer protocol, both included."""

    program: str = __version__
    schema: int = SCHEMA_VERSION
    protocol_min: int = VERSION_OLDEST
    protocol_max: int = VERSION_NEWEST


def versions_of(record: MemberRecord) -> Versions:
    return Versions(record.program or "?", record.version, record.protocol_min, record.protocol_max)


def refusal(mine: Versions, others: Iterable[MemberRecord]) -> str:
    """Why a member with these versions cannot run beside `others`, with what to do; "" if it can."""
    for other in others:
        theirs = versions_of(other)
        who = f"member {other.name!r} ({theirs.program})"
        me = f"this program ({mine.program})"
        if mine.schema < theirs.schema:
            return (
                f"{who} writes records of schema version {theirs.schema}, {me} knows up to {mine.schema}; "
                "upgrade this member"
            )
        if mine.schema > theirs.schema:
            return (
                f"{me} writes records of schema version {mine.schema}, which {who} cannot read "
                f"(it knows up to {theirs.schema}); stop the members of that version, then upgrade and start all"
            )
        if mine.protocol_max < theirs.protocol_min:
            return f"{me} is too old to talk to {who}; upgrade this member"
        if mine.protocol_min > theirs.protocol_max:
            return f"{who} is too old to talk to {me}; upgrade that member first"
    return ""
