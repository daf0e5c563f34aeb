"""What the device below reports, as hosts see it: sense codes that make them do the right thing."""

import pytest

from san_target.scsi.command import BUSY
from san_target.volume.device import MediumError, NotAtomic, OutOfSpace, Unavailable, VolumeError, WriteProtected
from tests.unit.scsi.kit import Rig, cdb_10, cdb_16

WRITE = cdb_10(0x2A, 5, 1)


@pytest.mark.parametrize(
    ("error", "code", "information"),
    [
        (OutOfSpace(), (0x7, 0x27, 0x07), None),
        (WriteProtected(), (0x7, 0x27, 0x00), None),
        (MediumError(7, "lost"), (0x3, 0x11, 0x00), 7),
        (NotAtomic("two owners"), (0x5, 0x24, 0x00), None),
        (MediumError(7, "lost", writing=True), (0x3, 0x0C, 0x00), 7),
    ],
)
@pytest.mark.parametrize(
    "cdb", [WRITE, cdb_16(0x93, 5, 1), cdb_10(0x35, 0, 1), cdb_10(0x28, 5, 1), cdb_16(0x8B, 5, 1), cdb_10(0x2E, 5, 1)]
)
def test_errors_become_sense(
    error: VolumeError, code: tuple[int, int, int], information: int | None, cdb: bytes
) -> None:
    rig = Rig()
    rig.device.failures.append(error)
    found = rig.sense(cdb, bytes(512))
    assert (found[:3], found.information) == (code, information)


def test_unavailable_is_busy_and_may_be_tried_again() -> None:
    rig = Rig()
    rig.device.failures.append(Unavailable("later"))
    outcome = rig.send(WRITE, b"a" * 512)
    assert (outcome.status, outcome.sense) == (BUSY, b"")
    rig.good(WRITE, b"a" * 512)


def test_a_bad_block_far_out_needs_descriptor_format() -> None:
    rig = Rig(blocks=1 << 40)
    rig.device.failures += [MediumError(1 << 33, "lost"), MediumError(1 << 33, "lost")]
    assert rig.sense(cdb_16(0x88, 1 << 33, 1)).information is None
    rig.unit.change_parameters(type(rig.unit.parameters)(write_cache_enabled=True, descriptor_sense=True))
    assert rig.sense(cdb_16(0x88, 1 << 33, 1)).information == 1 << 33


def test_an_error_of_ours_is_not_swallowed() -> None:
    rig = Rig()

    async def broken(lba: int, blocks: int) -> bytes:
        raise AssertionError("a defect")

    rig.device.read = broken  # type: ignore[method-assign]
    rig.device.at_once = False
    with pytest.raises(AssertionError, match="a defect"):
        rig.send(cdb_10(0x28, 5, 1))
