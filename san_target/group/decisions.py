"""What balancers are told, what they decide, and the rules that keep a group from being moved about. Pure.

A decision is taken when it makes the whole group better by more than it costs - or when the operator's will (a drain),
a full pool, or two paths of one initiator at one member ask for it. Each has its reason, taken or not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from san_target.group.efficiency import Effect, Model, RangeFlow
from san_target.peer.load_report import MemberLoad


class Kind(StrEnum):
    """MOVE: of a session. MIGRATE: of a range of a volume."""

    MOVE = "move"
    MIGRATE = "migrate"


@dataclass(frozen=True, slots=True)
class Rules:
    """Times in seconds, shares 0 to 1.

    horizon_s, data_horizon_s: a gain per second counts for so long against what a move or migration costs
    gain_min: of the response time of all that it concerns, so much must be gained at least
    gain_with_data_min: the same, for a session that is to take along what it touches
    stay_s, data_stay_s: how long a session, or a range, stays at a member at least
    rest_s: after a volume's session was moved, how long its data is not, and the other way round
    sulk_s: how long an initiator that did not obey is left alone
    follow_s: how long after a move the data that the session touches may follow it, without a rest between the two
    pause_s: what a move holds up a session, at most; move_s: response time that any move costs
    copy_byte_s: response time that copying a byte costs; pool_high, pool_low: use of a pool above which ranges leave
        it, and that of the one they go to
    fresh_reports: of each member, after an action, before the next
    """

    horizon_s: float = 60.0
    data_horizon_s: float = 600.0
    gain_min: float = 0.05
    gain_with_data_min: float = 0.15
    stay_s: float = 20.0
    data_stay_s: float = 300.0
    rest_s: float = 30.0
    sulk_s: float = 600.0
    follow_s: float = 120.0
    pause_s: float = 0.05
    move_s: float = 0.02
    copy_byte_s: float = 2e-9
    pool_high: float = 0.85
    pool_low: float = 0.7
    fresh_reports: int = 3


RULES = Rules()


@dataclass(frozen=True, slots=True)
class Holding:
    """A range of a volume that a member owns, as the map says."""

    volume_id: str
    start_lba: int
    end_lba: int
    owner: str
    size_bytes: int


@dataclass(slots=True)
class View:
    """What a balancer decides by.

    loads: fresh reports. serving: members that may be given something; leaving: those that are to be left (drained).
    moved, migrated: when a session or data of a volume was moved last; stays: ranges (volume id, start, end) that were
    migrated, and when; sulking: until when an initiator (volume id,
    name) is left alone. busy: volumes that are moved just now. ranges: what is touched; holdings: what lies where.
    following: volumes of which a session was moved so that what it touches goes to the same member, and that member.
    """

    now_s: float
    loads: Mapping[str, MemberLoad]
    model: Model
    serving: frozenset[str]
    leaving: frozenset[str] = frozenset()
    moved: Mapping[str, float] = field(default_factory=dict)
    migrated: Mapping[str, float] = field(default_factory=dict)
    stays: Mapping[tuple[str, int, int], float] = field(default_factory=dict)
    sulking: Mapping[tuple[str, str], float] = field(default_factory=dict)
    busy: frozenset[str] = frozenset()
    ranges: Sequence[RangeFlow] = ()
    holdings: Sequence[Holding] = ()
    following: Mapping[str, str] = field(default_factory=dict)

    @property
    def destinations(self) -> list[str]:
        """By name: members that may be given something, and of whose load we know."""
        return sorted(name for name in self.serving - self.leaving if name in self.loads)


@dataclass(frozen=True, slots=True)
class Decision:
    """Taken, or not: `reason` says why. before, after: overall efficiency. gain_s: response time less, per second;
    cost_s: response time that it costs, once. urgent: not for the sake of efficiency.

    session: id, for a move; with_data: what it touches is to follow it. start_lba, end_lba: the range, for a migration.
    """

    kind: Kind
    taken: bool
    volume_id: str
    source: str
    destination: str
    reason: str
    before: float = 1.0
    after: float = 1.0
    gain_s: float = 0.0
    cost_s: float = 0.0
    urgent: bool = False
    session: str = ""
    initiator: str = ""
    start_lba: int = 0
    end_lba: int = 0
    with_data: bool = False


SLACK_BYTES: Final = 64 << 20
"""What a pool must have left after it took a range."""


def free_bytes(view: View, name: str) -> int:
    """Of a member's pool, for ranges."""
    return view.loads[name].pool_free_bytes - SLACK_BYTES


def pool_use(view: View, name: str, extra_bytes: int = 0) -> float:
    """Share of a pool that is used, with so much more in it."""
    load = view.loads[name]
    if not load.pool_capacity_bytes:
        return 1.0
    return 1.0 - (load.pool_free_bytes - extra_bytes) / load.pool_capacity_bytes


def stays(view: View, rules: Rules, moved: RangeFlow) -> str:
    """Why a range stays because some of it came where it is not long ago, or ""."""
    for (volume_id, start, end), at_s in view.stays.items():
        left_s = rules.data_stay_s - (view.now_s - at_s)
        if volume_id == moved.volume_id and start < moved.end_lba and moved.start_lba < end and left_s > 0:
            return f"some of it was migrated lately, and stays for {left_s:.0f} s"
    return ""


def copying_s(moved: RangeFlow, rules: Rules = RULES) -> float:
    """Response time that copying it costs the others."""
    return rules.move_s + moved.size_bytes * rules.copy_byte_s


def not_worth_it(effect: Effect, cost_s: float, gain_min: float, horizon_s: float) -> str:
    """Why an effect is not worth its cost, or "". gain_min: see `Rules`; horizon_s: for how long the gain counts."""
    if effect.gain_s <= 0:
        return "the group would gain nothing"
    if effect.gain_s < gain_min * effect.concerned_s:
        share = effect.gain_s / effect.concerned_s
        return f"a gain of {share:.1%} of the response times concerned is within what changes by itself"
    if effect.gain_s * horizon_s < cost_s:
        return f"{effect.gain_s * horizon_s:.3f} s gained in {horizon_s:.0f} s, at a cost of {cost_s:.3f} s"
    return ""


def worth(decision: Decision, rules: Rules) -> tuple[bool, float]:
    """The order in which decisions are taken, best first by the largest: what is urgent, then by net gain."""
    is_short = decision.kind is Kind.MOVE and not decision.with_data
    horizon_s = rules.horizon_s if is_short else rules.data_horizon_s
    return decision.urgent, decision.gain_s - decision.cost_s / horizon_s


def actions_at_once(members: int) -> int:
    """One in a small group; in a large one as many as a quarter of its members, each with members of its own."""
    return max(1, members // 4)


def chosen(decisions: Sequence[Decision], rules: Rules, members: int) -> list[Decision]:
    """What is carried out at a time: the best, and in a large group the next ones that concern other members.

    Effects on other members are independent of each other, so that what is good by itself is good together.
    """
    limit = actions_at_once(members)
    busy: set[str] = set()
    taken: list[Decision] = []
    for one in sorted((one for one in decisions if one.taken), key=lambda one: worth(one, rules), reverse=True):
        if len(taken) == limit:
            break
        concerned = {one.source, one.destination, one.volume_id}
        if not busy & concerned:
            busy |= concerned
            taken.append(one)
    return taken
