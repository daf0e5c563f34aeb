"""How real initiators behave, as tables: what they offer, their limits, their timers, what they do when told to move.

open-iscsi 2.1 and libiscsi 1.19 were watched; ESXi and Windows follow their makers' documentation of defaults, and
where that is silent RFC 7143. docs/initiator-sim.md says which is which.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from initiator_sim.parameters import Pair
from san_target.wire.opcodes import (
    ASYNC_CONNECTION_DROP,
    ASYNC_LOGOUT_REQUEST,
    ASYNC_NEGOTIATION_REQUEST,
    ASYNC_SCSI,
    ASYNC_SESSION_DROP,
)


class Reaction(Enum):
    """What an initiator does about an asynchronous message (RFC 7143 11.9.1)."""

    IGNORE = "nothing"
    RESCAN = "looks at the logical units again when the sense data says that there are others (3Fh/0Eh)"
    LOGOUT = "logs out at once, commands in flight or not, then logs in again"
    AWAIT_CLOSE = "remembers Time2Wait (Parameter2) and waits for the target to close"
    RENEGOTIATE = "sends a Text Request with its MaxRecvDataSegmentLength"


@dataclass(frozen=True, slots=True)
class Personality:
    """One kind of initiator. Times are seconds; lengths in `keys` are bytes.

    keys                  the operational offers at login, in order
    discovery_keys        those of a discovery session, where they are not just some of `keys`
    security_first        begins in the security stage even without CHAP
    sends_alias           says an InitiatorAlias
    isid_prefix           how its ISIDs begin (RFC 7143 11.12.5): the format, and whose they are; the rest is random
    follows_permanent     obeys status 0x0102 like 0x0101; else that is an error
    redirects_max         redirections in one login before it gives up (the simulator's guard: open-iscsi has none)
    returns_to_configured after a loss goes to the configured portal, not to where it was redirected
    new_isid_each_login   every login takes a new random ISID
    obeys_time2wait       waits DefaultTime2Wait before it logs in again
    login_retry_s         wait after a login that failed; each further one waits login_retry_more_s longer, up to
                          login_retry_max_s
    reconnect_gap_s       least time between two logins of a session, unless the target announced a Time2Wait
    close_wait_s          after a Logout Response, how long the target is given to close the connection
    busy_retry_s          waits before a command that ended with BUSY is sent again, one after the other; then it fails
                          (empty = 0.1 s each time, for ever)
    command_timeout_s     then ABORT TASK, after abort_timeout_s LOGICAL UNIT RESET, after reset_timeout_s a new login
    replacement_timeout_s how long commands wait for a lost session before they fail
    queue_depth           commands in flight per session
    """

    name: str
    initiator_name: str
    keys: tuple[Pair, ...]
    reactions: Mapping[int, Reaction]
    discovery_keys: tuple[Pair, ...] | None = None
    security_first: bool = True
    sends_alias: bool = False
    isid_prefix: bytes = b"\x80"  # random, in no registry
    follows_permanent: bool = True
    redirects_max: int = 16
    returns_to_configured: bool = True
    new_isid_each_login: bool = False
    obeys_time2wait: bool = True
    chap_algorithms: tuple[int, ...] = (5,)
    login_timeout_s: float = 15.0
    login_retries: int = 8
    login_retry_s: float = 3.0
    login_retry_more_s: float = 0.0
    login_retry_max_s: float = 30.0
    logout_timeout_s: float = 15.0
    reconnect_gap_s: float = 0.0
    close_wait_s: float = 0.0
    busy_retry_s: tuple[float, ...] = ()
    nop_interval_s: float = 5.0
    nop_timeout_s: float = 5.0
    command_timeout_s: float = 30.0
    abort_timeout_s: float = 15.0
    reset_timeout_s: float = 30.0
    replacement_timeout_s: float = 120.0
    queue_depth: int = 32

    def isid(self, random_bytes: Callable[[int], bytes]) -> bytes:
        """A new ISID."""
        return self.isid_prefix + random_bytes(6 - len(self.isid_prefix))

    def wait_after_failure_s(self, failures: int) -> float:
        """How long to wait after so many logins that failed, one after the other."""
        return min(self.login_retry_s + (failures - 1) * self.login_retry_more_s, self.login_retry_max_s)

    def wait_after_busy_s(self, refusals: int) -> float | None:
        """How long to wait after a command was refused so many times; None: no more, it fails."""
        if not self.busy_retry_s:
            return 0.1
        return self.busy_retry_s[refusals - 1] if refusals <= len(self.busy_retry_s) else None


OPEN_ISCSI: Final = Personality(
    name="open-iscsi",
    initiator_name="iqn.1993-08.org.debian:01:simulated",
    keys=(
        ("HeaderDigest", "None"),
        ("DataDigest", "None"),
        ("DefaultTime2Wait", "2"),
        ("DefaultTime2Retain", "0"),
        ("IFMarker", "No"),
        ("OFMarker", "No"),
        ("ErrorRecoveryLevel", "0"),
        ("InitialR2T", "No"),
        ("ImmediateData", "Yes"),
        ("MaxBurstLength", "16776192"),
        ("FirstBurstLength", "262144"),
        ("MaxOutstandingR2T", "1"),
        ("MaxConnections", "1"),
        ("DataPDUInOrder", "Yes"),
        ("DataSequenceInOrder", "Yes"),
        ("MaxRecvDataSegmentLength", "262144"),
    ),
    reactions={
        ASYNC_SCSI: Reaction.RESCAN,
        ASYNC_LOGOUT_REQUEST: Reaction.LOGOUT,
        ASYNC_CONNECTION_DROP: Reaction.AWAIT_CLOSE,
        ASYNC_SESSION_DROP: Reaction.AWAIT_CLOSE,
        ASYNC_NEGOTIATION_REQUEST: Reaction.LOGOUT,
    },
    discovery_keys=(
        ("HeaderDigest", "None"),
        ("DataDigest", "None"),
        ("DefaultTime2Wait", "2"),
        ("DefaultTime2Retain", "0"),
        ("IFMarker", "No"),
        ("OFMarker", "No"),
        ("ErrorRecoveryLevel", "0"),
        ("MaxRecvDataSegmentLength", "32768"),
    ),
    security_first=False,
    sends_alias=True,
    isid_prefix=bytes.fromhex("00023d"),  # Cisco's OUI, as ever since linux-iscsi
    chap_algorithms=(5, 6, 7, 8),
)

LIBISCSI: Final = Personality(
    name="libiscsi",
    initiator_name="iqn.2008-11.org.linux-kvm:simulated",
    keys=(
        ("HeaderDigest", "None,CRC32C"),
        ("DataDigest", "None"),
        ("InitialR2T", "No"),
        ("ImmediateData", "Yes"),
        ("MaxBurstLength", "262144"),
        ("FirstBurstLength", "262144"),
        ("DefaultTime2Wait", "2"),
        ("DefaultTime2Retain", "0"),
        ("MaxOutstandingR2T", "1"),
        ("ErrorRecoveryLevel", "0"),
        ("IFMarker", "No"),
        ("OFMarker", "No"),
        ("MaxConnections", "1"),
        ("MaxRecvDataSegmentLength", "262144"),
        ("DataPDUInOrder", "Yes"),
        ("DataSequenceInOrder", "Yes"),
    ),
    reactions={
        ASYNC_SCSI: Reaction.IGNORE,
        ASYNC_LOGOUT_REQUEST: Reaction.LOGOUT,
        ASYNC_CONNECTION_DROP: Reaction.AWAIT_CLOSE,
        ASYNC_SESSION_DROP: Reaction.AWAIT_CLOSE,
        ASYNC_NEGOTIATION_REQUEST: Reaction.LOGOUT,
    },
    discovery_keys=(
        ("HeaderDigest", "None"),
        ("DataDigest", "None"),
        ("InitialR2T", "No"),
        ("ImmediateData", "Yes"),
        ("MaxBurstLength", "262144"),
        ("FirstBurstLength", "262144"),
        ("DefaultTime2Wait", "2"),
        ("DefaultTime2Retain", "0"),
        ("MaxOutstandingR2T", "1"),
        ("ErrorRecoveryLevel", "0"),
        ("IFMarker", "No"),
        ("OFMarker", "No"),
        ("MaxConnections", "1"),
        ("MaxRecvDataSegmentLength", "262144"),
        ("DataPDUInOrder", "Yes"),
        ("DataSequenceInOrder", "Yes"),
    ),
    security_first=False,
    follows_permanent=False,
    new_isid_each_login=True,
    obeys_time2wait=False,
    login_retry_s=1.0,
    login_retry_more_s=1.0,
    reconnect_gap_s=3.0,
    close_wait_s=0.5,
    busy_retry_s=(0.008, 0.032, 0.128, 0.512, 2.048, 8.192, 32.768),  # QEMU
    nop_timeout_s=15.0,  # QEMU: three unanswered NOPs, one every 5 s
    queue_depth=128,
)

ESXI: Final = Personality(
    name="esxi",
    initiator_name="iqn.1998-01.com.vmware:simulated",
    keys=(
        ("HeaderDigest", "None"),
        ("DataDigest", "None"),
        ("DefaultTime2Wait", "0"),
        ("DefaultTime2Retain", "0"),
        ("ErrorRecoveryLevel", "0"),
        ("InitialR2T", "No"),
        ("ImmediateData", "Yes"),
        ("MaxBurstLength", "262144"),
        ("FirstBurstLength", "262144"),
        ("MaxOutstandingR2T", "1"),
        ("MaxConnections", "1"),
        ("DataPDUInOrder", "Yes"),
        ("DataSequenceInOrder", "Yes"),
        ("MaxRecvDataSegmentLength", "131072"),
    ),
    reactions={
        ASYNC_SCSI: Reaction.RESCAN,
        ASYNC_LOGOUT_REQUEST: Reaction.LOGOUT,
        ASYNC_CONNECTION_DROP: Reaction.AWAIT_CLOSE,
        ASYNC_SESSION_DROP: Reaction.AWAIT_CLOSE,
        ASYNC_NEGOTIATION_REQUEST: Reaction.LOGOUT,
    },
    isid_prefix=bytes.fromhex("00023d"),
    login_timeout_s=5.0,
    login_retries=4,
    nop_interval_s=15.0,
    nop_timeout_s=10.0,
    replacement_timeout_s=140.0,  # all paths down
    queue_depth=128,
)

WINDOWS: Final = Personality(
    name="windows",
    initiator_name="iqn.1991-05.com.microsoft:simulated",
    keys=(
        ("HeaderDigest", "None,CRC32C"),
        ("DataDigest", "None,CRC32C"),
        ("MaxRecvDataSegmentLength", "65536"),
        ("MaxConnections", "1"),
        ("InitialR2T", "No"),
        ("ImmediateData", "Yes"),
        ("MaxBurstLength", "262144"),
        ("FirstBurstLength", "65536"),
        ("MaxOutstandingR2T", "16"),
        ("DefaultTime2Wait", "0"),
        ("DefaultTime2Retain", "60"),
        ("ErrorRecoveryLevel", "0"),
        ("DataPDUInOrder", "Yes"),
        ("DataSequenceInOrder", "Yes"),
    ),
    reactions={
        ASYNC_SCSI: Reaction.RESCAN,
        ASYNC_LOGOUT_REQUEST: Reaction.LOGOUT,
        ASYNC_CONNECTION_DROP: Reaction.AWAIT_CLOSE,
        ASYNC_SESSION_DROP: Reaction.AWAIT_CLOSE,
        ASYNC_NEGOTIATION_REQUEST: Reaction.RENEGOTIATE,
    },
    isid_prefix=bytes.fromhex("40000137"),  # enterprise number 311
    login_retries=5,
    login_retry_s=1.0,
    nop_interval_s=60.0,
    nop_timeout_s=15.0,
    command_timeout_s=60.0,
    replacement_timeout_s=60.0,
    queue_depth=255,
)

PERSONALITIES: Final[Mapping[str, Personality]] = {one.name: one for one in (OPEN_ISCSI, LIBISCSI, ESXI, WINDOWS)}


def with_digests(personality: Personality, digest: str) -> tuple[Pair, ...]:
    """The keys of a personality that insists on digests: "none", "header", "data" or "both"."""
    wanted = {
        "HeaderDigest": "CRC32C" if digest in ("header", "both") else "None",
        "DataDigest": "CRC32C" if digest in ("data", "both") else "None",
    }
    return tuple((key, wanted.get(key, value)) for key, value in personality.keys)
