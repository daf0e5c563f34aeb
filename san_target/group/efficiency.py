"""How well the group works: a model that predicts the mean response time of all its I/O. Pure.

What one I/O takes of a member: some CPU time at the member that its session is at; more of it there, and some at the
owner, where the blocks are elsewhere, and the time on the network between the two. CPU time waits in a queue: at a
member that is busy for a share r of the time everything takes 1/(1 - r) times as long. What the cache cannot serve
waits for the owner's disk, which has such a queue of its own.

The sum of all response times, per second, is (by Little's law) how many I/Os are under way in the whole group:
`total_s`. It is a sum over members, so that a session or a range that goes from one to another changes two terms of
it, and judging a change costs the same in a group of three and of five thousand.

*Overall system efficiency* is the same sum, as it would be if every I/O were done where its blocks are and nothing ever
waited, divided by it: 1 is as good as it gets, 0.5 is twice the response time.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from san_target.peer.load_report import MemberLoad, SessionLoad

QUEUE_KNEE: Final = 0.9
"""Beyond it the queue grows in a straight line: a closed loop of initiators cannot make it endless, and the model must
still tell a bad member from a worse one."""
DISK_PARALLEL: Final = 8.0
DISK_TRUST: Final = 200.0
"""With so many I/Os per second, half of what is seen of a disk is taken to be its nature."""
SCALE_MIN, SCALE_MAX = 0.5, 4.0
SCALE_WORK: Final = 0.05
"""So busy by the model must a member be before its CPU time says anything about its speed."""


@dataclass(frozen=True, slots=True)
class Costs:
    """CPU seconds of one I/O, and of each byte of it, on an ordinary machine (docs/benchmarks.md); the time of a hop.

    ingress_s: at the member of the session; forward_s: there too, if the blocks are elsewhere; serve_s: at their owner.
    hop_s: on the network and asleep, to the owner and back.
    """

    ingress_s: float = 6e-6
    ingress_byte_s: float = 0.15e-9
    forward_s: float = 12e-6
    forward_byte_s: float = 0.5e-9
    serve_s: float = 7e-6
    serve_byte_s: float = 0.4e-9
    hop_s: float = 100e-6


COSTS: Final = Costs()


@dataclass(frozen=True, slots=True)
class Flow:
    """What one session asks for. owners: share by the member that owns it; what is not told of counts as local."""

    member: str
    iops: float
    bytes_each: float
    owners: Mapping[str, float]

    def remote_at(self, member: str) -> float:
        """Share of it that would be forwarded if the session were at that member."""
        return max(0.0, sum(self.owners.values()) - self.owners.get(member, 0.0))


@dataclass(frozen=True, slots=True)
class RangeFlow:
    """What all members ask of a range of a volume. by_ingress: I/Os per second by the member they come through."""

    volume_id: str
    start_lba: int
    end_lba: int
    owner: str
    size_bytes: int
    by_ingress: Mapping[str, float]
    bytes_each: float

    @property
    def iops(self) -> float:
        return sum(self.by_ingress.values())


def flow_of(session: SessionLoad, member: str) -> Flow:
    bytes_each = session.bytes_per_second / session.iops if session.iops else 0.0
    return Flow(member, session.iops, bytes_each, session.owners)


def queue(busy: float) -> float:
    """How many times longer it takes with this share of the time in use."""
    if busy <= QUEUE_KNEE:
        return 1.0 / (1.0 - busy)
    at_knee = 1.0 / (1.0 - QUEUE_KNEE)
    return at_knee + (busy - QUEUE_KNEE) * at_knee * at_knee


@dataclass(slots=True)
class Station:
    """One member in the model.

    work: CPU seconds per second, by the model, of an ordinary machine. scale: how much slower this one is.
    local: what of the work its sessions would take if all was local
    background: share of the CPU that something else takes
    disk_waits: I/Os per second that wait for the disk; disk_s: how long one takes alone; miss: share of owned I/O
    """

    work: float = 0.0
    local: float = 0.0
    scale: float = 1.0
    background: float = 0.0
    disk_waits: float = 0.0
    disk_s: float = 0.0
    miss: float = 0.0

    def response_s(self, extra_work: float = 0.0) -> float:
        """Response time that its CPU adds to all I/O, per second, with so much more work."""
        work = max(0.0, self.work + extra_work) * self.scale
        return work * queue(self.background + work)

    def disk_response_s(self, extra_waits: float = 0.0) -> float:
        waits = max(0.0, self.disk_waits + extra_waits)
        return waits * self.disk_s * queue(waits * self.disk_s / DISK_PARALLEL)

    @property
    def busy(self) -> float:
        return self.background + self.work * self.scale


@dataclass(frozen=True, slots=True)
class Effect:
    """What a change would do. gain_s: less response time per second; concerned_s: of all I/O that it concerns."""

    gain_s: float
    concerned_s: float


@dataclass(slots=True)
class Model:
    """The group as its reports describe it; `move` and `migrate` change it as decisions would."""

    costs: Costs = COSTS
    stations: dict[str, Station] = field(default_factory=dict)
    ideal_s: float = 0.0
    hops_s: float = 0.0

    # Its parts --------------------------------------------------------------------------------------------------------

    def ingress_work(self, flow: Flow) -> float:
        return flow.iops * (self.costs.ingress_s + flow.bytes_each * self.costs.ingress_byte_s)

    def forward_work(self, iops: float, bytes_each: float) -> float:
        return iops * (self.costs.forward_s + bytes_each * self.costs.forward_byte_s)

    def serve_work(self, iops: float, bytes_each: float) -> float:
        return iops * (self.costs.serve_s + bytes_each * self.costs.serve_byte_s)

    def add(self, flow: Flow) -> None:
        """A session, with the part of its load that other members have."""
        ingress = self.ingress_work(flow)
        remote = flow.iops * flow.remote_at(flow.member)
        self.stations[flow.member].work += ingress + self.forward_work(remote, flow.bytes_each)
        self.stations[flow.member].local += ingress
        for owner, share in flow.owners.items():
            if owner != flow.member and owner in self.stations:
                self.stations[owner].work += self.serve_work(flow.iops * share, flow.bytes_each)
        self.ideal_s += ingress
        self.hops_s += remote * self.costs.hop_s

    # The whole --------------------------------------------------------------------------------------------------------

    def total_s(self) -> float:
        return self.hops_s + sum(one.response_s() + one.disk_response_s() for one in self.stations.values())

    def efficiency(self) -> float:
        return self.efficiency_of(self.total_s())

    def efficiency_of(self, total_s: float) -> float:
        """Of a total that a change would make. A group without load is as good as it gets."""
        return min(1.0, self.ideal_s / total_s) if total_s > 0 else 1.0

    # Changes ----------------------------------------------------------------------------------------------------------

    def _session_deltas(self, flow: Flow, to: str) -> tuple[float, float, float]:
        """Work that the old member gets, that the new one gets, and the time of hops."""
        ingress, here, there = self.ingress_work(flow), flow.owners.get(flow.member, 0.0), flow.owners.get(to, 0.0)
        forward, serve = self.forward_work(flow.iops, flow.bytes_each), self.serve_work(flow.iops, flow.bytes_each)
        at_old = here * serve - ingress - flow.remote_at(flow.member) * forward
        at_new = ingress + flow.remote_at(to) * forward - there * serve
        return at_old, at_new, flow.iops * (here - there) * self.costs.hop_s

    def effect_of_move(self, flow: Flow, to: str) -> Effect:
        """Of a session that goes to another member, both of which are in the model."""
        at_old, at_new, hops_s = self._session_deltas(flow, to)
        old, new = self.stations[flow.member], self.stations[to]
        before_s = old.response_s() + new.response_s()
        after_s = old.response_s(at_old) + new.response_s(at_new)
        remote_s = flow.iops * flow.remote_at(flow.member) * self.costs.hop_s
        return Effect(before_s - after_s - hops_s, before_s + remote_s)

    def effect_of_move_with(self, flow: Flow, ranges: Sequence[RangeFlow], to: str) -> Effect:
        """Of a session that goes to another member, and of ranges that its member owns and that go there after it."""
        here = {name: replace(self.stations[name]) for name in (flow.member, to)}
        part = Model(self.costs, here)
        before_s = part.total_s()
        touched = sum(one.by_ingress.get(flow.member, 0.0) for one in ranges)
        # What comes through its member to these ranges may be of other sessions too.
        share = min(1.0, flow.iops * flow.owners.get(flow.member, 0.0) / touched) if touched else 0.0
        part.move(flow, to)
        for one in ranges:
            goes = share * one.by_ingress.get(flow.member, 0.0)
            by_ingress = dict(one.by_ingress)
            by_ingress[flow.member] = by_ingress.get(flow.member, 0.0) - goes
            by_ingress[to] = by_ingress.get(to, 0.0) + goes
            part.migrate(replace(one, by_ingress=by_ingress), to)
        remote_s = flow.iops * flow.remote_at(flow.member) * self.costs.hop_s
        return Effect(before_s - part.total_s(), before_s + remote_s)

    def leave_gain_s(self, flow: Flow, with_data: bool = False) -> float:
        """About the most that moving a session anywhere could gain: to choose those that are worth a closer look.

        with_data: what it touches at its member may go with it.
        """
        old = self.stations[flow.member]
        at_old = self._session_deltas(flow, flow.member)[0]
        if with_data:
            at_old -= flow.owners.get(flow.member, 0.0) * self.serve_work(flow.iops, flow.bytes_each)
        best = max(flow.owners.values(), default=0.0)
        there = flow.iops * max(0.0, best - flow.owners.get(flow.member, 0.0)) * self.costs.hop_s
        return old.response_s() - old.response_s(at_old) + there

    def move(self, flow: Flow, to: str) -> Flow:
        at_old, at_new, hops_s = self._session_deltas(flow, to)
        self.stations[flow.member].work += at_old
        self.stations[to].work += at_new
        self.hops_s += hops_s
        return Flow(to, flow.iops, flow.bytes_each, flow.owners)

    def _range_deltas(self, moved: RangeFlow, to: str) -> tuple[float, float, float, float]:
        """Work that the old owner gets, that the new one gets, the time of hops, and I/Os per second for the disk."""
        iops, here, there = moved.iops, moved.by_ingress.get(moved.owner, 0.0), moved.by_ingress.get(to, 0.0)
        size = moved.bytes_each
        at_old = self.forward_work(here, size) - self.serve_work(iops - here, size)
        at_new = self.serve_work(iops - there, size) - self.forward_work(there, size)
        return at_old, at_new, (here - there) * self.costs.hop_s, iops * self.stations[moved.owner].miss

    def give_gain_s(self, moved: RangeFlow) -> float:
        """About the most that migrating a range anywhere could gain: to choose those that are worth a closer look."""
        old = self.stations[moved.owner]
        at_old = self._range_deltas(moved, moved.owner)[0]
        best, here = max(moved.by_ingress.values(), default=0.0), moved.by_ingress.get(moved.owner, 0.0)
        waits = moved.iops * old.miss
        disk_s = old.disk_response_s() - old.disk_response_s(-waits) - waits * old.disk_s
        return old.response_s() - old.response_s(at_old) + disk_s + (best - here) * self.costs.hop_s

    def effect_of_migration(self, moved: RangeFlow, to: str) -> Effect:
        at_old, at_new, hops_s, waits = self._range_deltas(moved, to)
        old, new = self.stations[moved.owner], self.stations[to]
        before_s = old.response_s() + new.response_s() + old.disk_response_s() + new.disk_response_s()
        after_s = old.response_s(at_old) + new.response_s(at_new)
        after_s += old.disk_response_s(-waits) + new.disk_response_s(waits)
        remote_s = (moved.iops - moved.by_ingress.get(moved.owner, 0.0)) * self.costs.hop_s
        return Effect(before_s - after_s - hops_s, before_s + remote_s)

    def migrate(self, moved: RangeFlow, to: str) -> None:
        at_old, at_new, hops_s, waits = self._range_deltas(moved, to)
        old, new = self.stations[moved.owner], self.stations[to]
        old.work += at_old
        new.work += at_new
        old.disk_waits = max(0.0, old.disk_waits - waits)
        new.disk_waits += waits
        self.hops_s += hops_s


def model_of(loads: Mapping[str, MemberLoad], costs: Costs = COSTS) -> Model:
    """The model of the members that reported. Sessions that a report leaves out are its member's background load."""
    model = Model(costs, {name: _station(load) for name, load in loads.items()})
    for name, load in loads.items():
        for session in load.details:
            model.add(flow_of(session, name))
    for name, load in loads.items():
        _fit(model.stations[name], load.cpu_share, load.cpu_limit)
    _give_disks(model.stations.values())
    # On these machines and disks, as slow as they are.
    model.ideal_s = sum(one.local * one.scale + one.disk_waits * one.disk_s for one in model.stations.values())
    return model


def _station(load: MemberLoad) -> Station:
    # (What a migration reads and writes waits too, but is nobody's response time.)
    waits, latency_s = min(load.storage_waits, load.owned_iops), load.storage_latency_s
    # What was measured includes the queue; without it: s where latency = s / (1 - waits s / parallel).
    disk_s = latency_s / (1.0 + waits * latency_s / DISK_PARALLEL)
    miss = min(1.0, waits / load.owned_iops) if load.owned_iops else 0.0
    return Station(disk_waits=waits, disk_s=disk_s, miss=miss)


def _fit(station: Station, cpu_share: float, cpu_limit: float) -> None:
    """What the member was busy with, against what the model says: a slower machine, or something else runs there.

    cpu_limit: a member that may use a quarter of a CPU is a machine that is four times as slow.
    """
    station.scale = 1.0 / cpu_limit
    if cpu_share <= 0:
        return
    ratio = min(SCALE_MAX, max(SCALE_MIN, cpu_share / station.work)) if station.work > 0 else 1.0
    trust = min(1.0, station.work / SCALE_WORK / cpu_limit)
    station.scale *= 1.0 + trust * (ratio - 1.0)
    station.background = min(0.95, max(0.0, cpu_share / cpu_limit - station.work * station.scale))


def _give_disks(stations: Iterable[Station]) -> None:
    """A few I/Os say little of a disk: the fewer, the more it is taken to be one like the others'."""
    stations = list(stations)
    waits = sum(one.disk_waits for one in stations)
    usual_s = sum(one.disk_waits * one.disk_s for one in stations) / waits if waits else 0.0
    for one in stations:
        trust = one.disk_waits / (one.disk_waits + DISK_TRUST)
        one.disk_s = usual_s + trust * (one.disk_s - usual_s)
