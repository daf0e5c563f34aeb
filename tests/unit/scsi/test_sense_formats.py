"""Sense data in both formats, byte by byte (SPC-4 4.5.2, 4.5.3)."""

import pytest

from san_target.scsi import sense
from san_target.scsi.sense import CheckCondition, invalid_field_in_cdb, invalid_field_in_parameter_list


def test_fixed_format_without_information() -> None:
    assert CheckCondition(sense.INVALID_OPERATION_CODE).sense(False) == bytes.fromhex(
        "70 00 05 00000000 0a 00000000 20 00 00 000000"
    )


def test_fixed_format_with_information_sets_valid() -> None:
    found = CheckCondition(sense.UNRECOVERED_READ_ERROR, information=0x01020304).sense(False)
    assert found == bytes.fromhex("f0 00 03 01020304 0a 00000000 11 00 00 000000")


def test_fixed_format_cannot_tell_an_address_of_more_than_32_bits() -> None:
    found = CheckCondition(sense.UNRECOVERED_READ_ERROR, information=1 << 32).sense(False)
    assert found[0] == 0x70
    assert found[3:7] == bytes(4)


def test_descriptor_format_tells_64_bits() -> None:
    found = CheckCondition(sense.UNRECOVERED_READ_ERROR, information=1 << 40).sense(True)
    assert found == bytes.fromhex("72 03 11 00 000000 0c  00 0a 80 00 0000010000000000")


def test_descriptor_format_without_anything_more() -> None:
    assert CheckCondition(sense.NO_SENSE).sense(True) == bytes.fromhex("72 00 00 00 000000 00")


@pytest.mark.parametrize(
    ("error", "specific"),
    [
        (invalid_field_in_cdb(2), "c0 0002"),
        (invalid_field_in_cdb(1, 7), "cf 0001"),
        (invalid_field_in_parameter_list(260, 0), "88 0104"),
        (CheckCondition(sense.NOT_READY_SANITIZE_IN_PROGRESS, progress=0.5), "80 8000"),
        (CheckCondition(sense.NOT_READY_SANITIZE_IN_PROGRESS, progress=1.0), "80 ffff"),
        (CheckCondition(sense.NOT_READY_SANITIZE_IN_PROGRESS, progress=0.0), "80 0000"),
    ],
)
def test_sense_key_specific_bytes(error: CheckCondition, specific: str) -> None:
    wanted = bytes.fromhex(specific)
    assert error.sense(False)[15:18] == wanted
    assert error.sense(True)[8:] == bytes.fromhex("02 06 0000") + wanted + b"\0"


def test_outcome_of_a_condition() -> None:
    outcome = invalid_field_in_cdb(2).outcome(descriptor_format=True)
    assert (outcome.status, bytes(outcome.data_in)) == (2, b"")
    assert outcome.sense[0] == 0x72
