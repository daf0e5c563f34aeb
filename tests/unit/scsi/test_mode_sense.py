"""MODE SENSE (6) and (10): headers, block descriptors, pages, and the four kinds of values."""

import pytest

from tests.unit.scsi.kit import INVALID_FIELD_IN_CDB, Rig

CACHING, CONTROL, EXCEPTIONS, ALL = 0x08, 0x0A, 0x1C, 0x3F
CURRENT, CHANGEABLE, DEFAULT, SAVED = range(4)


def sense_6(rig: Rig, page: int, control: int = CURRENT, dbd: bool = True, length: int = 0xFF) -> bytes:
    return rig.good(bytes([0x1A, 8 if dbd else 0, control << 6 | page, 0, length, 0]))


def pages_of(data: bytes, header: int = 4) -> dict[int, bytes]:
    """Page code -> page (with its two header bytes)."""
    found = {}
    while header < len(data):
        length = 2 + data[header + 1]
        found[data[header] & 0x3F] = data[header : header + length]
        header += length
    return found


def test_header_of_6() -> None:
    data = sense_6(Rig(), ALL)
    assert data[0] == len(data) - 1
    assert data[1] == 0
    assert data[2] == 0x10  # DPOFUA, not write protected
    assert data[3] == 0


def test_header_of_10() -> None:
    data = Rig().good("5a 08 3f 00 00 00 00 00 ff 00")
    assert int.from_bytes(data[:2], "big") == len(data) - 2
    assert data[3] == 0x10
    assert data[4:8] == bytes(4)


@pytest.mark.parametrize(("options", "protected"), [({}, False), ({"read_only": True}, True)])
def test_write_protect_bit(options: dict[str, bool], protected: bool) -> None:
    assert bool(sense_6(Rig(**options), CACHING)[2] & 0x80) == protected


def test_short_block_descriptor() -> None:
    data = sense_6(Rig(blocks=0x12345), CACHING, dbd=False)
    assert data[3] == 8
    assert data[4:12] == bytes.fromhex("00012345 00 000200")


def test_short_block_descriptor_of_a_volume_too_large_for_it() -> None:
    data = sense_6(Rig(blocks=1 << 33), CACHING, dbd=False)
    assert data[4:8] == b"\xff\xff\xff\xff"


def test_long_block_descriptor() -> None:
    data = Rig(blocks=1 << 33, block_size=4096).good("5a 10 08 00 00 00 00 00 ff 00")
    assert data[4] & 1  # LONGLBA
    assert int.from_bytes(data[6:8], "big") == 16
    assert data[8:24] == (1 << 33).to_bytes(8, "big") + bytes(4) + (4096).to_bytes(4, "big")


def test_all_pages_have_their_standard_length() -> None:
    lengths = {code: len(page) for code, page in pages_of(sense_6(Rig(), ALL)).items()}
    assert lengths == {CACHING: 20, CONTROL: 12, EXCEPTIONS: 12}


@pytest.mark.parametrize("subpage", [0x00, 0xFF])
def test_all_subpages_are_the_pages_themselves(subpage: int) -> None:
    rig = Rig()
    assert rig.good(bytes([0x1A, 8, ALL, subpage, 0xFF, 0])) == sense_6(rig, ALL)


@pytest.mark.parametrize(("write_through", "wce"), [(False, 0x04), (True, 0x00)])
def test_write_cache_follows_the_volume(write_through: bool, wce: int) -> None:
    rig = Rig(write_through=write_through)
    for control in (CURRENT, DEFAULT, CHANGEABLE):
        assert pages_of(sense_6(rig, CACHING, control))[CACHING][2] == wce


def test_changeable_control_bits_are_d_sense_and_swp_alone() -> None:
    page = pages_of(sense_6(Rig(), CONTROL, CHANGEABLE))[CONTROL]
    assert page == bytes.fromhex("0a 0a 04 00 08 00 0000 0000 0000")


def test_nothing_of_informational_exceptions_is_changeable() -> None:
    assert pages_of(sense_6(Rig(), EXCEPTIONS, CHANGEABLE))[EXCEPTIONS] == bytes.fromhex("1c 0a") + bytes(10)


def test_saved_values_are_not_kept() -> None:
    assert Rig().code(bytes([0x1A, 8, SAVED << 6 | ALL, 0, 0xFF, 0])) == (0x5, 0x39, 0x00)


@pytest.mark.parametrize("cdb", ["1a 08 02 00 ff 00", "1a 08 0a 01 ff 00", "5a 08 00 00 00 00 00 00 ff 00"])
def test_unknown_pages(cdb: str) -> None:
    assert Rig().code(cdb) == INVALID_FIELD_IN_CDB


@pytest.mark.parametrize("length", [0, 1, 4, 11, 48])
def test_allocation_length_cuts_but_the_header_tells_the_whole(length: int) -> None:
    rig = Rig()
    whole = sense_6(rig, ALL)
    assert sense_6(rig, ALL, length=length) == whole[:length]
