"""A picture of a run: throughput and latency over time, with every move and loss marked. Needs the extra `plot`."""

from pathlib import Path
from typing import Any, Final

MARKS: Final = {
    "moved": ("move", "tab:purple"),
    "migrated": ("data migrated", "tab:cyan"),
    "back": ("logged in again", "tab:orange"),
    "lost": ("connection lost", "tab:red"),
    "failed": ("path given up", "black"),
    "timed_out": ("command without an answer", "tab:brown"),
}
"""Kind of event -> its name in the legend, and its colour."""
SUFFIXES: Final = (".svg", ".png")


def is_available() -> bool:
    """True where matplotlib is installed."""
    from importlib.util import find_spec

    return find_spec("matplotlib") is not None


def plot(report: dict[str, Any], file: Path) -> None:
    """Draw a report of `run` into `file` (.svg or .png). Raises OSError where it cannot be written."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    intervals = report["intervals"]
    at_s = [one["at_s"] for one in intervals]
    figure, (upper, lower) = pyplot.subplots(2, 1, sharex=True, figsize=(10, 6), layout="constrained")
    upper.step(at_s, [one["iops"] for one in intervals], where="pre", color="tab:blue")
    upper.set_ylabel("IOPS")
    upper.set_ylim(bottom=0)
    upper.set_title(
        f"{report['iqn']}: {report['workload']}, {report['block_bytes']} bytes, depth {report['depth']}, "
        f"{report['sessions']} session(s)",
        fontsize="medium",
    )
    for key, label, colour in (("p50_us", "p50", "tab:green"), ("p99_us", "p99", "tab:red")):
        lower.step(at_s, [one[key] / 1000 for one in intervals], where="pre", color=colour, label=label)
    lower.set_ylabel("latency, ms")
    lower.set_xlabel("seconds")
    lower.set_yscale("log")
    marked = set()
    for event in report["events"]:
        if event["kind"] not in MARKS:
            continue
        label, colour = MARKS[event["kind"]]
        for axes in (upper, lower):
            named = label if axes is upper and label not in marked else None
            axes.axvline(event["at_s"], color=colour, linestyle=":", linewidth=1, label=named)
        marked.add(label)
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="lower right", fontsize="small")
    figure.savefig(file)
    pyplot.close(figure)
