"""What a member tells the others of its load, once a second. Pure values; they travel in `messages.LoadReport`.

Rates are per second, and shares 0 to 1; both are means over the last few seconds, in which recent ones weigh more.
"""

import msgspec


class SessionLoad(msgspec.Struct, frozen=True):
    """One session, at the member that it is logged in to.

    id: as in `session list`; initiator: its name; isid: 12 hex digits; age_s: since its login
    depth: commands at a time; sequential_share: of its commands those that begin where the one before ended
    owners: share of its commands by the member that owns what they touch, sum 1 (empty: it touched nothing lately)
    held: why it must not be moved elsewhere, or ""
    """

    id: str
    volume_id: str
    volume: str
    initiator: str
    isid: str
    age_s: float
    iops: float = 0.0
    bytes_per_second: float = 0.0
    depth: float = 0.0
    read_share: float = 0.0
    sequential_share: float = 0.0
    owners: dict[str, float] = {}
    held: str = ""


class RangeLoad(msgspec.Struct, frozen=True):
    """What comes through this member to a range of a volume, whoever owns it. end_lba is exclusive."""

    volume_id: str
    start_lba: int
    end_lba: int
    iops: float = 0.0
    bytes_per_second: float = 0.0


class MemberLoad(msgspec.Struct, frozen=True):
    """One member.

    number: counts the reports of this incarnation
    sessions: logged in here. client_*: what they ask for. depth: of all of them, together
    owned_*: I/O on blocks that this member owns, for its own sessions and for other members
    served_*: of that, for other members. forwarded_*: what its sessions ask for and others own
    storage_latency_s: how long I/O waits that the cache cannot serve; storage_waits: such I/O per second
    cpu_share: of one CPU; cpu_limit: what it may use of one (a member that uses all of it does all it can)
    loop_delay_s: how late it comes to what is to be done
    network_bytes_per_second: to and from initiators and members
    details, ranges: the busiest, with those that cannot be told left out
    """

    member: str
    incarnation: int
    number: int
    sessions: int = 0
    client_iops: float = 0.0
    client_bytes_per_second: float = 0.0
    depth: float = 0.0
    read_share: float = 0.0
    sequential_share: float = 0.0
    owned_iops: float = 0.0
    owned_bytes_per_second: float = 0.0
    served_iops: float = 0.0
    served_bytes_per_second: float = 0.0
    forwarded_iops: float = 0.0
    forwarded_bytes_per_second: float = 0.0
    storage_latency_s: float = 0.0
    storage_waits: float = 0.0
    cpu_share: float = 0.0
    loop_delay_s: float = 0.0
    network_bytes_per_second: float = 0.0
    pool_capacity_bytes: int = 0
    pool_free_bytes: int = 0
    details: tuple[SessionLoad, ...] = ()
    ranges: tuple[RangeLoad, ...] = ()
    cpu_limit: float = 1.0
