"""Run the protocol checks of `initiator-sim conformance` on a member and on tgt.

python -m tests.conformance.protocol                  both, as a table
python -m tests.conformance.protocol --write-docs     and write its part of docs/conformance.md
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.conformance.report import PROTOCOL_MARK, row, rule, write
from tests.support.member import Member
from tests.support.target import Volume, free_port
from tests.support.tgt import Tgt

COMMAND = Path(sys.executable).with_name("initiator-sim")
VOLUME_BYTES = 64 << 20
TIMEOUT_S = 300
SIGNS = {"passed": "yes", "failed": "**no**", "not applicable": "–"}

# Why a check does not apply to one member by itself, or to tgt.
REASONS = {
    "redirect-": "neither sends a login elsewhere: one member has nobody to send it to, and tgt does not redirect",
    "async-logout-ignored": "a member ends a session with event 3 at once; nothing makes tgt ask",
    "async-": "nothing makes tgt ask a session to leave",
    "tmf-query-task": "tgt agrees on iSCSIProtocolLevel 1",
    "group-preempt": "tgt has no PREEMPT AND ABORT",
    "group-mode-told": "tgt has no mode page that can be changed",
}

TEXT = """
`initiator-sim conformance` ({checks} checks, [how to use it](initiator-sim.md#conformance)) on one member and on
tgt 1.0.85, each with two portals and one volume. `yes` passes, `–` does not apply.

This part is written by `python -m tests.conformance.protocol --write-docs`; `make test` checks the same results.

"""

Found = dict[str, dict[str, Any]]


class Failure(Exception):
    """The command did not do its work."""


def run_checks(volume: Volume, *options: str) -> tuple[int, dict[str, Any]]:
    """Exit status and document of the command."""
    words = [str(COMMAND), "conformance", volume.portal, volume.iqn, "--lun", str(volume.lun), "--json", *options]
    done = subprocess.run(words, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    if done.returncode not in (0, 1) or not done.stdout:
        raise Failure(f"status {done.returncode}: {done.stderr}")
    return done.returncode, json.loads(done.stdout)


def on_member(directory: Path) -> tuple[int, dict[str, Any]]:
    """A member with two portals, which can be made to drop sessions."""
    second = f"127.0.0.1:{free_port()}"
    member = Member(directory, "--portal", second)
    member.start()
    try:
        volume = member.create_volume("checked", VOLUME_BYTES)
        return run_checks(volume, "--portal", second, "--api", member.api)
    finally:
        member.kill()


def on_tgt(directory: Path) -> tuple[int, dict[str, Any]]:
    """tgt with two portals."""
    tgt = Tgt(directory)
    tgt.start()
    try:
        second = tgt.add_portal()
        return run_checks(tgt.create_volume("checked", VOLUME_BYTES), "--portal", second)
    finally:
        tgt.kill()


def by_name(report: dict[str, Any]) -> Found:
    return {check["name"]: check for check in report["checks"]}


def names(report: dict[str, Any], verdict: str) -> set[str]:
    return {check["name"] for check in report["checks"] if check["verdict"] == verdict}


def reason(name: str) -> str:
    """The first of REASONS whose key the name begins with."""
    return next((text for key, text in REASONS.items() if name.startswith(key)), "unknown")


def document(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    """The second part of docs/conformance.md."""
    text = PROTOCOL_MARK + TEXT.format(checks=len(ours["checks"]))
    text += row(["target", "passed", "failed", "not applicable"]) + rule(4)
    for name, report in (("san-target", ours), ("tgt", theirs)):
        text += row([name, *(str(report[key]) for key in ("passed", "failed", "not_applicable"))])
    text += "\n" + row(["check", "what it wants", "section", "san-target", "tgt"]) + rule(5)
    other = by_name(theirs)
    for check in ours["checks"]:
        signs = [SIGNS[check["verdict"]], SIGNS[other[check["name"]]["verdict"]]]
        text += row([check["name"], check["title"], check["section"], *signs])
    not_applicable = [
        name for name in by_name(ours) if name in names(ours, "not applicable") | names(theirs, "not applicable")
    ]
    text += "\nWhat does not apply, and why:\n\n"
    reasons = dict.fromkeys(reason(name) for name in not_applicable)
    for why in reasons:
        text += f"- {', '.join(f'`{name}`' for name in not_applicable if reason(name) == why)}: {why}\n"
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write-docs", action="store_true")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="protocol-") as directory:
        status, ours = on_member(Path(directory) / "member")
        _, theirs = on_tgt(Path(directory) / "tgt")
    text = document(ours, theirs)
    print(text)
    for check in ours["checks"]:
        if check["verdict"] == "failed":
            print(f"{check['name']}: {check['seen']}; wanted: {check['wanted']}", file=sys.stderr)
    if options.write_docs:
        write(protocol=text)
    return status


if __name__ == "__main__":
    sys.exit(main())
