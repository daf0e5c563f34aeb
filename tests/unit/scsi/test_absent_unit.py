"""Commands to a logical unit number that is not there."""

import struct

import pytest

from san_target.scsi.command import CHECK_CONDITION, GOOD, Command, Outcome
from san_target.scsi.logical_unit import execute_without_unit
from san_target.scsi.nexus import Nexus
from tests.unit.scsi.kit import IQN, parse_sense


def send(cdb: str) -> Outcome:
    nexus = Nexus("iqn.2026-01.host:a", bytes(6), IQN, 1)
    return execute_without_unit(Command(nexus, bytes.fromhex(cdb).ljust(16, b"\0"), b"", lun=7), [IQN])


def test_inquiry_has_qualifier_3() -> None:
    outcome = send("12 00 00 00 ff 00")
    assert outcome.status == GOOD
    assert bytes(outcome.data_in)[0] == 0x7F
    assert len(bytes(outcome.data_in)) == 96
    assert len(bytes(send("12 00 00 00 05 00").data_in)) == 5
    assert parse_sense(send("12 01 00 00 ff 00").sense)[:3] == (0x5, 0x24, 0x00)


def test_report_luns_tells_what_there_is() -> None:
    assert bytes(send("a0 00 00 000000 00000040").data_in) == struct.pack(">I4xQ", 8, 0)


def test_request_sense() -> None:
    outcome = send("03 00 00 00 ff 00")
    assert outcome.status == GOOD
    assert parse_sense(bytes(outcome.data_in))[:3] == (0x5, 0x25, 0x00)
    assert bytes(send("03 01 00 00 ff 00").data_in)[0] == 0x72


@pytest.mark.parametrize("cdb", ["00", "28", "2a", "25", "5e", "c0", "ff"])
def test_anything_else(cdb: str) -> None:
    outcome = send(cdb)
    assert outcome.status == CHECK_CONDITION
    assert parse_sense(outcome.sense)[:3] == (0x5, 0x25, 0x00)
