"""libiscsi's small tools, as an administrator's first look at a target."""

from __future__ import annotations

import re

import pytest

from tests.support.target import Options, Target
from tests.support.tools import run

pytestmark = pytest.mark.tool("iscsi-ls", "iscsi-inq", "iscsi-readcapacity16")

MIB = 1 << 20


def test_iscsi_ls_lists_targets_and_logical_units(target: Target) -> None:
    """iscsi-ls rounds down what lies *before* the last block, so it shows 16 MiB as 15M."""
    volumes = [target.create_volume("one", 16 * MIB), target.create_volume("two", 3072 * MIB)]
    output = run(["iscsi-ls", "-s", f"iscsi://{target.portal}"])
    for volume in volumes:
        assert re.search(rf"Target:{re.escape(volume.iqn)} Portal:{re.escape(target.portal)},\d+\n", output), output
    assert re.search(r"Lun:\d\s+Type:DIRECT_ACCESS \(Size:15M\)", output), output
    assert re.search(r"Lun:\d\s+Type:DIRECT_ACCESS \(Size:2G\)", output), output


@pytest.mark.parametrize("block_size", [512, 4096])
def test_iscsi_readcapacity16_tells_size_and_block_size(target: Target, block_size: int) -> None:
    volume = target.create_volume("sized", 100 * MIB, Options(block_size=block_size))
    output = run(["iscsi-readcapacity16", volume.url])
    assert f"RETURNED LOGICAL BLOCK ADDRESS:{100 * MIB // block_size - 1}\n" in output
    assert f"LOGICAL BLOCK LENGTH IN BYTES:{block_size}\n" in output
    assert "LBPME:1" in output, "the volume does not say that it is thin"
    assert run(["iscsi-readcapacity16", "-s", volume.url]).strip() == str(100 * MIB)


def test_iscsi_inq_shows_a_disk(target: Target) -> None:
    volume = target.create_volume("disk", 16 * MIB)
    output = run(["iscsi-inq", volume.url])
    assert "Peripheral Device Type:DIRECT_ACCESS" in output
    assert "Removable:0" in output


def test_iscsi_inq_shows_a_removable_medium(target: Target) -> None:
    volume = target.create_volume("medium", 16 * MIB, Options(removable=True))
    assert "Removable:1" in run(["iscsi-inq", volume.url])


@pytest.mark.parametrize(
    ("page", "said"),
    [
        (0x00, "Page:0x83"),
        (0x80, "Unit Serial Number:["),
        (0x83, "Association:(0) LOGICAL_UNIT"),
        (0xB0, "maximum unmap block descriptor count:"),
        (0xB1, "Medium Rotation Rate:"),
        (0xB2, "lbpu:1"),
    ],
)
def test_iscsi_inq_reads_the_vital_product_data(target: Target, page: int, said: str) -> None:
    volume = target.create_volume("pages", 16 * MIB)
    assert said in run(["iscsi-inq", "-e", "1", "-c", str(page), volume.url])
