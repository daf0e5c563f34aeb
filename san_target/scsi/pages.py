"""The layout of every page and parameter data header that this target builds, declared field by field.

INQUIRY data (SPC-4 6.6, 7.8; SBC-4 6.6), mode pages (SPC-4 7.5, SBC-4 6.5) and capacity data (SBC-4 5.20, 5.21). Field
names are the standards', in snake_case. Reserved bits are padding; fields that are always 0 here are constants.
"""

from typing import Any

from construct import (  # type: ignore[import-untyped]
    BitsInteger,
    BitStruct,
    Bytes,
    Bytewise,
    Flag,
    GreedyBytes,
    Int8ub,
    Int16ub,
    Int32ub,
    Padding,
    Prefixed,
    Struct,
)


def build(declaration: Any, values: dict[str, Any]) -> bytes:
    """The bytes of a declared page; every field that is not reserved must have a value."""
    built: bytes = declaration.build(values)
    return built


def _bits(name: str, width: int) -> Any:
    return name / BitsInteger(width)


def _reserved(bits: int) -> Any:
    return Padding(bits)


def _bytes(name: str, length: int) -> Any:
    return name / Bytewise(Bytes(length))


# --- INQUIRY ----------------------------------------------------------------------------------------------------------

# SPC-4 table 170; 96 bytes with the eight version descriptors
STANDARD_INQUIRY = BitStruct(
    _bits("peripheral_qualifier", 3),
    _bits("peripheral_device_type", 5),
    "rmb" / Flag,
    _reserved(7),
    _bits("version", 8),
    _reserved(2),
    "normaca" / Flag,
    "hisup" / Flag,
    _bits("response_data_format", 4),
    _bits("additional_length", 8),
    "sccs" / Flag,
    _reserved(1),
    _bits("tpgs", 2),
    "third_party_copy" / Flag,
    _reserved(2),
    "protect" / Flag,
    _reserved(1),
    "encserv" / Flag,
    _reserved(1),
    "multip" / Flag,
    _reserved(4),
    _reserved(6),
    "cmdque" / Flag,
    _reserved(1),
    _bytes("vendor_identification", 8),
    _bytes("product_identification", 16),
    _bytes("product_revision_level", 4),
    _reserved(20 * 8),
    _reserved(16),
    _bytes("version_descriptors", 16),
    _reserved(22 * 8),
)

# SPC-4 7.8.1: what every VPD page starts with
VPD_PAGE = Struct(
    "peripheral" / Int8ub,
    "page_code" / Int8ub,
    "content" / Prefixed(Int16ub, GreedyBytes),
)

# SPC-4 7.8.6.1
DESIGNATION_DESCRIPTOR = Struct(
    "codes"
    / BitStruct(
        _bits("protocol_identifier", 4),
        _bits("code_set", 4),
        "piv" / Flag,
        _reserved(1),
        _bits("association", 2),
        _bits("designator_type", 4),
    ),
    Padding(1),
    "designator" / Prefixed(Int8ub, GreedyBytes),
)

# SPC-4 7.8.7, after the header
EXTENDED_INQUIRY = BitStruct(
    _bits("activate_microcode", 2),
    _bits("spt", 3),
    "grd_chk" / Flag,
    "app_chk" / Flag,
    "ref_chk" / Flag,
    _reserved(2),
    "uask_sup" / Flag,
    "group_sup" / Flag,
    "prior_sup" / Flag,
    "headsup" / Flag,
    "ordsup" / Flag,
    "simpsup" / Flag,
    _reserved(4),
    "wu_sup" / Flag,
    "crd_sup" / Flag,
    "nv_sup" / Flag,
    "v_sup" / Flag,
    _reserved(3),
    "p_i_i_sup" / Flag,
    _reserved(3),
    "luiclr" / Flag,
    _reserved(56 * 8),
)

# SBC-4 6.6.4, after the header
BLOCK_LIMITS = BitStruct(
    _reserved(7),
    "wsnz" / Flag,
    _bits("maximum_compare_and_write_length", 8),
    _bits("optimal_transfer_length_granularity", 16),
    _bits("maximum_transfer_length", 32),
    _bits("optimal_transfer_length", 32),
    _bits("maximum_prefetch_length", 32),
    _bits("maximum_unmap_lba_count", 32),
    _bits("maximum_unmap_block_descriptor_count", 32),
    _bits("optimal_unmap_granularity", 32),
    "ugavalid" / Flag,
    _bits("unmap_granularity_alignment", 31),
    _bits("maximum_write_same_length", 64),
    _bits("maximum_atomic_transfer_length", 32),
    _bits("atomic_alignment", 32),
    _bits("atomic_transfer_length_granularity", 32),
    _bits("maximum_atomic_transfer_length_with_atomic_boundary", 32),
    _bits("maximum_atomic_boundary_size", 32),
)

# SBC-4 6.6.2, after the header
BLOCK_DEVICE_CHARACTERISTICS = BitStruct(
    _bits("medium_rotation_rate", 16),
    _bits("product_type", 8),
    _bits("wabereq", 2),
    _bits("wacereq", 2),
    _bits("nominal_form_factor", 4),
    _reserved(6),
    "fuab" / Flag,
    "vbuls" / Flag,
    _reserved(55 * 8),
)

# SBC-4 6.6.7, after the header
LOGICAL_BLOCK_PROVISIONING = BitStruct(
    _bits("threshold_exponent", 8),
    "lbpu" / Flag,
    "lbpws" / Flag,
    "lbpws10" / Flag,
    _bits("lbprz", 3),
    "anc_sup" / Flag,
    "dp" / Flag,
    _bits("minimum_percentage", 5),
    _bits("provisioning_type", 3),
    _bits("threshold_percentage", 8),
)

# --- Mode pages, from byte 2 (after page code and page length) --------------------------------------------------------

# SBC-4 6.5.6
CACHING_PAGE = BitStruct(
    "ic" / Flag,
    "abpf" / Flag,
    "cap" / Flag,
    "disc" / Flag,
    "size" / Flag,
    "wce" / Flag,
    "mf" / Flag,
    "rcd" / Flag,
    _reserved(8),
    _bits("disable_prefetch_transfer_length", 16),
    _bits("minimum_prefetch", 16),
    _bits("maximum_prefetch", 16),
    _bits("maximum_prefetch_ceiling", 16),
    "fsw" / Flag,
    "lbcss" / Flag,
    "dra" / Flag,
    _reserved(2),
    _bits("sync_prog", 2),
    "nv_dis" / Flag,
    _bits("number_of_cache_segments", 8),
    _bits("cache_segment_size", 16),
    _reserved(32),
)

# SPC-4 7.5.10
CONTROL_PAGE = BitStruct(
    _bits("tst", 3),
    "tmf_only" / Flag,
    "dpicz" / Flag,
    "d_sense" / Flag,
    "gltsd" / Flag,
    "rlec" / Flag,
    _bits("queue_algorithm_modifier", 4),
    "nuar" / Flag,
    _bits("qerr", 2),
    _reserved(1),
    "vs" / Flag,
    "rac" / Flag,
    _bits("ua_intlck_ctrl", 2),
    "swp" / Flag,
    _reserved(3),
    "ato" / Flag,
    "tas" / Flag,
    "atmpe" / Flag,
    "rwwp" / Flag,
    _reserved(1),
    _bits("autoload_mode", 3),
    _reserved(16),
    _bits("busy_timeout_period", 16),
    _bits("extended_self_test_completion_time", 16),
)

# SBC-4 6.5.8
INFORMATIONAL_EXCEPTIONS_PAGE = BitStruct(
    "perf" / Flag,
    _reserved(1),
    "ebf" / Flag,
    "ewasc" / Flag,
    "dexcpt" / Flag,
    "test" / Flag,
    "ebackerr" / Flag,
    "logerr" / Flag,
    _reserved(4),
    _bits("mrie", 4),
    _bits("interval_timer", 32),
    _bits("report_count", 32),
)

# SPC-4 7.5.5 and 7.5.6, SBC-4 6.5.2 and 6.5.3
SHORT_BLOCK_DESCRIPTOR = Struct("blocks" / Int32ub, Padding(1), "block_length" / Bytes(3))
LONG_BLOCK_DESCRIPTOR = BitStruct(_bits("blocks", 64), _reserved(32), _bits("block_length", 32))

# --- Parameter data of other commands ---------------------------------------------------------------------------------

# SBC-4 5.21.2
READ_CAPACITY_16 = BitStruct(
    _bits("returned_logical_block_address", 64),
    _bits("block_length", 32),
    _reserved(2),
    _bits("rc_basis", 2),
    _bits("p_type", 3),
    "prot_en" / Flag,
    _bits("p_i_exponent", 4),
    _bits("logical_blocks_per_physical_block_exponent", 4),
    "lbpme" / Flag,
    "lbprz" / Flag,
    _bits("lowest_aligned_logical_block_address", 14),
    _reserved(16 * 8),
)

# SPC-4 6.37.2, one group of one port
TARGET_PORT_GROUP = BitStruct(
    "pref" / Flag,
    _reserved(3),
    _bits("asymmetric_access_state", 4),
    "t_sup" / Flag,
    "o_sup" / Flag,
    _reserved(1),
    "lbd_sup" / Flag,
    "u_sup" / Flag,
    "s_sup" / Flag,
    "an_sup" / Flag,
    "ao_sup" / Flag,
    _bits("target_port_group", 16),
    _reserved(8),
    _bits("status_code", 8),
    _reserved(8),
    _bits("target_port_count", 8),
    _reserved(16),
    _bits("relative_target_port_identifier", 16),
)
