"""Which session should go to which member. Pure: reports in, decisions with their reasons out.

For each session the best destination by the model is looked for among the members with the shortest queues and those
that own what it touches. Never moved: what would lose something (RESERVE(6), a registration of a port that changes its
name); not now: what has come, was moved, or did not obey, not long ago.

A busy member whose sessions touch its own blocks gets no relief by moving one of them: it would have as much to do for
what is then forwarded to it. Then it is looked whether the group gains if the blocks follow the session.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import nlargest, nsmallest
from typing import Final

from san_target.group.decisions import (
    RULES,
    Decision,
    Kind,
    Rules,
    View,
    actions_at_once,
    copying_s,
    free_bytes,
    not_worth_it,
    pool_use,
    stays,
)
from san_target.group.efficiency import Effect, Flow, RangeFlow, flow_of
from san_target.peer.load_report import SessionLoad

CANDIDATES_MAX: Final = 64
"""Sessions that are looked at closely at a time: those that promise most."""
DESTINATIONS_MAX: Final = 3


@dataclass(frozen=True, slots=True)
class _Candidate:
    session: SessionLoad
    flow: Flow
    leaving: bool
    beside: bool


@dataclass(frozen=True, slots=True)
class _Together:
    """A move after which what the session touches at its member follows it."""

    to: str
    effect: Effect
    cost_s: float
    size_bytes: int


def plan_moves(view: View, rules: Rules = RULES) -> list[Decision]:
    """One decision for each session that was looked at closely, best first; several may be taken."""
    destinations = view.destinations
    siblings = _places_of_initiators(view)
    candidates = [*_candidates(view, siblings)]
    must = [one for one in candidates if one.leaving or one.beside]
    closely = max(CANDIDATES_MAX, 2 * actions_at_once(len(view.loads)))
    free = [one for one in candidates if not one.leaving and not one.beside]
    may = nlargest(closely, free, _promise(view))
    if view.ranges and len(free) > closely:  # those that would gain by taking their data along are others
        looked_at = {one.session.id for one in may}
        with_data = nlargest(closely // 4, free, _promise(view, with_data=True))
        may += [one for one in with_data if one.session.id not in looked_at]
    idle = _emptiest(view, destinations)
    total_s = view.model.total_s()
    before = view.model.efficiency_of(total_s)
    touched = _touched(view, {one.session.volume_id for one in may})
    decisions = [
        _decide(view, rules, one, _targets(view, one, idle, destinations), siblings, touched, total_s, before)
        for one in (*must[:closely], *may)
    ]
    return sorted(decisions, key=lambda one: (one.taken, one.urgent, one.gain_s), reverse=True)


def _candidates(view: View, siblings: dict[tuple[str, str], dict[str, int]]) -> Iterator[_Candidate]:
    for member, load in view.loads.items():
        for session in load.details:
            beside = siblings[session.volume_id, session.initiator][member] > 1
            yield _Candidate(session, flow_of(session, member), member in view.leaving, beside)


def _promise(view: View, with_data: bool = False) -> Callable[[_Candidate], float]:
    return lambda one: view.model.leave_gain_s(one.flow, with_data)


def _places_of_initiators(view: View) -> dict[tuple[str, str], dict[str, int]]:
    """How many sessions an initiator (volume id, name) has at each member."""
    places: dict[tuple[str, str], dict[str, int]] = {}
    for member, load in view.loads.items():
        for session in load.details:
            counts = places.setdefault((session.volume_id, session.initiator), {})
            counts[member] = counts.get(member, 0) + 1
    return places


def _touched(view: View, volume_ids: set[str]) -> dict[tuple[str, str], list[RangeFlow]]:
    """What is touched of these volumes, by volume and the member that owns it."""
    found: dict[tuple[str, str], list[RangeFlow]] = {}
    for one in view.ranges:
        if one.volume_id in volume_ids:
            found.setdefault((one.volume_id, one.owner), []).append(one)
    return found


def _emptiest(view: View, destinations: Iterable[str]) -> list[str]:
    return nsmallest(DESTINATIONS_MAX, destinations, lambda name: (view.model.stations[name].busy, name))


def _targets(view: View, one: _Candidate, idle: list[str], destinations: list[str]) -> list[str]:
    """Members worth a look: those that wait least, and those that own most of what it touches."""
    owners = nlargest(DESTINATIONS_MAX, one.session.owners, lambda name: (one.session.owners[name], name))
    return [
        name
        for name in dict.fromkeys((*idle, *owners))
        if name != one.flow.member and name in view.serving and name not in view.leaving and name in view.loads
    ] or [name for name in destinations if name != one.flow.member][:DESTINATIONS_MAX]


def _decide(
    view: View,
    rules: Rules,
    one: _Candidate,
    targets: list[str],
    siblings: dict[tuple[str, str], dict[str, int]],
    touched: Mapping[tuple[str, str], list[RangeFlow]],
    total_s: float,
    before: float,
) -> Decision:
    session, source = one.session, one.flow.member

    def decision(
        taken: bool, to: str, reason: str, effect: Effect | None = None, urgent: bool = False, copying_s: float = 0.0
    ) -> Decision:
        gain_s = 0.0 if effect is None else effect.gain_s
        after = view.model.efficiency_of(total_s - gain_s)
        return Decision(
            Kind.MOVE, taken, session.volume_id, source, to, reason, before, after, gain_s,
            cost_of(session, rules) + copying_s, urgent, session.id, session.initiator, with_data=copying_s > 0,
        )  # fmt: skip

    if session.held:
        return decision(False, "", session.held)
    places = siblings[session.volume_id, session.initiator]
    apart = [name for name in targets if not places.get(name)]
    if not apart:
        reason = "every other member has another session of the same initiator" if targets else "there is nowhere to go"
        if not one.leaving or not targets:
            return decision(False, "", reason)
        apart = targets
    best, effect = max(
        ((name, view.model.effect_of_move(one.flow, name)) for name in apart), key=lambda found: found[1].gain_s
    )
    if one.leaving:
        return decision(True, best, f"member {source} is drained", effect, urgent=True)
    reason = _not_now(view, rules, session)
    if reason:
        return decision(False, best, reason, effect)
    if one.beside and effect.gain_s >= 0:
        return decision(True, best, "two sessions of one initiator are not to end together", effect)
    reason = not_worth_it(effect, cost_of(session, rules), rules.gain_min, rules.horizon_s)
    if not reason:
        return decision(True, best, _why(view, one, best), effect)
    together = _together(view, rules, one, apart, touched.get((session.volume_id, source), ()))
    if together is None:
        return decision(False, best, reason, effect)
    data = f"with {together.size_bytes / (1 << 20):.0f} MiB that it touches at {source}"
    why = _why(view, one, together.to)
    return decision(True, together.to, f"{data}: {why}", together.effect, copying_s=together.cost_s)


def _together(
    view: View, rules: Rules, one: _Candidate, targets: Iterable[str], ranges: Sequence[RangeFlow]
) -> _Together | None:
    """The best of these members to go to with all that it touches where it is, if that is worth it."""
    session = one.session
    moved_ago_s = view.now_s - view.moved.get(session.volume_id, float("-inf"))
    if not ranges or moved_ago_s < rules.rest_s or any(stays(view, rules, each) for each in ranges):
        return None
    size_bytes = sum(each.size_bytes for each in ranges)
    roomy = [
        name
        for name in targets
        if free_bytes(view, name) >= size_bytes and pool_use(view, name, size_bytes) < rules.pool_high
    ]
    if not roomy:
        return None
    to, effect = max(
        ((name, view.model.effect_of_move_with(one.flow, ranges, name)) for name in roomy),
        key=lambda found: found[1].gain_s,
    )
    cost_s = sum(copying_s(each, rules) for each in ranges)
    if not_worth_it(effect, cost_of(session, rules) + cost_s, rules.gain_with_data_min, rules.data_horizon_s):
        return None
    return _Together(to, effect, cost_s, size_bytes)


def cost_of(session: SessionLoad, rules: Rules = RULES) -> float:
    """Response time that a move costs: what comes during its pause waits for half of it, what is open for all."""
    return rules.move_s + session.iops * rules.pause_s**2 / 2 + session.depth * rules.pause_s


def _not_now(view: View, rules: Rules, session: SessionLoad) -> str:
    """Why this session stays for the time being, or ""."""
    if session.age_s < rules.stay_s:
        return f"it came only {session.age_s:.0f} s ago, and stays for {rules.stay_s:.0f} s"
    if view.sulking.get((session.volume_id, session.initiator), 0.0) > view.now_s:
        return "it did not obey the last time"
    if session.volume_id in view.busy:
        return "something of its volume is being moved"
    if session.volume_id in view.following:
        return "it was moved lately, for what it touches to follow it"
    rest_s = rules.rest_s - (view.now_s - view.migrated.get(session.volume_id, float("-inf")))
    if rest_s > 0:
        return f"data of its volume was migrated lately; {rest_s:.0f} s to go"
    return ""


def _why(view: View, one: _Candidate, to: str) -> str:
    session, source = one.session, one.flow.member
    here, there = session.owners.get(source, 0.0), session.owners.get(to, 0.0)
    busy, idle = view.model.stations[source].busy, view.model.stations[to].busy
    reasons = []
    if there > here:
        reasons.append(f"{there:.0%} of what it touches is at {to}, {here:.0%} at {source}")
    if busy > idle:
        reasons.append(f"{source} is busy for {busy:.0%} of the time, {to} for {idle:.0%}")
    return "; ".join(reasons) or "the whole group waits less"
