"""Load: rates from what a member has counted, and the latest reports of all members. Pure; time is an argument.

Nothing is counted here. A shell reads the plain counters of a member about once a second (`Totals`, `SessionTotals`);
`Meter` makes rates of two readings, smoothed over SMOOTHED_S, so that a burst does not look like a change.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import exp
from typing import Final

from san_target.peer.load_report import MemberLoad, RangeLoad, SessionLoad

STALE_S: Final = 3.0
"""A report that is older does not count."""
SMOOTHED_S: Final = 4.0
DETAILS_MAX: Final = 128
RANGES_MAX: Final = 128
NEGLIGIBLE: Final = 0.05
"""Commands a second that are not worth remembering."""


@dataclass(frozen=True, slots=True)
class Totals:
    """What a member has counted since its start. client_bytes: to and from initiators; of `forwarded` and `served`,
    bytes are of data. waits, waited_s: jobs for the disk. late_s: how late the event loop is, now; cpu_limit: of one
    CPU, what the member may use, now."""

    cpu_s: float = 0.0
    forwarded: int = 0
    forwarded_bytes: int = 0
    served: int = 0
    served_bytes: int = 0
    waits: int = 0
    waited_s: float = 0.0
    late_s: float = 0.0
    cpu_limit: float = 1.0


@dataclass(frozen=True, slots=True)
class SessionTotals:
    """A session, with what it has counted since its login, and what was seen of it since the last reading.

    depth: commands at a time. seen, sequential: commands that samples stand for; regions: by (start, end) in LBA
    owner_of: the member that owns a block
    """

    key: object
    id: str
    volume_id: str
    volume: str
    initiator: str
    isid: str
    age_s: float
    commands: int
    reads: int
    writes: int
    bytes: int
    depth: float
    seen: int
    sequential: int
    regions: Mapping[tuple[int, int], int]
    owner_of: Callable[[int], str]
    held: str = ""


@dataclass(slots=True)
class _Session:
    """Rates of one session, smoothed."""

    commands: int = 0
    reads: int = 0
    writes: int = 0
    bytes: int = 0
    iops: float = 0.0
    read_iops: float = 0.0
    write_iops: float = 0.0
    byte_rate: float = 0.0
    depth: float = 0.0
    seen: float = 0.0
    sequential: float = 0.0
    owners: dict[str, float] = field(default_factory=dict)
    ranges: dict[tuple[int, int], float] = field(default_factory=dict)


class Meter:
    """`measure` at each reading; the first one has rates of 0. A session that is new has counted from 0 since then."""

    def __init__(self) -> None:
        self._at_s: float | None = None
        self._totals = Totals()
        self._rates: dict[str, float] = {}
        self._sessions: dict[object, _Session] = {}
        self.number = 0

    def measure(
        self,
        member: str,
        incarnation: int,
        now_s: float,
        totals: Totals,
        sessions: Iterable[SessionTotals],
        pool: tuple[int, int] = (0, 0),
    ) -> MemberLoad:
        """pool: (capacity, free) bytes."""
        interval_s = 0.0 if self._at_s is None else now_s - self._at_s
        weight = 1.0 - exp(-interval_s / SMOOTHED_S) if interval_s > 0 else 0.0
        if self.number == 1 and interval_s > 0:
            weight = 1.0  # nothing came before
        kept: dict[object, _Session] = {}
        rows: list[SessionLoad] = []
        ranges: dict[tuple[str, int, int], tuple[float, float]] = {}
        for one in sessions:
            rate = kept[one.key] = self._sessions.get(one.key) or _Session()
            if interval_s > 0:
                _advance(rate, one, interval_s, weight)
            else:
                rate.commands, rate.reads, rate.writes, rate.bytes = one.commands, one.reads, one.writes, one.bytes
            rows.append(_row(one, rate))
            _add_ranges(ranges, one.volume_id, rate)
        self._sessions = kept
        self._advance(totals, interval_s, weight)
        self._at_s, self._totals = now_s, totals
        self.number += 1
        return self._report(member, incarnation, rows, ranges, pool)

    def _advance(self, totals: Totals, interval_s: float, weight: float) -> None:
        if interval_s <= 0:
            return
        before, rates = self._totals, self._rates
        waits = totals.waits - before.waits
        now = {
            "cpu": (totals.cpu_s - before.cpu_s) / interval_s,
            "forwarded": (totals.forwarded - before.forwarded) / interval_s,
            "forwarded_bytes": (totals.forwarded_bytes - before.forwarded_bytes) / interval_s,
            "served": (totals.served - before.served) / interval_s,
            "served_bytes": (totals.served_bytes - before.served_bytes) / interval_s,
            "waits": waits / interval_s,
            "late": totals.late_s,
        }
        for name, value in now.items():
            rates[name] = _mixed(rates.get(name, 0.0), value, weight)
        if waits:
            latency_s = (totals.waited_s - before.waited_s) / waits
            rates["latency"] = _mixed(rates.get("latency", latency_s), latency_s, weight)

    def _report(
        self,
        member: str,
        incarnation: int,
        rows: list[SessionLoad],
        ranges: Mapping[tuple[str, int, int], tuple[float, float]],
        pool: tuple[int, int],
    ) -> MemberLoad:
        rate = self._rates.get
        iops = sum(row.iops for row in rows)
        byte_rate = sum(row.bytes_per_second for row in rows)
        forwarded, forwarded_bytes = rate("forwarded", 0.0), rate("forwarded_bytes", 0.0)
        served, served_bytes = rate("served", 0.0), rate("served_bytes", 0.0)
        # A session that sleeps tells nothing; the others come busiest first.
        busiest = sorted(rows, key=lambda row: (-row.iops, row.id))[:DETAILS_MAX]
        hottest = sorted(ranges.items(), key=lambda item: (-item[1][0], item[0]))[:RANGES_MAX]
        return MemberLoad(
            member,
            incarnation,
            self.number,
            sessions=len(rows),
            client_iops=iops,
            client_bytes_per_second=byte_rate,
            depth=sum(row.depth for row in rows if row.iops > NEGLIGIBLE),
            read_share=_mean(rows, lambda row: row.read_share),
            sequential_share=_mean(rows, lambda row: row.sequential_share),
            owned_iops=max(0.0, iops - forwarded) + served,
            owned_bytes_per_second=max(0.0, byte_rate - forwarded_bytes) + served_bytes,
            served_iops=served,
            served_bytes_per_second=served_bytes,
            forwarded_iops=forwarded,
            forwarded_bytes_per_second=forwarded_bytes,
            storage_latency_s=rate("latency", 0.0),
            storage_waits=rate("waits", 0.0),
            cpu_share=rate("cpu", 0.0),
            cpu_limit=self._totals.cpu_limit,
            loop_delay_s=rate("late", 0.0),
            network_bytes_per_second=byte_rate + forwarded_bytes + served_bytes,
            pool_capacity_bytes=pool[0],
            pool_free_bytes=pool[1],
            details=tuple(busiest),
            ranges=tuple(RangeLoad(*key, *rates) for key, rates in hottest),
        )


def _mixed(before: float, now: float, weight: float) -> float:
    return before + (now - before) * weight


def _mean(rows: Iterable[SessionLoad], value: Callable[[SessionLoad], float]) -> float:
    """Over commands, not over sessions."""
    total = weighted = 0.0
    for row in rows:
        total += row.iops
        weighted += row.iops * value(row)
    return weighted / total if total else 0.0


def _advance(rate: _Session, now: SessionTotals, interval_s: float, weight: float) -> None:
    """A session's rates, from the reading before to this one."""
    rate.iops = _mixed(rate.iops, (now.commands - rate.commands) / interval_s, weight)
    rate.read_iops = _mixed(rate.read_iops, (now.reads - rate.reads) / interval_s, weight)
    rate.write_iops = _mixed(rate.write_iops, (now.writes - rate.writes) / interval_s, weight)
    rate.byte_rate = _mixed(rate.byte_rate, (now.bytes - rate.bytes) / interval_s, weight)
    rate.commands, rate.reads, rate.writes, rate.bytes = now.commands, now.reads, now.writes, now.bytes
    if now.seen:
        rate.depth = _mixed(rate.depth, now.depth, weight)
    rate.seen = _mixed(rate.seen, now.seen / interval_s, weight)
    rate.sequential = _mixed(rate.sequential, now.sequential / interval_s, weight)
    for old in list(rate.ranges):
        rate.ranges[old] *= 1 - weight
    for place, commands in now.regions.items():
        rate.ranges[place] = rate.ranges.get(place, 0.0) + weight * commands / interval_s
    for old in [place for place, iops in rate.ranges.items() if iops < NEGLIGIBLE]:
        del rate.ranges[old]
    # By the map of now: what moved since it was touched is where it moved to.
    rate.owners = {}
    for (start_lba, _end_lba), iops in rate.ranges.items():
        owner = now.owner_of(start_lba)
        rate.owners[owner] = rate.owners.get(owner, 0.0) + iops


def _row(one: SessionTotals, rate: _Session) -> SessionLoad:
    touched = sum(rate.owners.values())
    moved = rate.read_iops + rate.write_iops
    return SessionLoad(
        one.id,
        one.volume_id,
        one.volume,
        one.initiator,
        one.isid,
        one.age_s,
        rate.iops,
        rate.byte_rate,
        rate.depth,
        rate.read_iops / moved if moved else 0.0,
        rate.sequential / rate.seen if rate.seen else 0.0,
        {owner: iops / touched for owner, iops in sorted(rate.owners.items())},
        one.held,
    )


def _add_ranges(ranges: dict[tuple[str, int, int], tuple[float, float]], volume_id: str, rate: _Session) -> None:
    bytes_each = rate.byte_rate / rate.iops if rate.iops else 0.0
    for (start_lba, end_lba), iops in rate.ranges.items():
        key = volume_id, start_lba, end_lba
        before = ranges.get(key, (0.0, 0.0))
        ranges[key] = before[0] + iops, before[1] + iops * bytes_each


@dataclass(frozen=True, slots=True)
class Known:
    """A report, and when it came."""

    load: MemberLoad
    at_s: float


class Reports:
    """The latest report of each member."""

    def __init__(self) -> None:
        self._known: dict[str, Known] = {}

    def note(self, load: MemberLoad, now_s: float) -> bool:
        """False: it is older than what is known, and is left aside."""
        known = self._known.get(load.member)
        if known is not None and (load.incarnation, load.number) <= (known.load.incarnation, known.load.number):
            return False
        self._known[load.member] = Known(load, now_s)
        return True

    def keep(self, members: Iterable[str]) -> None:
        """Forget all members but these."""
        kept = set(members)
        self._known = {name: known for name, known in self._known.items() if name in kept}

    def fresh(self, now_s: float) -> dict[str, MemberLoad]:
        """Those that count, by member."""
        return {name: known.load for name, known in sorted(self._known.items()) if now_s - known.at_s <= STALE_S}

    def all(self) -> dict[str, Known]:
        """Old ones, too."""
        return dict(sorted(self._known.items()))
