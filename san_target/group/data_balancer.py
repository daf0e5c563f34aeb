"""Which range of which volume should go to which member. Pure: reports and maps in, decisions with reasons out.

In this order of urgency: a member that is drained gives away all it has; a pool that runs full gives away what helps;
ranges go to where they are read and written (locality), or away from a member or disk that has too much to do (heat),
where the whole group gains more than the copying costs.
"""

from bisect import bisect_left
from collections.abc import Mapping
from heapq import nlargest, nsmallest
from typing import Final

from san_target.group.decisions import (
    RULES,
    Decision,
    Holding,
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
from san_target.group.efficiency import Effect, RangeFlow, flow_of
from san_target.peer.load_report import SessionLoad

CANDIDATES_MAX: Final = 64
DESTINATIONS_MAX: Final = 3


def plan_migrations(view: View, rules: Rules = RULES) -> list[Decision]:
    """Best first; several may be taken."""
    total_s = view.model.total_s()
    before = view.model.efficiency_of(total_s)
    decisions = [_drained(view, one, before) for one in view.holdings if one.owner in view.leaving]
    decisions += _for_space(view, rules, before)
    known = (one for one in view.ranges if one.owner in view.model.stations and one.owner not in view.leaving)
    promising = nlargest(max(CANDIDATES_MAX, 2 * actions_at_once(len(view.loads))), known, view.model.give_gain_s)
    destinations = view.destinations
    idle = _idlest(view, destinations)
    for one in promising:
        decisions.append(_for_load(view, rules, one, _targets(one, idle, destinations), total_s, before))
    return sorted(decisions, key=lambda one: (one.taken, one.urgent, one.gain_s), reverse=True)


def _flow(view: View, holding: Holding) -> RangeFlow:
    """All that is touched of it, as one range."""
    by_ingress: dict[str, float] = {}
    byte_rate = 0.0
    for one in view.ranges:
        inside = one.volume_id == holding.volume_id and one.start_lba < holding.end_lba
        if inside and holding.start_lba < one.end_lba:
            byte_rate += one.iops * one.bytes_each
            for name, iops in one.by_ingress.items():
                by_ingress[name] = by_ingress.get(name, 0.0) + iops
    iops = sum(by_ingress.values())
    size = byte_rate / iops if iops else 0.0
    return RangeFlow(
        holding.volume_id, holding.start_lba, holding.end_lba, holding.owner, holding.size_bytes, by_ingress, size
    )


def _best(view: View, moved: RangeFlow, names: list[str]) -> tuple[str, Effect] | None:
    """The destination of these by which the group gains most; with the owner out of the model there is nothing to
    compare, and the emptiest pool gets it."""
    if not names:
        return None
    if moved.owner not in view.model.stations:
        return min(names, key=lambda name: (pool_use(view, name), name)), Effect(0.0, 0.0)
    effects = ((name, view.model.effect_of_migration(moved, name)) for name in names)
    return max(effects, key=lambda one: (one[1].gain_s, -pool_use(view, one[0])))


def _drained(view: View, holding: Holding, before: float) -> Decision:
    moved = _flow(view, holding)
    names = [name for name in view.destinations if free_bytes(view, name) >= holding.size_bytes]
    found = _best(view, moved, names)
    if found is None:
        return _decision(
            view, moved, False, "", f"no other pool has room for what member {holding.owner} holds", before
        )
    return _decision(view, moved, True, found[0], f"member {holding.owner} is drained", before, found[1], urgent=True)


def _for_space(view: View, rules: Rules, before: float) -> list[Decision]:
    """From each pool that runs full, the range that is touched least."""
    decisions = []
    for name in view.destinations:
        if pool_use(view, name) < rules.pool_high:
            continue
        decision = _relief(view, rules, name, before)
        if decision is not None:
            decisions.append(decision)
    return decisions


def _relief(view: View, rules: Rules, full: str, before: float) -> Decision | None:
    held = [one for one in view.holdings if one.owner == full and not _resting(view, rules, one.volume_id)]
    for holding in nsmallest(DESTINATIONS_MAX, held, lambda one: (_flow(view, one).iops, -one.size_bytes)):
        names = [
            name
            for name in view.destinations
            if name != full
            and pool_use(view, name, holding.size_bytes) < rules.pool_low
            and free_bytes(view, name) >= holding.size_bytes
        ]
        moved = _flow(view, holding)
        found = _best(view, moved, names)
        if found is not None:
            theirs = f"that of {found[0]} {pool_use(view, found[0]):.0%}"
            reason = f"the pool of member {full} is {pool_use(view, full):.0%} full, {theirs}"
            return _decision(view, moved, True, found[0], reason, before, found[1], urgent=True)
    return None


def _for_load(
    view: View, rules: Rules, moved: RangeFlow, targets: list[str], total_s: float, before: float
) -> Decision:
    names = [name for name in targets if free_bytes(view, name) >= moved.size_bytes]
    found = _best(view, moved, names)
    if found is None:
        return _decision(view, moved, False, "", "no other pool has room for it", before)
    to, effect = found
    after = view.model.efficiency_of(total_s - effect.gain_s)
    reason = (
        stays(view, rules, moved)
        or _resting(view, rules, moved.volume_id, to)
        or not_worth_it(effect, copying_s(moved, rules), rules.gain_min, rules.data_horizon_s)
        or _rather_its_session(view, rules, moved, effect)
    )
    if reason:
        return _decision(view, moved, False, to, reason, before, effect, after)
    return _decision(view, moved, True, to, _why(view, moved, to), before, effect, after)


def _idlest(view: View, destinations: list[str]) -> list[str]:
    """One more than are looked at: the owner itself may be among them."""
    stations = view.model.stations
    return nsmallest(
        DESTINATIONS_MAX + 1, destinations, lambda name: (stations[name].busy + stations[name].disk_waits, name)
    )


def _targets(moved: RangeFlow, idle: list[str], destinations: list[str]) -> list[str]:
    """Where it is asked for, and the members and disks that wait least."""
    readers = nlargest(DESTINATIONS_MAX, moved.by_ingress, lambda name: (moved.by_ingress[name], name))
    return [name for name in dict.fromkeys((*readers, *idle)) if name != moved.owner and _is_in(name, destinations)]


def _is_in(name: str, names: list[str]) -> bool:
    """names: sorted."""
    index = bisect_left(names, name)
    return index < len(names) and names[index] == name


def _resting(view: View, rules: Rules, volume_id: str, to: str = "") -> str:
    """Why this volume is left alone for the time being, or "". to: where some of it would go."""
    if volume_id in view.busy:
        return "something of this volume is being moved"
    if to and view.following.get(volume_id) == to:
        return ""  # its session went ahead: that was one decision
    lately: Mapping[str, Mapping[str, float]] = {
        "a session of it was moved": view.moved,
        "it was migrated": view.migrated,
    }
    for what, times in lately.items():
        rest_s = rules.rest_s - (view.now_s - times.get(volume_id, float("-inf")))
        if rest_s > 0:
            return f"{what} lately; {rest_s:.0f} s to go"
    return ""


def _rather_its_session(view: View, rules: Rules, moved: RangeFlow, effect: Effect) -> str:
    """Why a range does not go to a session that may come to it, and relieves a busy member by that; or ""."""
    ingress = max(moved.by_ingress, key=lambda name: (moved.by_ingress[name], name))
    if ingress == moved.owner or view.leaving & {ingress, moved.owner} or moved.owner not in view.serving:
        return ""
    sessions = _sessions(view, ingress, moved.volume_id)
    if len(sessions) != 1 or sessions[0].held or _sessions(view, moved.owner, moved.volume_id):
        return ""
    if view.sulking.get((moved.volume_id, sessions[0].initiator), 0.0) > view.now_s:
        return ""
    more_s = view.model.effect_of_move(flow_of(sessions[0], ingress), moved.owner).gain_s - effect.gain_s
    return (
        f"more is gained when its session goes to {moved.owner}" if more_s > rules.gain_min * effect.concerned_s else ""
    )


def _sessions(view: View, member: str, volume_id: str) -> list[SessionLoad]:
    load = view.loads.get(member)
    return [] if load is None else [one for one in load.details if one.volume_id == volume_id]


def _why(view: View, moved: RangeFlow, to: str) -> str:
    iops = moved.iops
    here, there = moved.by_ingress.get(moved.owner, 0.0), moved.by_ingress.get(to, 0.0)
    if there > here:
        return f"locality: {there / iops:.0%} of its I/O comes through {to}, {here / iops:.0%} through {moved.owner}"
    busy, idle = view.model.stations[moved.owner].busy, view.model.stations[to].busy
    return f"heat: {moved.owner} is busy for {busy:.0%} of the time, {to} for {idle:.0%}"


def _decision(
    view: View,
    moved: RangeFlow,
    taken: bool,
    to: str,
    reason: str,
    before: float,
    effect: Effect | None = None,
    after: float | None = None,
    urgent: bool = False,
) -> Decision:
    return Decision(
        Kind.MIGRATE,
        taken,
        moved.volume_id,
        moved.owner,
        to,
        reason,
        before,
        before if after is None else after,
        0.0 if effect is None else effect.gain_s,
        copying_s(moved),
        urgent,
        start_lba=moved.start_lba,
        end_lba=moved.end_lba,
    )
