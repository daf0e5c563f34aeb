"""Load, moves and balancing as they go over the HTTP API (fields are JSON keys), beside the values of `service`."""

from typing import Literal

from msgspec import Struct

from san_target.peer.load_report import MemberLoad


class Load(Struct, kw_only=True, frozen=True):
    """What a member told last of its load. state stale: too long ago to count; missing: it has told nothing yet.

    age_s: of the report, null if there is none. is_own: of the member that was asked.
    """

    member: str
    state: Literal["fresh", "stale", "missing"]
    age_s: float | None = None
    is_own: bool = False
    report: MemberLoad | None = None


class MovedSession(Struct, kw_only=True, frozen=True):
    """A session that was moved. id: its new one, at `member`. dropped: it was asked to go, and did not, so that its
    connection was closed. seconds: without a session, from the last answer of the old member to the new login."""

    id: str
    member: str
    dropped: bool
    seconds: float


class BalanceDecision(Struct, kw_only=True, frozen=True):
    """A move of a session, or a migration of the blocks [start_lba, end_lba) of a volume: taken, or why not.

    efficiency_*: of the whole group, as predicted, 1 = as good as it gets. gain: response time of all I/O that is saved
    each second, in seconds; cost: response time that carrying it out costs, once.
    """

    kind: Literal["move", "migrate"]
    taken: bool
    reason: str
    volume: str
    source: str
    destination: str
    efficiency_before: float
    efficiency_after: float
    gain_s: float
    cost_s: float
    session: str = ""
    initiator: str = ""
    start_lba: int = 0
    end_lba: int = 0


class BalanceAction(Struct, kw_only=True, frozen=True):
    """A decision that was carried out. time: UTC text; outcome: "done", or what became of it instead."""

    time: str
    decision: BalanceDecision
    outcome: str


class BalanceReport(Struct, kw_only=True, frozen=True):
    """decider: the member that decides for all, "" = none is known.

    state: active | idle (the policy of the portal group is not `adaptive`) | paused | waiting (for fresh reports after
    an action), and why. efficiency: of the whole group, as predicted from `reports` fresh reports of `members`.
    actions: the last ones, the newest last. decisions: of the last look, the best first. planning_s: it took so long.
    """

    decider: str
    state: Literal["active", "idle", "paused", "waiting"]
    reason: str = ""
    efficiency: float = 1.0
    members: int = 0
    reports: int = 0
    planning_s: float = 0.0
    actions: tuple[BalanceAction, ...] = ()
    decisions: tuple[BalanceDecision, ...] = ()
