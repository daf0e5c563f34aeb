"""INQUIRY: standard data and VPD pages, read from the standard's drawings rather than by the code that built them."""

import pytest

from tests.unit.scsi.kit import INVALID_FIELD_IN_CDB, IQN, VOLUME_ID, Rig


def vpd(rig: Rig, page: int) -> bytes:
    """The content of a VPD page, its header checked."""
    data = rig.good(bytes([0x12, 1, page, 0xFF, 0xFF, 0]))
    assert data[0] == 0x00
    assert data[1] == page
    assert int.from_bytes(data[2:4], "big") == len(data) - 4
    return data[4:]


def test_standard_data() -> None:
    data = Rig().good("12 00 00 00 ff 00")
    assert len(data) == 96
    assert data[0] == 0  # connected, direct access
    assert data[1] & 0x80 == 0  # RMB
    assert data[2] == 6  # SPC-4
    assert data[3] == 0x12  # HISUP, response data format 2
    assert data[4] == 96 - 5
    assert data[5] == 0x18  # TPGS implicit, 3PC
    assert data[7] & 0x02  # CMDQUE
    assert data[8:16] == b"SANTGT  "
    versions = {int.from_bytes(data[at : at + 2], "big") for at in range(58, 74, 2)}
    assert versions >= {0x0460, 0x04C0, 0x0960}  # SPC-4, SBC-3, iSCSI


def test_removable_volume_says_so() -> None:
    assert Rig(removable=True).good("12 00 00 00 ff 00")[1] == 0x80


@pytest.mark.parametrize("length", [0, 1, 4, 5, 95, 96])
def test_allocation_length_cuts(length: int) -> None:
    rig = Rig()
    whole = rig.good("12 00 00 00 ff 00")
    assert rig.good(bytes([0x12, 0, 0, 0, length, 0])) == whole[:length]


def test_every_supported_page_can_be_read_and_is_listed_in_order() -> None:
    rig = Rig()
    pages = vpd(rig, 0)
    assert list(pages) == sorted(pages)
    assert set(pages) >= {0x00, 0x80, 0x83, 0x86, 0xB0, 0xB1, 0xB2}
    for page in pages:
        vpd(rig, page)


def test_unknown_page_and_wrong_bits() -> None:
    rig = Rig()
    unknown = rig.sense("12 01 b9 00 ff 00")
    assert unknown[:3] == INVALID_FIELD_IN_CDB
    assert unknown.specific == bytes.fromhex("c0 0002")
    assert rig.code("12 00 80 00 ff 00") == INVALID_FIELD_IN_CDB  # a page code without EVPD
    assert rig.code("12 02 00 00 ff 00") == INVALID_FIELD_IN_CDB  # CMDDT


def test_serial_number_is_the_volume_id() -> None:
    assert vpd(Rig(), 0x80) == VOLUME_ID.encode()


def descriptors(content: bytes) -> list[tuple[int, int, int, bytes]]:
    """(code set, association, type, designator) of page 83h."""
    found = []
    while content:
        length = content[3]
        found.append((content[0] & 0x0F, content[1] >> 4 & 3, content[1] & 0x0F, content[4 : 4 + length]))
        if content[1] >> 4 & 3:
            assert content[1] & 0x80  # PIV
            assert content[0] >> 4 == 5  # iSCSI
        content = content[4 + length :]
    return found


def test_device_identification() -> None:
    rig = Rig()
    found = descriptors(vpd(rig, 0x83))
    by_kind = {(association, kind): designator for _, association, kind, designator in found}
    naa = by_kind[0, 3]
    assert len(naa) == 16
    assert naa[0] >> 4 == 6
    assert naa.hex().endswith(VOLUME_ID[:25])
    assert naa == rig.unit.identity.naa
    assert by_kind[0, 1] == b"SANTGT  " + VOLUME_ID.encode()
    assert by_kind[1, 4] == bytes.fromhex("00000001")
    assert by_kind[1, 5] == bytes.fromhex("00000001")
    assert by_kind[1, 8].rstrip(b"\0") == f"{IQN},t,0x0001".encode()
    assert by_kind[2, 8].rstrip(b"\0") == IQN.encode()
    for _, _, kind, designator in found:
        if kind == 8:
            assert len(designator) % 4 == 0
            assert designator.endswith(b"\0")


def test_two_volumes_have_different_designators() -> None:
    one, other = Rig(), Rig()
    object.__setattr__(other.unit.identity, "volume_id", "1" + VOLUME_ID[1:])
    assert one.unit.identity.naa != other.unit.identity.naa
    assert vpd(one, 0x83) != vpd(other, 0x83)


@pytest.mark.parametrize(("block_size", "granularity"), [(512, 8), (4096, 1)])
def test_block_limits(block_size: int, granularity: int) -> None:
    content = vpd(Rig(block_size=block_size), 0xB0)
    assert len(content) == 0x3C
    word = [int.from_bytes(content[at : at + 4], "big") for at in range(0, 60, 4)]
    assert content[0] & 1 == 0  # WSNZ: a number of 0 means up to the end
    assert content[1] == 1  # MAXIMUM COMPARE AND WRITE LENGTH
    assert int.from_bytes(content[2:4], "big") == granularity
    assert word[1] == (8 << 20) // block_size  # MAXIMUM TRANSFER LENGTH
    assert word[2] == (1 << 20) // block_size  # OPTIMAL TRANSFER LENGTH
    assert 0 < word[4] <= 1 << 20  # MAXIMUM UNMAP LBA COUNT
    assert word[5] == 256  # MAXIMUM UNMAP BLOCK DESCRIPTOR COUNT
    assert word[6] == granularity  # OPTIMAL UNMAP GRANULARITY
    assert word[7] == 0x80000000  # UGAVALID, alignment 0
    assert int.from_bytes(content[32:40], "big") == 0xFFFF  # MAXIMUM WRITE SAME LENGTH
    assert word[10:] == [0, 0, 0, 0, 0]  # no atomic writes


def test_block_limits_of_an_atomic_device() -> None:
    content = vpd(Rig(atomic_blocks_max=256), 0xB0)
    word = [int.from_bytes(content[at : at + 4], "big") for at in range(40, 60, 4)]
    assert word == [256, 8, 8, 0, 0]


def test_block_limits_of_an_atomic_device_with_large_blocks() -> None:
    content = vpd(Rig(atomic_blocks_max=256, block_size=4096), 0xB0)
    word = [int.from_bytes(content[at : at + 4], "big") for at in range(40, 60, 4)]
    assert word == [256, 0, 0, 0, 0]


def test_an_atomic_maximum_never_exceeds_the_transfer_maximum() -> None:
    content = vpd(Rig(atomic_blocks_max=1 << 30), 0xB0)
    assert content[40:44] == content[4:8]


def test_characteristics_and_provisioning() -> None:
    rig = Rig()
    assert int.from_bytes(vpd(rig, 0xB1)[:2], "big") == 1  # not rotating
    content = vpd(rig, 0xB2)
    assert content[1] & 0xE0 == 0xC0  # LBPU, LBPWS, not LBPWS10
    assert content[1] >> 2 & 7 == 1  # LBPRZ: zeros
    assert content[1] & 0x02 == 0  # ANC_SUP
    assert content[2] & 7 == 2  # thin provisioned


def test_volatile_cache_is_told_unless_writes_go_through() -> None:
    assert vpd(Rig(), 0x86)[2] & 1
    assert not vpd(Rig(write_through=True), 0x86)[2] & 1
