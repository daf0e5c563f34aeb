"""Who a logical unit is: the names and numbers that hosts know it by (SPC-4 7.8.6)."""

from dataclasses import dataclass

VENDOR = b"SANTGT  "
PRODUCT = b"SAN-TARGET DISK "
REVISION = b"0001"

# NAA 6 carries an IEEE company identifier. This project owns none, so it uses one with the "locally administered" bit
# set (the second bit of the first byte): such numbers are never assigned to a company (IEEE 802 section 8.2).
COMPANY_ID = 0x02534E


@dataclass(frozen=True, slots=True)
class Identity:
    """volume_id: 32 hex digits, unique for ever; the serial number and the NAA designator are derived from it.

    target_name is the iSCSI name of the target that serves the unit as LUN 0, portal_group_tag the tag of its group.
    """

    volume_id: str
    target_name: str
    portal_group_tag: int = 1
    name: str = ""

    @property
    def naa(self) -> bytes:
        """NAA IEEE Registered Extended, 16 bytes: 6h, company (24 bits), the first 100 bits of the volume id."""
        return bytes.fromhex(f"6{COMPANY_ID:06x}{self.volume_id[:25]}")

    @property
    def serial_number(self) -> bytes:
        return self.volume_id.encode("ascii")

    @property
    def t10_vendor_designator(self) -> bytes:
        """VENDOR IDENTIFICATION and a vendor specific identifier (SPC-4 7.8.6.4)."""
        return VENDOR + self.serial_number

    @property
    def target_port(self) -> str:
        """The SCSI port name of the target port (RFC 7143 4.4.1)."""
        return f"{self.target_name},t,0x{self.portal_group_tag:04x}"
