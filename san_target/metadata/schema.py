"""The records kept in the store, and their keys. JSON by msgspec; every record carries a schema version.

A record with a newer version than ours is refused with a clear error rather than misread.
"""

from typing import TypeVar

import msgspec

from san_target.metadata.store import StoreError

SCHEMA_VERSION = 1


class Record(msgspec.Struct, kw_only=True, frozen=True):
    version: int = SCHEMA_VERSION


class RestoreRecord(msgspec.Struct, frozen=True):
    """The store was restored as `id`, from a backup of this revision of the store as it was until then."""

    id: str
    revision: int


class GroupRecord(Record, kw_only=True, frozen=True):
    """`group`: one per store. portal_policy: round-robin | least-loaded | adaptive | none.

    restores: in order; by them a pool tells whether it has seen more than the backup knew.
    """

    id: str
    name: str
    portal_group_tag: int = 1
    portal_policy: str = "none"
    restores: tuple[RestoreRecord, ...] = ()


class GroupSecretRecord(Record, kw_only=True, frozen=True):
    """`group-secret`: what members prove to each other that they belong to the group with. Whoever reads the store has
    it."""

    secret: bytes


class MemberRecord(Record, kw_only=True, frozen=True):
    """`members/<name>`: addresses as told to others, "host:port".

    state: what the operator wants of it, kept over restarts: active | draining | removing | removed. A record in the
    last state stays, so that a removed member that starts again is recognised. serving: this incarnation accepts
    logins. pool_id: of the pool of its last incarnation. capacity_bytes, free_bytes: of that pool, told now and then.
    program: its version, for people. protocol_min, protocol_max: the versions of the peer protocol that it speaks; the
    records that it writes have its schema version in `version`.
    """

    name: str
    incarnation: int
    portals: tuple[str, ...]
    admin: str
    peer: str = ""
    state: str = "active"
    serving: bool = False
    pool_id: str = ""
    capacity_bytes: int = 0
    free_bytes: int = 0
    program: str = ""
    protocol_min: int = 1
    protocol_max: int = 1


class BalancerRecord(Record, kw_only=True, frozen=True):
    """`balancer`, bound to the lease of the member that decides what is moved in the whole group."""

    member: str


class BalanceRecord(Record, kw_only=True, frozen=True):
    """`balance`: the operator's will. paused: nothing is moved by itself."""

    paused: bool = False


class LeaseRecord(Record, kw_only=True, frozen=True):
    """`leases/<name>`, bound to a store lease: this incarnation of the member is alive. pool_id: of its pool."""

    name: str
    incarnation: int
    pool_id: str


class ChapRecord(msgspec.Struct, frozen=True):
    """A CHAP user. The secret is kept in the store, which therefore is readable by its owner only."""

    user: str
    secret: str


class VolumeRecord(Record, kw_only=True, frozen=True):
    """`volumes/<id>`. id: 32 hex digits, also the source of NAA and serial number. state: creating | ready | deleting.

    "creating" says that no member has served it yet, so that missing blocks are not lost ones; "deleting" is the
    tombstone by which members drop its data.

    unconfirmed: the members that have not carried out the volume's creation, growth or shrink yet; each takes itself
    out when it has, durably. Only a member named here makes blocks: at any other, missing ones are lost.
    growing_from_bytes (0 = not growing): the blocks beyond are being made, and shown to nobody before all are there.
    shrinking: the data beyond `size_bytes` is still to be destroyed; until that is done the volume does not grow, or
    old data would come back. failure: why a member cannot carry it out, for the operator.
    members: where the operator wants it, now and when it grows (empty: anywhere); who holds what is in its map.
    """

    id: str
    name: str
    iqn: str
    size_bytes: int
    block_size: int = 512
    copies: int = 1
    members: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    chap: tuple[ChapRecord, ...] = ()
    mutual_chap: ChapRecord | None = None
    write_through: bool = False
    read_only: bool = False
    removable: bool = False
    multipath: bool = False
    region_bytes: int = 1 << 20
    epoch: int = 0
    state: str = "ready"
    shrinking: bool = False
    growing_from_bytes: int = 0
    unconfirmed: tuple[str, ...] = ()
    failure: str = ""


class PlacementRecord(Record, kw_only=True, frozen=True):
    """`maps/<volume>/<start LBA as 16 hex digits>`: who holds [start, end_lba). ARCHITECTURE section 2, "placement".

    owner "": nobody any more. The blocks are lost with a member that was given up.
    """

    end_lba: int
    owner: str
    copies: tuple[str, ...] = ()
    joining: str = ""
    generation: int


class RegistrationRecord(msgspec.Struct, frozen=True):
    """One persistent reservation registration (SPC-4 5.12): key is a 64-bit number."""

    initiator_port: str
    target_port: str
    key: int


class AttentionRecord(msgspec.Struct, frozen=True):
    """A unit attention that an I_T nexus is owed."""

    initiator_port: str
    target_port: str
    asc: int
    ascq: int


class UnitEventRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What made the present state of a unit, for the members that carry it out by their watch.

    number counts the events of the unit. attentions: owed to these nexuses; everyone: the (ASC, ASCQ) owed to all, but
    to except_port (initiator port, target port). preempted: ports whose commands have to end; abort: by being aborted.
    reset: the unit was reset; clear: all commands end; drop: all sessions end.
    """

    number: int = 0
    attentions: tuple[AttentionRecord, ...] = ()
    everyone: tuple[int, int] | None = None
    except_port: tuple[str, str] | None = None
    preempted: tuple[tuple[str, str], ...] = ()
    abort: bool = False
    reset: bool = False
    clear: bool = False
    drop: bool = False


class ReservationsRecord(Record, kw_only=True, frozen=True):
    """`reservations/<volume>`: what a unit's state is at all members, always the whole of it.

    Persistent reservations: holder indexes `registrations`; -1 = no reservation. reserved_by: the (initiator port,
    target port) that RESERVE(6) is held by, reserved_at: "member/incarnation" where its session is. mode: the mode
    parameters (WCE, D_SENSE, SWP), where a host has changed them. last: what made this state.
    """

    generation: int
    registrations: tuple[RegistrationRecord, ...] = ()
    holder: int = -1
    type: int = 0
    aptpl: bool = False
    reserved_by: tuple[str, str] | None = None
    reserved_at: str = ""
    mode: tuple[bool, bool, bool] | None = None
    last: UnitEventRecord | None = None


class MigrationRecord(Record, kw_only=True, frozen=True):
    """`migrations/<id>`: what `source` owns of the blocks [start_lba, end_lba) of a volume goes to `destination`.

    The revision that created the key is the generation of what is moved. Each attempt to commit a piece compares the
    key, and writes it: so whoever writes it makes sure that no earlier attempt comes true any more.

    wanted: the operator's will: run | pause | cancel. state: waiting | running | retrying | paused | done | cancelled,
    and why. source_incarnation: the life of the source that works on it. nonce: of the last piece committed. Pieces are
    counted in units of the piece size; bytes_copied: of those that were committed. limit_bytes_per_second: 0 = none.
    speed_bytes_per_second: of the blocks moved lately, holes too. created_s, finished_s: seconds since 1970.
    """

    id: str
    volume_id: str
    volume: str
    start_lba: int
    end_lba: int
    source: str
    destination: str
    wanted: str = "run"
    state: str = "waiting"
    reason: str = ""
    source_incarnation: int = 0
    nonce: str = ""
    limit_bytes_per_second: int = 0
    speed_bytes_per_second: float = 0.0
    pieces_done: int = 0
    pieces_total: int = 0
    restarts: int = 0
    mirrored_writes: int = 0
    bytes_copied: int = 0
    created_s: float = 0.0
    finished_s: float = 0.0


R = TypeVar("R", bound=Record)


def encode(record: Record) -> bytes:
    return msgspec.json.encode(record)


def decode(kind: type[R], value: bytes, key: str) -> R:
    """Raises StoreError for a record that is damaged or written by a newer version."""
    try:
        record = msgspec.json.decode(value, type=kind)
    except msgspec.DecodeError as error:
        raise StoreError(
            f"the store's record {key!r} cannot be read ({error}); restore the store from a backup"
        ) from None
    if record.version > SCHEMA_VERSION:
        raise StoreError(
            f"the store's record {key!r} has schema version {record.version}, this program knows up to "
            f"{SCHEMA_VERSION}; upgrade this member"
        )
    return record


GROUP_KEY = "group"
GROUP_SECRET_KEY = "group-secret"
BALANCER_KEY = "balancer"
BALANCE_KEY = "balance"


def lease_key(name: str) -> str:
    return f"leases/{name}"


def target_name_key(iqn: str) -> str:
    """`target-names/<iqn>` holds the volume's id: what makes a target name unique in the group."""
    return f"target-names/{iqn}"


def volume_key(volume_id: str) -> str:
    return f"volumes/{volume_id}"


def member_key(name: str) -> str:
    return f"members/{name}"


def map_prefix(volume_id: str) -> str:
    return f"maps/{volume_id}/"


def map_key(volume_id: str, start_lba: int) -> str:
    return f"maps/{volume_id}/{start_lba:016x}"


def reservations_key(volume_id: str) -> str:
    return f"reservations/{volume_id}"


def migration_key(migration_id: str) -> str:
    return f"migrations/{migration_id}"
