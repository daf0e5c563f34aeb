"""Captures of loopback traffic, taken by tcpdump while a test does something, and decoded by `initiator-sim pcap`."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from initiator_sim.packets import OPCODES
from tests.support.target import Volume, wait_for
from tests.support.tools import find

SIMULATOR = Path(sys.executable).with_name("initiator-sim")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may capture")
_END_S = 30


def _wait_until_written(file: Path) -> None:
    """Until the file has stopped growing: at its end tcpdump drops what it has not yet read from the kernel."""
    sizes = [-1, file.stat().st_size]
    while sizes[-1] != sizes[-2]:
        time.sleep(0.5)
        sizes.append(file.stat().st_size)


@contextlib.contextmanager
def captured(file: Path, portal: str) -> Iterator[None]:
    """Everything to and from a portal of this machine goes to `file`, whole, until the end of the block."""
    log = file.with_suffix(".log")
    port = portal.rpartition(":")[2]
    # Each packet takes a slot as large as the longest may be (64 KiB on loopback): so there are about a thousand.
    words = [find("tcpdump"), "-i", "lo", "-U", "--immediate-mode", "-s", "66000", "-B", "65536", "-w", str(file)]
    words += ["tcp", "port", port]
    with log.open("wb") as output:
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        wait_for(lambda: "listening on" in log.read_text() or process.poll() is not None, _END_S, "tcpdump listens")
        assert process.poll() is None, log.read_text()
        yield
        _wait_until_written(file)
        process.send_signal(signal.SIGINT)
        process.wait(_END_S)
        assert "\n0 packets dropped by kernel" in log.read_text(), log.read_text()
    finally:
        process.kill()
        process.wait()


def simulate(*words: str) -> str:
    done = subprocess.run([SIMULATOR, *words], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, f"{' '.join(words)}: status {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def decoded(file: Path, volume: Volume) -> list[dict[str, Any]]:
    """What `pcap` makes of a capture; AssertionError where anything in it is not understood."""
    found: list[dict[str, Any]] = json.loads(
        simulate("pcap", str(file), "--port", volume.portal.rpartition(":")[2], "--json")
    )
    assert found
    assert {pdu["pdu"] for pdu in found} <= set(OPCODES.values())
    assert not [pdu for pdu in found if "text" in pdu]
    assert not [pdu for pdu in found if "command" in pdu and pdu["command"].startswith("command ")]
    return found


def assert_whole_sessions(found: list[dict[str, Any]]) -> Counter[str]:
    """Every request of it has its answer. Returns how many there are of each PDU."""
    names = Counter(pdu["pdu"] for pdu in found)
    finals = sum(pdu["pdu"] == "SCSI Data-In" and pdu["fields"]["status_present"] for pdu in found)
    assert names["SCSI Command"] == names["SCSI Response"] + finals
    assert names["Login Request"] == names["Login Response"] > 0
    assert names["Logout Request"] == names["Logout Response"] > 0
    return names
