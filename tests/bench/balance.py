"""Three real members, all load on one of them, and what the group makes of it: efficiency and throughput over time.

    python -m tests.bench.balance [--seconds 90] [--rate 200] [--picture docs/images/balancing-real.svg]

Six volumes, two on each member; one verified session to each, all logged in at the first member. After 15 seconds the
policy becomes `adaptive`. The picture needs the extra `plot`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.group import Group, running
from tests.support.target import PLAIN

SIMULATOR = Path(sys.executable).with_name("initiator-sim")
BEFORE_S = 15.0
STEP_S = 1.0
MIB = 1 << 20


@dataclass
class Seen:
    """At each step. moved_s: when something was moved, by kind."""

    at_s: list[float] = field(default_factory=list)
    efficiency: list[float] = field(default_factory=list)
    iops: list[float] = field(default_factory=list)
    forwarded: list[float] = field(default_factory=list)
    sessions: list[dict[str, int]] = field(default_factory=list)
    moved_s: list[tuple[float, str]] = field(default_factory=list)


def watch(group: Group, seconds: float) -> Seen:
    seen, began_s, adaptive, actions = Seen(), time.monotonic(), False, 0
    while (now_s := time.monotonic() - began_s) < seconds:
        if not adaptive and now_s > BEFORE_S:
            adaptive = True
            group[0].ask("PATCH", "/portals", {"policy": "adaptive"})
        loads = [one["report"] for one in group[0].ask("GET", "/load") if one["report"]]
        balance = group[0].ask("POST", "/balance/run", {"dry_run": True})
        seen.at_s.append(now_s)
        seen.efficiency.append(balance["efficiency"])
        seen.iops.append(sum(one["client_iops"] for one in loads))
        seen.forwarded.append(sum(one["forwarded_iops"] for one in loads))
        seen.sessions.append({one["member"]: one["sessions"] for one in loads})
        for action in balance["actions"][actions:]:
            seen.moved_s.append((now_s, action["decision"]["kind"]))
        actions = len(balance["actions"])
        time.sleep(STEP_S)
    return seen


def draw(seen: Seen, file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "san-target"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 1, figsize=(8, 5), sharex=True)
    axes[0].plot(seen.at_s, seen.efficiency)
    axes[0].set_ylabel("overall efficiency")
    axes[0].set_ylim(0, 1.05)
    axes[1].plot(seen.at_s, seen.iops, label="I/O per second")
    axes[1].plot(seen.at_s, seen.forwarded, label="of that, forwarded")
    axes[1].set_xlabel("seconds")
    axes[1].legend()
    for axis in axes:
        axis.axvline(BEFORE_S, linestyle=":", color="grey")
        for at_s, kind in seen.moved_s:
            axis.axvline(at_s, linewidth=0.6, color="tab:red" if kind == "move" else "tab:green")
    figure.suptitle("all sessions at one of three members; adaptive from the dotted line (red: move, green: migration)")
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=90.0)
    parser.add_argument("--rate", type=float, default=0.0, help="I/Os a second and session; 0 = unbounded")
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place, running(Group(Path(place))) as group:
        group.wait_until_active()
        volumes = [
            group[0].create_volume(
                f"disk-{index}-{member.member_name}", 16 * MIB, PLAIN, "--members", member.member_name
            )
            for member in group
            for index in range(2)
        ]
        loads = []
        for number, one in enumerate(volumes):
            words = [str(SIMULATOR), "run", group[0].portal, one.iqn, "--seconds", str(options.seconds + 5), "--verify"]
            words += [
                "--workload",
                "randrw",
                "--depth",
                "4",
                "--rate",
                str(options.rate),
                "--json",
                "--seed",
                str(number),
            ]
            words += ["--name", f"iqn.2026-01.org.example:host{number}"]
            loads.append(subprocess.Popen(words, stdout=subprocess.PIPE, text=True))
        seen = watch(group, options.seconds)
        reports = [json.loads(one.communicate(timeout=120)[0]) for one in loads]
    for at_s, efficiency, iops, forwarded, sessions in zip(
        seen.at_s, seen.efficiency, seen.iops, seen.forwarded, seen.sessions, strict=True
    ):
        print(f"{at_s:5.0f} s  {efficiency:6.3f}  {iops:7.0f} IOPS  {forwarded:7.0f} forwarded  {sessions}")
    print("moved:", ", ".join(f"{kind} at {at_s:.0f} s" for at_s, kind in seen.moved_s))
    print(
        "verified:", all(one["ok"] for one in reports), "longest pause:", max(one["longest_pause_s"] for one in reports)
    )
    if options.picture:
        draw(seen, options.picture)


if __name__ == "__main__":
    main()
