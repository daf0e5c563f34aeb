"""`initiator-sim pcap` on captures of real conversations with a member: every byte of them is understood."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.captures import assert_whole_sessions, captured, decoded, needs_root, simulate
from tests.support.member import Member
from tests.support.target import Volume
from tests.support.tools import run

MIB = 1 << 20

pytestmark = [pytest.mark.tool("tcpdump"), pytest.mark.slow, needs_root]


@pytest.mark.tool("qemu-img", "qemu-iscsi")
def test_qemu_img(member: Member, tmp_path: Path) -> None:
    """An image goes in with immediate, unsolicited and solicited data, and comes out in Data-Ins."""
    volume = member.create_volume("image", 4 * MIB)
    image = tmp_path / "image"
    image.write_bytes(random.Random(5).randbytes(4 * MIB))
    with captured(tmp_path / "capture.pcap", volume.portal):
        run(["qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", image, volume.url])
        run(["qemu-img", "compare", "-f", "raw", "-F", "raw", image, volume.url])
    found = decoded(tmp_path / "capture.pcap", volume)
    names = assert_whole_sessions(found)
    assert names["SCSI Data-Out"]
    assert names["Ready To Transfer"]
    sent = {pdu["command"].partition(" LBA")[0] for pdu in found if "command" in pdu}
    assert {"WRITE(10)", "READ(10)"} <= sent or {"WRITE(16)", "READ(16)"} <= sent


def look_around(volume: Volume) -> None:
    simulate("discover", volume.portal)
    simulate("inspect", volume.portal, volume.iqn)


def load(*options: str) -> Callable[[Volume], None]:
    def run_load(volume: Volume) -> None:
        usual = ("--workload", "randrw", "--block", "64k", "--rate", "100", "--seconds", "1", "--verify", "--json")
        simulate("run", volume.portal, volume.iqn, *usual, *options)

    return run_load


@pytest.mark.parametrize(
    "visit",
    [
        pytest.param(look_around, id="discover and inspect"),
        pytest.param(load("--digest", "none"), id="load"),
        pytest.param(load("--digest", "both", "--sessions", "2"), id="load with digests"),
        pytest.param(load("--personality", "windows", "--discard-share", "0.2"), id="load like Windows"),
    ],
)
def test_our_own_initiator(member: Member, tmp_path: Path, visit: Callable[[Volume], None]) -> None:
    volume = member.create_volume("load", 16 * MIB)
    with captured(tmp_path / "capture.pcap", volume.portal):
        visit(volume)
    assert_whole_sessions(decoded(tmp_path / "capture.pcap", volume))
