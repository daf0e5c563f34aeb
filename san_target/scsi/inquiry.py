"""INQUIRY: standard data and the vital product data pages (SPC-4 6.6 and 7.8, SBC-4 6.6)."""

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from san_target.scsi import pages
from san_target.scsi.command import Command, Outcome
from san_target.scsi.copy_results import third_party_copy_descriptors
from san_target.scsi.identity import PRODUCT, REVISION, VENDOR
from san_target.scsi.sense import invalid_field_in_cdb

if TYPE_CHECKING:
    from san_target.scsi.logical_unit import LogicalUnit

CONNECTED_BLOCK_DEVICE: Final = 0x00
NO_SUCH_UNIT: Final = 0x7F  # qualifier 3 (the target cannot have this unit), device type 1Fh: SPC-4 table 172
VERSION_SPC_4: Final = 6

# SPC-4 annex E.2: SAM-5, SPC-4, SBC-3, iSCSI (no version claimed of each)
VERSION_DESCRIPTORS: Final = struct.pack(">4H8x", 0x00A0, 0x0460, 0x04C0, 0x0960)

PROTOCOL_ISCSI: Final = 5
BINARY, ASCII, UTF_8 = 1, 2, 3
LOGICAL_UNIT, TARGET_PORT, TARGET_DEVICE = 0, 1, 2
T10_VENDOR, NAA, RELATIVE_TARGET_PORT, TARGET_PORT_GROUP, SCSI_NAME = 1, 3, 4, 5, 8

# One target port, one target port group: the same for every member, since both are part of what a host remembers.
RELATIVE_TARGET_PORT_IDENTIFIER: Final = 1

NON_ROTATING_MEDIUM: Final = 1
THIN_PROVISIONED: Final = 2


def inquiry(unit: "LogicalUnit", command: Command) -> Outcome:
    cdb = command.cdb
    allocation_length = _checked_allocation_length(cdb)
    if not cdb[1] & 1:
        return Outcome(data_in=standard_data(unit.removable)[:allocation_length])
    page = PAGES.get(cdb[2])
    if page is None:
        raise invalid_field_in_cdb(2)
    return Outcome(data_in=_vpd(cdb[2], page(unit))[:allocation_length])


def inquiry_without_unit(cdb: bytes) -> Outcome:
    """The answer for a LUN that does not exist: standard data with peripheral qualifier 3 (SPC-4 6.6.1)."""
    allocation_length = _checked_allocation_length(cdb)
    if cdb[1] & 1:
        raise invalid_field_in_cdb(1, 0)
    return Outcome(data_in=(bytes([NO_SUCH_UNIT]) + standard_data(False)[1:])[:allocation_length])


def _checked_allocation_length(cdb: bytes) -> int:
    if cdb[1] & 2:  # CMDDT of SPC-2: obsolete
        raise invalid_field_in_cdb(1, 1)
    if not cdb[1] & 1 and cdb[2]:  # a page code asks for EVPD
        raise invalid_field_in_cdb(2)
    return int.from_bytes(cdb[3:5], "big")


def standard_data(removable: bool) -> bytes:
    return pages.build(
        pages.STANDARD_INQUIRY,
        {
            "peripheral_qualifier": 0,
            "peripheral_device_type": CONNECTED_BLOCK_DEVICE,
            "rmb": removable,
            "version": VERSION_SPC_4,
            "normaca": False,
            "hisup": True,
            "response_data_format": 2,
            "additional_length": pages.STANDARD_INQUIRY.sizeof() - 5,
            "sccs": False,
            "tpgs": 1,  # implicit asymmetric access only: states never change on request
            "third_party_copy": True,
            "protect": False,
            "encserv": False,
            "multip": True,
            "cmdque": True,
            "vendor_identification": VENDOR,
            "product_identification": PRODUCT,
            "product_revision_level": REVISION,
            "version_descriptors": VERSION_DESCRIPTORS,
        },
    )


def _vpd(page_code: int, content: bytes) -> bytes:
    return pages.build(
        pages.VPD_PAGE, {"peripheral": CONNECTED_BLOCK_DEVICE, "page_code": page_code, "content": content}
    )


def _supported_pages(unit: "LogicalUnit") -> bytes:
    return bytes(sorted(PAGES))


def _unit_serial_number(unit: "LogicalUnit") -> bytes:
    return unit.identity.serial_number


def _device_identification(unit: "LogicalUnit") -> bytes:
    identity = unit.identity
    return b"".join(
        (
            _designator(BINARY, LOGICAL_UNIT, NAA, identity.naa),
            _designator(ASCII, LOGICAL_UNIT, T10_VENDOR, identity.t10_vendor_designator),
            _designator(
                BINARY, TARGET_PORT, RELATIVE_TARGET_PORT, struct.pack(">HH", 0, RELATIVE_TARGET_PORT_IDENTIFIER)
            ),
            _designator(BINARY, TARGET_PORT, TARGET_PORT_GROUP, struct.pack(">HH", 0, identity.portal_group_tag)),
            _designator(UTF_8, TARGET_PORT, SCSI_NAME, _name_string(identity.target_port)),
            _designator(UTF_8, TARGET_DEVICE, SCSI_NAME, _name_string(identity.target_name)),
        )
    )


def _name_string(name: str) -> bytes:
    # SPC-4 7.8.6.11: null-terminated, null-padded to a multiple of four bytes
    encoded = name.encode() + b"\0"
    return encoded + bytes(-len(encoded) % 4)


def _designator(code_set: int, association: int, designator_type: int, designator: bytes) -> bytes:
    names_port = association != LOGICAL_UNIT
    return pages.build(
        pages.DESIGNATION_DESCRIPTOR,
        {
            "codes": {
                "protocol_identifier": PROTOCOL_ISCSI if names_port else 0,
                "code_set": code_set,
                "piv": names_port,
                "association": association,
                "designator_type": designator_type,
            },
            "designator": designator,
        },
    )


def _extended_inquiry(unit: "LogicalUnit") -> bytes:
    return pages.build(
        pages.EXTENDED_INQUIRY,
        {
            "activate_microcode": 0,
            "spt": 0,
            "grd_chk": False,
            "app_chk": False,
            "ref_chk": False,
            "uask_sup": False,
            "group_sup": False,
            "prior_sup": False,
            "headsup": True,
            "ordsup": True,
            "simpsup": True,
            "wu_sup": False,
            "crd_sup": False,
            "nv_sup": False,
            "v_sup": not unit.write_through,
            "p_i_i_sup": False,
            "luiclr": True,
        },
    )


def _block_limits(unit: "LogicalUnit") -> bytes:
    limits = unit.limits
    # Zero where there is nothing to say: no atomic writes, or a unit of one block
    atomic_unit = limits.granularity if limits.atomic_blocks and limits.granularity > 1 else 0
    return pages.build(
        pages.BLOCK_LIMITS,
        {
            "wsnz": False,
            "maximum_compare_and_write_length": limits.compare_and_write,
            "optimal_transfer_length_granularity": limits.granularity,
            "maximum_transfer_length": limits.transfer,
            "optimal_transfer_length": limits.optimal_transfer,
            "maximum_prefetch_length": 0,
            "maximum_unmap_lba_count": limits.unmap,
            "maximum_unmap_block_descriptor_count": limits.unmap_descriptors,
            "optimal_unmap_granularity": limits.granularity,
            "ugavalid": True,
            "unmap_granularity_alignment": 0,
            "maximum_write_same_length": limits.write_same,
            "maximum_atomic_transfer_length": limits.atomic_blocks,
            "atomic_alignment": atomic_unit,
            "atomic_transfer_length_granularity": atomic_unit,
            "maximum_atomic_transfer_length_with_atomic_boundary": 0,
            "maximum_atomic_boundary_size": 0,
        },
    )


def _block_device_characteristics(unit: "LogicalUnit") -> bytes:
    return pages.build(
        pages.BLOCK_DEVICE_CHARACTERISTICS,
        {
            "medium_rotation_rate": NON_ROTATING_MEDIUM,
            "product_type": 0,
            "wabereq": 1,  # a read of a block never written or unmapped returns zeros
            "wacereq": 0,
            "nominal_form_factor": 0,
            "fuab": False,
            "vbuls": True,
        },
    )


def _logical_block_provisioning(unit: "LogicalUnit") -> bytes:
    return pages.build(
        pages.LOGICAL_BLOCK_PROVISIONING,
        {
            "threshold_exponent": 0,
            "lbpu": True,
            "lbpws": True,
            "lbpws10": False,  # see provisioning.py
            "lbprz": 1,
            "anc_sup": False,
            "dp": False,
            "minimum_percentage": 0,
            "provisioning_type": THIN_PROVISIONED,
            "threshold_percentage": 0,
        },
    )


def _third_party_copy(unit: "LogicalUnit") -> bytes:
    return third_party_copy_descriptors(unit.block_size)


PAGES: Final[dict[int, Callable[["LogicalUnit"], bytes]]] = {
    0x00: _supported_pages,
    0x80: _unit_serial_number,
    0x83: _device_identification,
    0x86: _extended_inquiry,
    0x8F: _third_party_copy,
    0xB0: _block_limits,
    0xB1: _block_device_characteristics,
    0xB2: _logical_block_provisioning,
}
