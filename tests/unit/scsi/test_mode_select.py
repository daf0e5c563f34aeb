"""MODE SELECT: what may be changed is, what may not is refused at its byte, and everybody is told."""

import pytest

from san_target.volume.device import Unavailable
from tests.unit.scsi.kit import (
    INVALID_FIELD_IN_CDB,
    INVALID_FIELD_IN_PARAMETER_LIST,
    PARAMETER_LIST_LENGTH_ERROR,
    Rig,
    cdb_10,
)

CACHING, CONTROL = 0x08, 0x0A


def page(rig: Rig, code: int, control: int = 0) -> bytearray:
    return bytearray(rig.good(bytes([0x1A, 8, control << 6 | code, 0, 0xFF, 0]))[4:])


def select_6(length: int, flags: int = 0x10) -> bytes:
    return bytes([0x15, flags, 0, 0, length, 0])


def parameter_list(*pages: bytes) -> bytes:
    return bytes(4) + b"".join(bytes(each) for each in pages)


def change(rig: Rig, code: int, byte: int, mask: int, on: bool) -> bytes:
    """A parameter list with one page, a bit of it set or cleared."""
    new = page(rig, code)
    new[byte] = new[byte] | mask if on else new[byte] & ~mask
    return parameter_list(new)


def apply(rig: Rig, data: bytes) -> None:
    rig.good(select_6(len(data)), data)


def test_write_cache_off_makes_the_cache_empty_and_later_writes_durable() -> None:
    rig = Rig()
    rig.good(cdb_10(0x2A, 5, 1), b"a" * 512)
    assert rig.device.durable == set()
    apply(rig, change(rig, CACHING, 2, 0x04, on=False))
    assert rig.device.durable == {5}
    assert not rig.nexus.may_write
    assert rig.nexus.may_read
    rig.good(cdb_10(0x2A, 6, 1), b"b" * 512)
    assert rig.device.durable == {5, 6}
    apply(rig, change(rig, CACHING, 2, 0x04, on=True))
    assert rig.nexus.may_write


def test_write_cache_off_is_in_force_even_if_the_flush_fails() -> None:
    rig = Rig()
    data = change(rig, CACHING, 2, 0x04, on=False)
    rig.device.failures.append(Unavailable("later"))
    assert rig.send(select_6(len(data)), data).status == 0x08
    assert page(rig, CACHING)[2] & 0x04 == 0


def test_write_through_cannot_be_undone_by_a_host() -> None:
    rig = Rig(write_through=True)
    data = change(rig, CACHING, 2, 0x04, on=True)
    found = rig.sense(select_6(len(data)), data)
    assert found[:3] == INVALID_FIELD_IN_PARAMETER_LIST
    assert found.specific == bytes.fromhex("8a 0006")  # byte 6 (4 of header + 2), bit 2


def test_descriptor_sense_holds_for_every_nexus() -> None:
    rig = Rig()
    other = rig.login("other")
    apply(rig, change(rig, CONTROL, 2, 0x04, on=True))
    for nexus in (rig.nexus, other):
        other.attentions.clear()
        assert rig.send(cdb_10(0x28, 1 << 20, 1), nexus=nexus).sense[0] == 0x72
    assert rig.login("third").d_sense
    apply(rig, change(rig, CONTROL, 2, 0x04, on=False))
    assert rig.send(cdb_10(0x28, 1 << 20, 1)).sense[0] & 0x7F == 0x70


def test_software_write_protect() -> None:
    rig = Rig()
    apply(rig, change(rig, CONTROL, 4, 0x08, on=True))
    assert rig.code(cdb_10(0x2A, 0, 1), b"a" * 512) == (0x7, 0x27, 0x02)
    assert rig.good("1a 08 0a 00 ff 00")[2] & 0x80  # WP
    assert not rig.nexus.may_write
    assert rig.device.written == {}
    apply(rig, change(rig, CONTROL, 4, 0x08, on=False))
    rig.good(cdb_10(0x2A, 0, 1), b"a" * 512)


def test_a_change_is_told_to_the_others_only() -> None:
    rig = Rig()
    other = rig.login("other")
    apply(rig, change(rig, CONTROL, 4, 0x08, on=True))
    assert list(rig.nexus.attentions) == []
    assert rig.code("00", nexus=other) == (0x6, 0x2A, 0x01)


def test_the_same_values_again_are_no_change() -> None:
    rig = Rig()
    other = rig.login("other")
    apply(rig, parameter_list(page(rig, CACHING), page(rig, CONTROL), page(rig, 0x1C)))
    assert list(other.attentions) == []


def test_reset_brings_the_defaults_back() -> None:
    rig = Rig()
    apply(rig, change(rig, CONTROL, 4, 0x08, on=True))
    rig.unit.reset()
    rig.nexus.attentions.clear()
    assert page(rig, CONTROL) == page(rig, CONTROL, control=2)
    rig.good(cdb_10(0x2A, 0, 1), b"a" * 512)


def test_two_pages_at_once_in_10() -> None:
    rig = Rig()
    caching, control = page(rig, CACHING), page(rig, CONTROL)
    caching[2] &= ~0x04
    control[4] |= 0x08
    data = bytes(8) + caching + control
    rig.good(bytes([0x55, 0x10, 0, 0, 0, 0, 0]) + len(data).to_bytes(2, "big") + b"\0", data)
    assert not rig.unit.parameters.write_cache_enabled
    assert rig.unit.parameters.write_protected


def test_nothing_changes_if_a_later_page_is_wrong() -> None:
    rig = Rig()
    control, caching = page(rig, CONTROL), page(rig, CACHING)
    control[4] |= 0x08
    caching[2] |= 0x01  # RCD cannot be set
    data = parameter_list(control, caching)
    found = rig.sense(select_6(len(data)), data)
    assert found[:3] == INVALID_FIELD_IN_PARAMETER_LIST
    assert found.specific == bytes.fromhex("88 0012")  # byte 4 + 12 + 2, bit 0
    assert not rig.unit.parameters.write_protected


@pytest.mark.parametrize("flags", [0x11, 0x00])
def test_saving_and_vendor_formats_are_not_supported(flags: int) -> None:
    rig = Rig()
    data = parameter_list(page(rig, CACHING))
    assert rig.code(select_6(len(data), flags), data) == INVALID_FIELD_IN_CDB


def test_no_parameter_list_is_no_error() -> None:
    assert Rig().good(select_6(0)) == b""


@pytest.mark.parametrize("cut", [1, 3, 5, 10, 23])
def test_truncated_lists(cut: int) -> None:
    rig = Rig()
    data = parameter_list(page(rig, CACHING))
    assert rig.code(select_6(cut), data[:cut]) == PARAMETER_LIST_LENGTH_ERROR  # a list that ends too early
    assert rig.code(select_6(len(data)), data[:cut]) == PARAMETER_LIST_LENGTH_ERROR  # data that did not arrive


def test_a_header_alone_changes_nothing() -> None:
    rig = Rig()
    before = rig.unit.parameters
    rig.good(select_6(4), bytes(4))
    assert rig.unit.parameters == before


def test_wrong_page_length_and_unknown_page() -> None:
    rig = Rig()
    wrong = page(rig, CACHING)
    wrong[1] = 10
    found = rig.sense(select_6(24), parameter_list(wrong))
    assert (found[:3], found.specific) == (INVALID_FIELD_IN_PARAMETER_LIST, bytes.fromhex("80 0005"))
    unknown = bytes([0x02, 2, 0, 0])
    found = rig.sense(select_6(8), parameter_list(unknown))
    assert (found[:3], found.specific) == (INVALID_FIELD_IN_PARAMETER_LIST, bytes.fromhex("80 0004"))


@pytest.mark.parametrize(
    ("descriptor", "byte"),
    [
        ("00000000 00 000200", None),
        ("00000800 00 000200", None),
        ("ffffffff 00 000200", None),
        ("00000801 00 000200", 4),
        ("00000800 00 001000", 9),
    ],
)
def test_a_block_descriptor_may_only_confirm(descriptor: str, byte: int | None) -> None:
    rig = Rig(blocks=0x800)
    data = bytes([0, 0, 0, 8]) + bytes.fromhex(descriptor)
    if byte is None:
        rig.good(select_6(len(data)), data)
    else:
        found = rig.sense(select_6(len(data)), data)
        assert (found[:3], found.specific) == (
            INVALID_FIELD_IN_PARAMETER_LIST,
            bytes([0x80]) + byte.to_bytes(2, "big"),
        )


def test_a_long_block_descriptor() -> None:
    rig = Rig(blocks=0x800)
    header = bytes([0, 0, 0, 0, 1, 0, 0, 16])
    right = header + (0x800).to_bytes(8, "big") + bytes(4) + (512).to_bytes(4, "big")
    cdb = bytes([0x55, 0x10, 0, 0, 0, 0, 0, 0, len(right), 0])
    rig.good(cdb, right)
    wrong = header + (0x801).to_bytes(8, "big") + bytes(4) + (512).to_bytes(4, "big")
    assert rig.code(cdb, wrong) == INVALID_FIELD_IN_PARAMETER_LIST
