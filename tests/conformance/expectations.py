"""What iscsi-test-cu is expected to find on san-target.

No test may fail anywhere. A test passes on at least one kind of volume, or stands here with the reason why not.
"""

from __future__ import annotations

ONE_BLOCK_PER_PHYSICAL_BLOCK = (
    "Needs a physical block of several logical blocks. A volume has none to show: any logical block may be written "
    "alone at no extra cost."
)
NO_CRYPTO_ERASE = (
    "The part of the test that uses SANITIZE OVERWRITE and BLOCK ERASE passes; the program then skips the part with "
    "CRYPTOGRAPHIC ERASE, which is not offered: volumes are not encrypted, so there is no key to destroy."
)
NO_UNMAP_BY_WRITE_SAME_10 = (
    "Needs LBPWS10, unmapping by WRITE SAME (10). Volumes unmap by UNMAP and by WRITE SAME (16), which reach every "
    "block of a volume of any size."
)

NOWHERE: dict[str, str] = {
    "CompareAndWrite.InvalidDataOutSize": ONE_BLOCK_PER_PHYSICAL_BLOCK,
    "Sanitize.CryptoErase": "CRYPTOGRAPHIC ERASE is not offered: volumes are not encrypted, so there is no key.",
    "Sanitize.Readonly": NO_CRYPTO_ERASE,
    "Sanitize.Reservations": NO_CRYPTO_ERASE,
    "WriteSame10.Unmap": NO_UNMAP_BY_WRITE_SAME_10,
    "WriteSame10.UnmapUnaligned": NO_UNMAP_BY_WRITE_SAME_10,
    "WriteSame10.UnmapUntilEnd": NO_UNMAP_BY_WRITE_SAME_10,
    "WriteSame10.InvalidDataOutSize": NO_UNMAP_BY_WRITE_SAME_10,
    "WriteSame16.UnmapUnaligned": ONE_BLOCK_PER_PHYSICAL_BLOCK,
    "WriteSame16.InvalidDataOutSize": NO_UNMAP_BY_WRITE_SAME_10,
}
