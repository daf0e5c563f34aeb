"""Three real members, all load on one of them, and what the group makes of it: efficiency and throughput over time.

    python -m tests.bench.balance [--seconds 90] [--rate 200] [--picture docs/images/balancing-real.svg]
    python -m tests.bench.balance --cpu-share 20 --picture docs/images/balancing-saturated.svg

Six volumes, two on each member (`--data first`: all on the first); one verified session to each, all logged in at the
first member. After 15 seconds the policy becomes `adaptive`.

--cpu-share PERCENT: each member may use so much of one CPU, so that three of them on a machine of two cores are like
three machines, and the one with all the load has more to do than it can. Without a rate the sessions ask for all they
can get. Exit status 1: a block read was wrong, a command failed, or something moved when the group should have
settled.
The picture needs the extra `plot`.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import httpx

from tests.support.cpu_quota import NoQuota, cpu_quota
from tests.support.group import TOKEN, Group, running
from tests.support.target import PLAIN, Volume, wait_for

SIMULATOR = Path(sys.executable).with_name("initiator-sim")
BEFORE_S = 15.0
SETTLED_S = 60.0
STEP_S = 1.0
MIB = 1 << 20
QUICK_S = 3.0


@dataclass
class Seen:
    """At each step. moved_s: when something was moved, its kind and what.

    began_s: when the policy became `adaptive`; iops: what initiators got since the step before; cpu: of each member, of
    what it may use
    """

    began_s: float = 0.0
    at_s: list[float] = field(default_factory=list)
    efficiency: list[float] = field(default_factory=list)
    iops: list[float] = field(default_factory=list)
    forwarded: list[float] = field(default_factory=list)
    sessions: list[dict[str, int]] = field(default_factory=list)
    cpu: list[dict[str, float]] = field(default_factory=list)
    moved_s: list[tuple[float, str, str]] = field(default_factory=list)

    def mean_iops(self, first_s: float, end_s: float) -> float:
        return mean(iops for at_s, iops in zip(self.at_s, self.iops, strict=True) if first_s <= at_s < end_s)


def counted(group: Group) -> int:
    """All commands that members have completed; those of sessions that ended stay counted."""
    total = 0
    for member in group:
        metrics = httpx.get(
            f"{member.api}/metrics", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=60, trust_env=False
        ).text
        found = re.search(r"^san_target_commands_total ([0-9.e+]+)$", metrics, re.MULTILINE)
        if found is None:
            raise AssertionError(f"{member.member_name} does not tell how many commands it completed")
        total += round(float(found[1]))
    return total


def watch(group: Group, seconds: float, before_s: float) -> Seen:
    seen, began_s, adaptive, actions = Seen(before_s), time.monotonic(), False, 0
    last_s, last = began_s, counted(group)
    while (now_s := time.monotonic() - began_s) < seconds:
        if not adaptive and now_s > before_s:
            adaptive, seen.began_s = True, now_s
            group[0].ask("PATCH", "/portals", {"policy": "adaptive"})
        time.sleep(STEP_S)
        loads = [one["report"] for one in group[0].ask("GET", "/load") if one["report"]]
        balance = group[0].ask("POST", "/balance/run", {"dry_run": True})
        count, count_s = counted(group), time.monotonic()
        seen.at_s.append(count_s - began_s)
        seen.efficiency.append(balance["efficiency"])
        seen.iops.append((count - last) / (count_s - last_s))
        last, last_s = count, count_s
        seen.forwarded.append(sum(one["forwarded_iops"] for one in loads))
        seen.sessions.append({one["member"]: one["sessions"] for one in loads})
        seen.cpu.append({one["member"]: one["cpu_share"] / one["cpu_limit"] for one in loads})
        for action in balance["actions"][actions:]:
            decision = action["decision"]
            what = f"{decision['volume']} from {decision['source']} to {decision['destination']}: {decision['reason']}"
            seen.moved_s.append((count_s - began_s, decision["kind"], what))
        actions = len(balance["actions"])
        tell_step(seen)
    return seen


def tell_step(seen: Seen) -> None:
    """The last one."""
    busy = " ".join(f"{name} {share:4.0%}" for name, share in seen.cpu[-1].items())
    where = " ".join(f"{count}" for count in seen.sessions[-1].values())
    print(
        f"{seen.at_s[-1]:5.0f} s  {seen.efficiency[-1]:6.3f} {seen.iops[-1]:7.0f} IOPS"
        f" {seen.forwarded[-1]:7.0f} forwarded  at {where}  CPU {busy}",
        flush=True,
    )


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
    axes[1].set_ylim(bottom=0)
    axes[1].set_xlabel("seconds")
    axes[1].legend()
    for axis in axes:
        axis.axvline(seen.began_s, linestyle=":", color="grey")
        for at_s, kind, _ in seen.moved_s:
            axis.axvline(at_s, linewidth=0.6, color="tab:red" if kind == "move" else "tab:green")
    figure.suptitle("all sessions at one of three members; adaptive from the dotted line (red: move, green: migration)")
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)


def load(volume: Volume, portal: str, number: int, options: argparse.Namespace) -> subprocess.Popen[str]:
    """A verified load at that portal, a little longer than is looked at."""
    words = [str(SIMULATOR), "run", portal, volume.iqn, "--seconds", str(options.seconds + 5), "--verify"]
    words += ["--workload", "randrw", "--depth", str(options.depth), "--rate", str(options.rate), "--json"]
    words += ["--seed", str(number), "--name", f"iqn.2026-01.org.example:host{number}"]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


def run(group: Group, options: argparse.Namespace) -> tuple[Seen, list[dict[str, Any]]]:
    """(what was seen, the reports of the initiators)."""
    with ExitStack() as stack:
        owners = [member.member_name for member in group for _ in range(2)]
        if options.data == "first":
            owners = [group[0].member_name] * len(owners)
        volumes = [
            group[0].create_volume(f"disk-{number}", 16 * MIB, PLAIN, "--members", owner)
            for number, owner in enumerate(owners)
        ]
        for member in group if options.cpu_share else ():
            stack.enter_context(cpu_quota(member.pid, options.cpu_share / 100))
        loads = [load(one, group[0].portal, number, options) for number, one in enumerate(volumes)]
        try:
            wait_for(lambda: len(group[0].ask("GET", "/sessions")) == len(volumes), 60, "all sessions")
            seen = watch(group, options.seconds, options.before)
            reports = [json.loads(one.communicate(timeout=120)[0]) for one in loads]
        finally:
            for one in loads:
                one.kill()
                one.wait()
    return seen, reports


def tell(seen: Seen, reports: list[dict[str, Any]]) -> bool:
    """Print it; whether all is as it should be."""
    for at_s, kind, what in seen.moved_s:
        print(f"{at_s - seen.began_s:5.1f} s after the policy became adaptive: {kind} of {what}")
    last_s = max((at_s for at_s, _, _ in seen.moved_s), default=seen.began_s) - seen.began_s
    before, after = seen.mean_iops(0.0, seen.began_s), seen.mean_iops(seen.at_s[-1] - 15.0, seen.at_s[-1] + 1)
    good = all(one["ok"] and not one["errors"] for one in reports)
    print(f"I/O per second: {before:.0f} before, {after:.0f} in the last 15 s ({after / before:.2f} times)")
    print(f"settled: the last action was {last_s:.0f} s after the policy became adaptive")
    print(f"verified: {good}; longest pause: {max(one['longest_pause_s'] for one in reports):.3f} s")
    return good and last_s <= SETTLED_S


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=90.0)
    parser.add_argument("--rate", type=float, default=0.0, help="I/Os a second and session; 0 = unbounded")
    parser.add_argument("--depth", type=int, default=4, help="commands at a time, of each session")
    parser.add_argument("--data", choices=["each", "first"], default="each", help="the members that have the volumes")
    parser.add_argument("--cpu-share", type=float, default=0.0, metavar="PERCENT", help="of one CPU, for each member")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--quick", action="store_true", help="only some seconds, to see that it works")
    options = parser.parse_args()
    options.before = BEFORE_S
    if options.quick:
        options.before, options.seconds = QUICK_S, 2 * QUICK_S
    return options


def main() -> int:
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))  # so that nothing is left behind
    try:
        with tempfile.TemporaryDirectory() as place, running(Group(Path(place))) as group:
            seen, reports = run(group, options)
    except NoQuota as error:
        print(f"--cpu-share: {error}", file=sys.stderr)
        return 2
    if options.picture:
        draw(seen, options.picture)
    return 0 if tell(seen, reports) else 1


if __name__ == "__main__":
    sys.exit(main())
