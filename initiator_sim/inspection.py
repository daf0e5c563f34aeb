"""Looking at a disk: who it is, how large, what it supports, who holds reservations."""

from typing import Any, Final

from initiator_sim import cdb as cdbs
from initiator_sim.client import Disk, ScsiError

DEVICE_TYPES: Final = {0x00: "disk", 0x01: "tape", 0x05: "CD/DVD", 0x0C: "controller", 0x1F: "none"}
VERSIONS: Final = {4: "SPC-2", 5: "SPC-3", 6: "SPC-4", 7: "SPC-5"}
RESERVATION_TYPES: Final = {
    1: "Write Exclusive",
    3: "Exclusive Access",
    5: "Write Exclusive, registrants only",
    6: "Exclusive Access, registrants only",
    7: "Write Exclusive, all registrants",
    8: "Exclusive Access, all registrants",
}
PAGE_NAMES: Final = {
    0x00: "supported pages",
    0x80: "unit serial number",
    0x83: "device identification",
    0x86: "extended inquiry",
    0x8F: "third party copy",
    0xB0: "block limits",
    0xB1: "block device characteristics",
    0xB2: "logical block provisioning",
}
MODE_PAGE_NAMES: Final = {
    0x01: "read-write error recovery",
    0x02: "disconnect-reconnect",
    0x08: "caching",
    0x0A: "control",
    0x1C: "informational exceptions",
}
PROVISIONING: Final = {0: "full", 1: "resource", 2: "thin"}
_DESIGNATORS: Final = {
    0: "vendor",
    1: "T10",
    2: "EUI-64",
    3: "NAA",
    4: "relative port",
    5: "port group",
    8: "SCSI name",
}
_ALUA: Final = {0: "active/optimized", 1: "active/non-optimized", 2: "standby", 3: "unavailable", 15: "transitioning"}


async def inspect(disk: Disk) -> dict[str, Any]:
    """All that the disk says about itself, as one JSON document; what it does not support is left out."""
    inquiry = await disk.execute(cdbs.inquiry(), read_bytes=255)
    found: dict[str, Any] = {
        "lun": disk.lun,
        "luns": await disk.luns(),
        "inquiry": standard_inquiry(inquiry),
        "capacity": capacity(await disk.execute(cdbs.read_capacity16(), read_bytes=32)),
        "vpd": await _pages(disk),
        "mode": await _mode(disk),
    }
    for name, look in (
        ("reservations", _reservations),
        ("port_groups", _port_groups),
        ("commands", _commands),
    ):
        try:
            found[name] = await look(disk)
        except ScsiError as error:
            found[name] = {"error": str(error)}
    return found


def _text(data: bytes) -> str:
    return data.decode("ascii", "replace").strip(" \0")


def standard_inquiry(data: bytes) -> dict[str, Any]:
    """SPC-4 6.4.2."""
    return {
        "device_type": DEVICE_TYPES.get(data[0] & 0x1F, f"type {data[0] & 0x1F:02x}h"),
        "vendor": _text(data[8:16]),
        "product": _text(data[16:32]),
        "revision": _text(data[32:36]),
        "version": VERSIONS.get(data[2], f"{data[2]:02x}h"),
        "removable": bool(data[1] & 0x80),
        "implicit_alua": bool(data[5] & 0x10),
        "explicit_alua": bool(data[5] & 0x20),
        "third_party_copy": bool(data[5] & 0x08),
        "command_queuing": bool(data[7] & 0x02),
    }


def capacity(data: bytes) -> dict[str, Any]:
    """SBC-3 5.16.2, READ CAPACITY (16)."""
    blocks, block_bytes = int.from_bytes(data[:8], "big") + 1, int.from_bytes(data[8:12], "big")
    return {
        "blocks": blocks,
        "block_bytes": block_bytes,
        "size_bytes": blocks * block_bytes,
        "physical_block_bytes": block_bytes << (data[13] & 0x0F),
        "provisioned_thin": bool(data[14] & 0x80),
        "unmapped_reads_zero": bool(data[14] & 0x40),
    }


async def _pages(disk: Disk) -> dict[str, Any]:
    supported = await disk.execute(cdbs.inquiry(0x00), read_bytes=255)
    pages: dict[str, Any] = {}
    for page in supported[4 : 4 + int.from_bytes(supported[2:4], "big")]:
        data = await disk.execute(cdbs.inquiry(page, 4096), read_bytes=4096)
        decode = _PAGES.get(page)
        content = data[4 : 4 + int.from_bytes(data[2:4], "big")]
        pages[f"{page:02x}h"] = {
            "name": PAGE_NAMES.get(page, "unknown"),
            "value": decode(content) if decode else content.hex(" "),
        }
    return pages


def _supported(content: bytes) -> list[str]:
    return [f"{page:02x}h" for page in content]


def designators(content: bytes) -> list[dict[str, str]]:
    """SPC-4 7.8.6: the designation descriptors of page 83h."""
    found = []
    while len(content) >= 4:
        length = content[3]
        value = content[4 : 4 + length]
        readable = content[0] & 0x0F in (2, 3)
        found.append(
            {
                "of": ("logical unit", "target port", "target device", "?")[content[1] >> 4 & 3],
                "type": _DESIGNATORS.get(content[1] & 0x0F, f"type {content[1] & 0x0F}"),
                "value": _text(value) if readable else value.hex(),
            }
        )
        content = content[4 + length :]
    return found


def _block_limits(content: bytes) -> dict[str, int]:
    """SBC-3 6.5.3; offsets count from the page's byte 4."""

    def number(start: int, length: int) -> int:
        return int.from_bytes(content[start - 4 : start - 4 + length], "big")

    return {
        "compare_and_write_blocks_max": number(5, 1),
        "optimal_transfer_granularity_blocks": number(6, 2),
        "transfer_blocks_max": number(8, 4),
        "optimal_transfer_blocks": number(12, 4),
        "unmap_blocks_max": number(20, 4),
        "unmap_descriptors_max": number(24, 4),
        "optimal_unmap_granularity_blocks": number(28, 4),
        "write_same_blocks_max": number(36, 8),
        "atomic_transfer_blocks_max": number(44, 4),
    }


def _characteristics(content: bytes) -> dict[str, Any]:
    rate = int.from_bytes(content[:2], "big")
    return {"rotation": {0: "not reported", 1: "none (solid state)"}.get(rate, f"{rate} rpm")}


def _provisioning(content: bytes) -> dict[str, Any]:
    return {
        "type": PROVISIONING.get(content[2] & 0x07, f"{content[2] & 0x07}"),
        "unmap": bool(content[1] & 0x80),
        "write_same_16": bool(content[1] & 0x40),
        "write_same_10": bool(content[1] & 0x20),
        "unmapped_reads_zero": bool(content[1] & 0x04),
    }


_PAGES: Final[dict[int, Any]] = {
    0x00: _supported,
    0x80: _text,
    0x83: designators,
    0xB0: _block_limits,
    0xB1: _characteristics,
    0xB2: _provisioning,
}


async def _mode(disk: Disk) -> dict[str, Any]:
    try:
        data = await disk.execute(cdbs.mode_sense10(), read_bytes=4096)
    except ScsiError as error:
        return {"error": str(error)}
    end = int.from_bytes(data[:2], "big") + 2
    found: dict[str, Any] = {"write_protected": bool(data[3] & 0x80), "pages": {}}
    at = 8 + int.from_bytes(data[6:8], "big")
    while at + 2 <= min(end, len(data)):
        page, length = data[at] & 0x3F, data[at + 1]
        content = data[at + 2 : at + 2 + length]
        found["pages"][f"{page:02x}h"] = {
            "name": MODE_PAGE_NAMES.get(page, "unknown"),
            "value": content.hex(" "),
        }
        if page == 0x08 and content:
            found["write_cache_enabled"] = bool(content[0] & 0x04)
        at += 2 + length
    return found


async def _reservations(disk: Disk) -> dict[str, Any]:
    keys = await disk.execute(cdbs.persistent_reserve_in(0), read_bytes=4096)
    held = await disk.execute(cdbs.persistent_reserve_in(1), read_bytes=4096)
    length = int.from_bytes(keys[4:8], "big")
    found: dict[str, Any] = {
        "generation": int.from_bytes(keys[:4], "big"),
        "keys": ["0x" + keys[start : start + 8].hex() for start in range(8, min(8 + length, len(keys)), 8)],
        "reservation": None,
    }
    if int.from_bytes(held[4:8], "big") >= 16:
        kind = held[21] & 0x0F
        found["reservation"] = {"key": "0x" + held[8:16].hex(), "type": RESERVATION_TYPES.get(kind, f"type {kind}")}
    return found


async def _port_groups(disk: Disk) -> list[dict[str, Any]]:
    """SPC-4 6.37."""
    data = await disk.execute(cdbs.report_target_port_groups(), read_bytes=4096)
    found = []
    at, end = 4, 4 + int.from_bytes(data[:4], "big")
    while at + 8 <= min(end, len(data)):
        ports = data[at + 7]
        found.append(
            {
                "group": int.from_bytes(data[at + 2 : at + 4], "big"),
                "state": _ALUA.get(data[at] & 0x0F, f"state {data[at] & 0x0F}"),
                "preferred": bool(data[at] & 0x80),
                "ports": [
                    int.from_bytes(data[at + 10 + 4 * index : at + 12 + 4 * index], "big") for index in range(ports)
                ],
            }
        )
        at += 8 + 4 * ports
    return found


async def _commands(disk: Disk) -> list[str]:
    """SPC-4 6.35.2: operation codes, with service actions where there are some."""
    data = await disk.execute(cdbs.report_supported_opcodes(), read_bytes=16384)
    found = []
    at, end = 4, 4 + int.from_bytes(data[:4], "big")
    while at + 8 <= min(end, len(data)):
        name = f"{data[at]:02x}h"
        if data[at + 5] & 0x01:
            name += f"/{int.from_bytes(data[at + 2 : at + 4], 'big'):02x}h"
        found.append(name)
        at += 8 + (12 if data[at + 5] & 0x02 else 0)
    return found
