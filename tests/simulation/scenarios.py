"""The kinds of runs, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from tests.simulation.plan import Load
from tests.simulation.world import FAULT_WEIGHTS, Scenario

CALM: Final[Mapping[str, int]] = {"abort": 1, "watch lag": 1}
CRASHES: Final[Mapping[str, int]] = {"power": 3, "power in a job": 5, "kill": 1, "terminate": 2, "flush fails": 1}
NETWORK: Final[Mapping[str, int]] = {
    "drop": 3,
    "drop link": 4,
    "part": 5,
    "isolate": 3,
    "slow network": 3,
    "pause": 4,
    "kill": 1,
}
MOVES: Final[Mapping[str, int]] = {
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
STORE: Final[Mapping[str, int]] = {"store away": 5, "watch lag": 3, "pause": 2, "kill": 2, "part": 2}

IMPATIENCE: Final[Mapping[str, int]] = {"slow disk": 4, "slow network": 6, "abort": 8, "drop": 8}

FENCING: Final[Mapping[str, int]] = {"preempt": 12, "slow network": 4, "slow disk": 3, "drop": 2, "watch lag": 2}

# Few commands, many flushes: so that a flush finds nothing new now and then.
FLUSHES: Final = Load(
    ((2, 0.005), (3, 0.01), (4, 0.02)), (1, 4), 0.0, (200, 1000), 0.0, {"write": 40, "flush": 40, "read": 5}
)
ATOMIC: Final = Load(
    ((2, 0.0), (4, 0.002)), (4,), 0.0, (24,), 0.1, {"write atomic": 50, "read atomic": 20, "write": 10}
)
BURSTS: Final = Load(((6, 0.0), (10, 0.002)), (8,), 1.0, (24,), 0.0, {"write": 50, "read": 50})
WRITES: Final = Load(
    ((4, 0.0), (8, 0.01)), (1, 4, 8), 0.2, (24,), 0.05, {"write": 50, "read": 40, "compare": 5, "unmap": 2}
)

ONE: Final = Scenario("one")
GROUP: Final = Scenario("group", members=3)
CLUSTER: Final = replace(ONE, weights=FENCING, faults=(3, 10), load=WRITES, reservations=True, hosts=(2, 4))
QUICK: Final = replace(ONE, weights=CRASHES, faults=(1, 2), duration_s=0.6, faults_s=0.5)

SCENARIOS: Final[Mapping[str, Scenario]] = {
    each.name: each
    for each in (
        ONE,
        GROUP,
        replace(ONE, name="one-calm", weights=CALM),
        replace(ONE, name="one-crashes", weights=CRASHES, faults=(1, 4)),
        replace(QUICK, name="one-flushes", load=FLUSHES, disk_s=(0.001, 0.01)),
        replace(QUICK, name="one-atomic", weights={"power in a job": 1}, load=ATOMIC),
        replace(ONE, name="one-bursts", weights=CALM, load=BURSTS),
        replace(ONE, name="one-impatient", weights=IMPATIENCE, faults=(4, 14), load=WRITES),
        replace(GROUP, name="pair", members=2),
        replace(GROUP, name="group-calm", weights=CALM),
        replace(GROUP, name="group-crashes", weights=CRASHES, faults=(1, 4)),
        replace(GROUP, name="group-impatient", weights=IMPATIENCE, faults=(4, 14), load=WRITES),
        replace(
            GROUP, name="group-fencing", weights=FENCING, faults=(3, 10), load=WRITES, reservations=True, hosts=(2, 4)
        ),
        replace(ONE, name="one-fencing", weights=FENCING, faults=(3, 10), load=WRITES, reservations=True, hosts=(2, 4)),
        replace(GROUP, name="group-moves", weights=MOVES, faults=(4, 14)),
        replace(GROUP, name="group-calm-moves", weights={"migrate": 3, "watch lag": 1}, faults=(3, 10)),
        replace(GROUP, name="group-network", weights=NETWORK, faults=(1, 6)),
        replace(GROUP, name="group-store", weights=STORE, faults=(1, 5)),
        replace(GROUP, name="large", members=6, hosts=(3, 6), faults=(2, 10)),
        replace(GROUP, name="long", duration_s=40.0, faults=(4, 16), weights=FAULT_WEIGHTS),
    )
}
