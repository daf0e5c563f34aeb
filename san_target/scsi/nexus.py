"""An I_T nexus as a logical unit sees it: who asks, and what is still owed to it.

Invariant kept here: `may_read` and `may_write` are True only while *nothing* stands between this nexus and the medium
(no pending unit attention, reservation of another nexus, stopped unit, sanitize, write protection, fence). The hot
path asks only these two flags; `LogicalUnit.refresh(nexus)` recomputes them at every change of such a state.
"""

from collections import deque


class Nexus:
    """An initiator port (name and ISID) with a target port (target name and portal group tag); RFC 7143 4.4.1 and 10.1.

    initiator_name   iSCSI name, e.g. "iqn.1993-08.org.debian:01:guest"
    isid             6 bytes
    initiator_port   "<name>,i,0x<isid hex>" (the SCSI port name, RFC 7143 4.4.1)
    attentions       pending unit attentions as (ASC, ASCQ), oldest first (SAM-5 5.14)
    user             the CHAP user the initiator proved to be, "" without authentication; set at login
    fenced           True once the session ended: nothing of this nexus may be executed any more (promise 4)
    """

    __slots__ = (
        "attentions",
        "d_sense",
        "fenced",
        "initiator_name",
        "initiator_port",
        "isid",
        "may_read",
        "may_write",
        "target_port",
        "user",
    )

    def __init__(self, initiator_name: str, isid: bytes, target_name: str, portal_group_tag: int) -> None:
        self.initiator_name = initiator_name
        self.isid = isid
        self.initiator_port = f"{initiator_name},i,0x{isid.hex()}"
        self.target_port = f"{target_name},t,0x{portal_group_tag:04x}"
        self.attentions: deque[tuple[int, int]] = deque()
        self.d_sense = False
        self.may_read = False
        self.may_write = False
        self.fenced = False
        self.user = ""
