"""The kinds of runs, by name: who goes wrong how often (weights of faults), and what users do meanwhile (loads)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from san_target.group.migration import Do, Event, Phase
from tests.simulation.plan import Load
from tests.simulation.steps import BUSY, SCENARIO, STEPS, WIDE, Disturbed, Point
from tests.simulation.world import FAULT_WEIGHTS, Scenario

Weights = Mapping[str, int]

CALM: Final[Weights] = {"abort": 1, "watch lag": 1}
CRASHES: Final[Weights] = {"power": 3, "power in a job": 5, "kill": 1, "terminate": 2, "flush fails": 1}
NETWORK: Final[Weights] = {
    "drop": 3,
    "drop link": 4,
    "part": 5,
    "isolate": 3,
    "slow network": 3,
    "pause": 4,
    "kill": 1,
}
STORE: Final[Weights] = {"store away": 5, "watch lag": 3, "pause": 2, "kill": 2, "part": 2}
IMPATIENCE: Final[Weights] = {"slow disk": 4, "slow network": 6, "abort": 8, "drop": 8}
LOSSES: Final[Weights] = {"drop link": 12, "slow network": 3, "kill": 3, "slow disk": 2, "part": 1}
FENCING: Final[Weights] = {"preempt": 12, "slow network": 4, "slow disk": 3, "drop": 2, "watch lag": 2}
APART: Final[Weights] = {"preempt": 6, "isolate": 2, "drop": 1}
MOVES: Final[Weights] = {
    "migrate": 16,
    "drop link": 3,
    "slow network": 3,
    "slow disk": 2,
    "kill": 2,
    "power": 2,
    "power in a job": 2,
    "part": 2,
    "pause": 2,
    "store away": 2,
    "watch lag": 4,
}
OPERATED: Final[Weights] = {
    "move session": 8,
    "drain": 3,
    "balance": 3,
    "migrate": 3,
    "kill": 1,
    "drop link": 1,
    "slow network": 1,
    "watch lag": 1,
}
DOUBTS: Final[Weights] = {"migrate": 6, "store away": 2, "part": 1, "drop link": 1}

# Few commands, many flushes: so that a flush finds nothing new now and then.
FLUSHES: Final = Load(
    pace=((2, 0.005), (3, 0.01), (4, 0.02)),
    blocks_max=(1, 4),
    bursts=0.0,
    zone=(200, 1000),
    fua=0.0,
    weights={"write": 40, "flush": 40, "read": 5},
)
FORCED: Final = replace(FLUSHES, fua=1.0, weights={"write": 60, "read": 20})
ATOMIC: Final = Load(
    pace=((2, 0.0), (4, 0.002)),
    blocks_max=(4,),
    bursts=0.0,
    zone=(24,),
    weights={"write atomic": 50, "read atomic": 20, "write": 10},
)
BURSTS: Final = Load(
    pace=((6, 0.0), (10, 0.002)), blocks_max=(8,), bursts=1.0, zone=(24,), fua=0.0, weights={"write": 50, "read": 50}
)
WRITES: Final = Load(
    pace=((4, 0.0), (8, 0.01)),
    blocks_max=(1, 4, 8),
    zone=(24,),
    fua=0.05,
    weights={"write": 50, "read": 40, "compare": 5, "unmap": 2},
)
COMPARES: Final = Load(
    pace=((4, 0.0), (8, 0.0)), blocks_max=(1,), bursts=0.0, zone=(8,), weights={"compare": 80, "learn": 5, "write": 5}
)
SPLITS: Final = Load(
    pace=((8, 0.0), (10, 0.002)), blocks_max=(8,), bursts=0.0, zone=(8,), fua=0.0, weights={"write": 70, "read": 30}
)
# For long runs in which little is to be done: what was sent before must meet what is sent much later.
SPARSE: Final = Load(
    pace=((2, 0.05), (4, 0.1)), blocks_max=(1, 2), bursts=0.0, zone=(8,), fua=0.0, weights={"write": 50, "read": 50}
)

ONE: Final = Scenario("one")
GROUP: Final = Scenario("group", members=3)
QUICK: Final = replace(ONE, weights=CRASHES, faults=(1, 2), duration_s=0.6, faults_s=0.5)
CLUSTER: Final = replace(ONE, weights=FENCING, faults=(3, 10), load=WRITES, reservations=True, hosts=(2, 4))
FENCED: Final[dict[str, Any]] = {"faults": (3, 8), "reservations": True, "hosts": (2, 4), "multipath": 0.4}
PATIENT: Final = replace(GROUP, load=SPARSE, duration_s=30.0, multipath=1.0)
_LATE: Final = replace(
    SCENARIO, direct=Disturbed(Point((Phase.IN_DOUBT, Event.REFUSED), 2, Do.CANCEL), "kill asked", late_s=0.003)
)
LOADED: Final[dict[str, Any]] = {"hosts": (2, 3), "multipath": 0.0}

_TABLE: Final[tuple[tuple[str, Scenario, dict[str, Any]], ...]] = (
    ("one", ONE, {}),
    ("one-calm", ONE, {"weights": CALM}),
    ("one-crashes", ONE, {"weights": CRASHES, "faults": (1, 4)}),
    ("one-flushes", QUICK, {"load": FLUSHES, "disk_s": (0.001, 0.01)}),
    ("one-forced", QUICK, {"load": FORCED}),
    ("one-atomic", QUICK, {"load": ATOMIC, "weights": {"power in a job": 1}}),
    ("one-ends", QUICK, {"weights": {"terminate": 1}}),
    ("one-bursts", ONE, {"load": BURSTS, "weights": CALM}),
    ("one-impatient", ONE, {"load": WRITES, "weights": IMPATIENCE, "faults": (4, 14)}),
    ("one-fencing", CLUSTER, {}),
    ("pair", GROUP, {"members": 2}),
    ("group", GROUP, {}),
    ("group-calm", GROUP, {"weights": CALM}),
    ("group-crashes", GROUP, {"weights": CRASHES, "faults": (1, 4)}),
    ("group-flushes", QUICK, {"members": 3, "load": FLUSHES, "disk_s": (0.001, 0.01)}),
    ("group-impatient", GROUP, {"load": WRITES, "weights": IMPATIENCE, "faults": (4, 14)}),
    ("group-lossy", GROUP, {"load": WRITES, "weights": LOSSES, "faults": (4, 14)}),
    ("group-compares", GROUP, {"load": COMPARES, "weights": LOSSES, "faults": (4, 14)}),
    ("group-split", GROUP, {"load": SPLITS, "weights": LOSSES, "faults": (4, 14)}),
    ("group-network", GROUP, {"weights": NETWORK, "faults": (1, 6)}),
    ("group-store", GROUP, {"weights": STORE, "faults": (1, 5)}),
    ("group-stalled", PATIENT, {"weights": {"pause": 1}, "faults": (1, 2)}),
    ("group-isolated", PATIENT, {"weights": {"cut off": 1}, "faults": (1, 1)}),
    ("group-fencing", CLUSTER, {"members": 3}),
    ("group-fenced-apart", PATIENT, {**FENCED, "weights": APART, "duration_s": 20.0, "faults_s": 18.0}),
    ("group-moves", GROUP, {"weights": MOVES, "faults": (4, 14)}),
    ("group-calm-moves", GROUP, {"weights": {"migrate": 3, "watch lag": 1}, "faults": (3, 10)}),
    ("group-doubts", GROUP, {"weights": DOUBTS, "faults": (6, 16)}),
    ("group-moved-crashes", GROUP, {"load": FLUSHES, "weights": {"migrate": 3, "power": 1}, "faults": (4, 10)}),
    ("group-back-and-forth", GROUP, {"load": WIDE, "weights": {"migrate": 1}, "faults": (10, 20)}),
    ("group-operated", GROUP, {"weights": OPERATED, "faults": (3, 10), "duration_s": 4.0, "faults_s": 4.0}),
    (
        "group-drained",
        GROUP,
        {"weights": {"drain": 2, "move session": 2, "kill": 1}, "faults": (1, 5), "duration_s": 4.0},
    ),
    ("moved-cut-in-doubt", STEPS["step/committing-unanswered-unlock/cut"], {**LOADED, "load": BUSY}),
    ("moved-links-in-doubt", STEPS["step/committing-unanswered-unlock/links"], {**LOADED, "load": BUSY}),
    ("moved-late-commit", _LATE, {**LOADED, "load": WIDE}),
    ("moved-full", STEPS["step/draining-done-copy/full-destination"], {**LOADED, "load": WIDE}),
    ("moved-stale", STEPS["step/copying-failed-release/links"], {**LOADED, "load": WIDE}),
    ("moved-wide", STEPS["step/sealing-done-commit/links"], {**LOADED, "load": WIDE}),
    ("moved-power", STEPS["step/handing-over-done-route/power-destination"], {**LOADED, "load": FLUSHES}),
    ("moved-killed", STEPS["step/committing-committed-close/kill-destination"], {**LOADED, "load": WIDE}),
    ("large", GROUP, {"members": 6, "hosts": (3, 6), "faults": (2, 10)}),
    ("long", GROUP, {"weights": FAULT_WEIGHTS, "duration_s": 40.0, "faults_s": 40.0, "faults": (4, 16)}),
)
_NAMED: Final = {name: replace(base, name=name, **changes) for name, base, changes in _TABLE}
LENGTHY: Final = frozenset({"large", "long"})
USUAL: Final = tuple(name for name in _NAMED if name not in LENGTHY)
"""Those of which runs take less than a second."""
SCENARIOS: Final[Mapping[str, Scenario]] = {**_NAMED, **STEPS}
