"""Every outcome that hostile input may have: the tables of docs/hostile-input.md, which a test holds to these.

Written from the standards, not taken from the target's code: what is in no table here is a defect, wherever it comes
from.
"""

import re
from typing import Final

REJECT_REASONS: Final = {
    0x02: "data digest error",
    0x04: "protocol error",
    0x05: "command not supported",
    0x06: "too many immediate commands",
    0x07: "task in progress",
    0x09: "invalid PDU field",
}
"""RFC 7143 11.17.1."""

LOGIN_STATUSES: Final = {
    0x0000: "success",
    0x0101: "target moved temporarily",
    0x0200: "initiator error",
    0x0201: "authentication failure",
    0x0202: "authorization failure",
    0x0203: "not found",
    0x0205: "unsupported version",
    0x0206: "too many connections",
    0x0207: "missing parameter",
    0x0209: "session type not supported",
    0x020A: "session does not exist",
    0x020B: "invalid during login",
    0x0301: "service unavailable",
    0x0302: "out of resources",
}
"""RFC 7143 11.13.5."""

TASK_MANAGEMENT_RESPONSES: Final = {
    0: "function complete",
    1: "task does not exist",
    2: "LUN does not exist",
    4: "task reassignment not supported",
    5: "function not supported",
    7: "function succeeded",
    255: "function rejected",
}
"""RFC 7143 11.6.1, RFC 7144 4.2."""

LOGOUT_RESPONSES: Final = {0: "closed", 1: "CID not found", 2: "recovery not supported"}
"""RFC 7143 11.15.1."""

ASYNC_EVENTS: Final = {1: "target requests logout", 3: "target drops the session"}
"""RFC 7143 11.9.1."""

STATUSES: Final = {
    0x00: "GOOD",
    0x02: "CHECK CONDITION",
    0x04: "CONDITION MET",
    0x08: "BUSY",
    0x18: "RESERVATION CONFLICT",
}
"""SAM-5 5.3.1."""

SENSE: Final = {
    (0x0, 0x00, 0x00): "no sense",
    (0x2, 0x04, 0x02): "not ready, initializing command required",
    (0x2, 0x04, 0x1B): "not ready, sanitize in progress",
    (0x2, 0x3A, 0x02): "medium not present, tray open",
    (0x3, 0x31, 0x03): "sanitize command failed",
    (0x5, 0x00, 0x16): "operation in progress",
    (0x5, 0x0E, 0x03): "invalid field in command information unit",
    (0x5, 0x1A, 0x00): "parameter list length error",
    (0x5, 0x20, 0x00): "invalid command operation code",
    (0x5, 0x21, 0x00): "LBA out of range",
    (0x5, 0x24, 0x00): "invalid field in CDB",
    (0x5, 0x25, 0x00): "logical unit not supported",
    (0x5, 0x26, 0x00): "invalid field in parameter list",
    (0x5, 0x26, 0x04): "invalid release of persistent reservation",
    (0x5, 0x26, 0x06): "too many target descriptors",
    (0x5, 0x26, 0x07): "unsupported target descriptor type",
    (0x5, 0x26, 0x08): "too many segment descriptors",
    (0x5, 0x26, 0x09): "unsupported segment descriptor type",
    (0x5, 0x26, 0x0B): "inline data length exceeded",
    (0x5, 0x39, 0x00): "saving parameters not supported",
    (0x5, 0x53, 0x02): "medium removal prevented",
    (0x5, 0x55, 0x04): "insufficient registration resources",
    (0x6, 0x28, 0x00): "not ready to ready change",
    (0x6, 0x29, 0x00): "power on or reset",
    (0x6, 0x29, 0x03): "bus device reset",
    (0x6, 0x29, 0x07): "I_T nexus loss",
    (0x6, 0x2A, 0x01): "mode parameters changed",
    (0x6, 0x2A, 0x03): "reservations preempted",
    (0x6, 0x2A, 0x04): "reservations released",
    (0x6, 0x2A, 0x05): "registrations preempted",
    (0x6, 0x2F, 0x00): "commands cleared by another initiator",
    (0x7, 0x27, 0x02): "software write protected",
    (0xA, 0x00, 0x00): "copy aborted",
    (0xA, 0x08, 0x04): "unreachable copy target",
    (0xA, 0x0D, 0x01): "third party device failure",
    (0xA, 0x0D, 0x02): "copy target device not reachable",
    (0xA, 0x26, 0x0A): "unexpected inexact segment",
    (0xB, 0x0C, 0x0C): "unexpected unsolicited data",
    (0xB, 0x0C, 0x0D): "incorrect amount of data",
    (0xB, 0x4B, 0x05): "data offset or order error",
    (0xE, 0x1D, 0x00): "miscompare during verify",
}
"""SPC-4 annex F; the three of ABORTED COMMAND with RFC 7143 11.4.7.2."""

INVALID_DURING_LOGIN: Final = 0x020B

CLOSE_REASONS: Final = {
    r"opcode 0x[0-9a-f]{2} before login": "another PDU than a Login Request before login",
    r"a Login Request before the last one was answered": "Login Requests sent without waiting",
    r"login answered 0x[0-9a-f]{4}: .*": "after a Login Response with another status than success",
    r"login took too long": "login takes longer than 15 s",
    r"header digest error": "wrong header digest",
    r"data digest error": "wrong data digest",
    r"data segment of \d+ bytes, above the declared maximum of \d+": "a data segment longer than declared",
    r"the initiator takes no data": "output does not move for 30 s",
    r"too many connections log in at the same time": "the oldest of too many unfinished logins",
    r"the initiator does not answer": "nothing was heard, and the ping not answered",
    r"logged out": "after a Logout Response",
    r"session reinstated": "the same initiator port logged in again",
    r"target cold reset": "TARGET COLD RESET ends all sessions of the target",
    r"connection lost": "the initiator closed the connection",
}
"""Reason -> when the target ends a connection."""

SILENT: Final = {
    "CmdSN outside the window": "RFC 7143 4.2.2.1",
    "CmdSN ahead of its turn": "RFC 7143 4.2.2.1",
    "Data-Out without a task that waits for it": "RFC 7143 11.7",
    "NOP-Out with the reserved task tag": "RFC 7143 11.18",
    "an unfinished PDU": "RFC 7143 11.2",
    "anything after a Logout Request": "RFC 7143 11.14",
    "tasks aborted": "RFC 7143 11.5.1",
}


def close_reason(reason: str) -> str | None:
    """What a close reason is called in the table; None = it is in no table."""
    return next((named for pattern, named in CLOSE_REASONS.items() if re.fullmatch(pattern, reason, re.S)), None)
