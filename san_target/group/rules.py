"""What a volume may be: names, sizes, options. Pure functions; each refusal is written for the operator.

They hold for every way in (HTTP API, demo, tests); the API's own checks are stricter only in spelling.
"""

import re
from collections.abc import Sequence

from san_target.group.errors import Invalid
from san_target.metadata.schema import ChapRecord, VolumeRecord

NAME_BYTES_MAX = 64
SIZE_BYTES_MAX = 1 << 62
BLOCK_SIZES = (512, 4096)
COPIES_MAX = 1
SECRET_BYTES_MIN = 12  # RFC 7143 9.2.1: at least 96 bits
SECRET_BYTES_MAX = 128
USER_BYTES_MAX = 255
ISCSI_NAME_BYTES_MAX = 223  # RFC 7143 4.2.7.2
IQN_PREFIX = "iqn.2026-01.io.san-target:"

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
# RFC 7143 4.2.7: type designators iqn, eui and naa.
_ISCSI_NAME = re.compile(
    r"iqn\.[0-9]{4}-(?:0[1-9]|1[0-2])\.[^\s,]+|eui\.[0-9A-Fa-f]{16}|naa\.(?:[0-9A-Fa-f]{16}|[0-9A-Fa-f]{32})"
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def check_name(name: str) -> None:
    if not _NAME.fullmatch(name) or len(name) > NAME_BYTES_MAX:
        raise Invalid(
            f"{name!r} is no name: use 1 to {NAME_BYTES_MAX} letters, digits, '.', '_' and '-', "
            "beginning and ending with a letter or digit"
        )


def iqn_of(name: str) -> str:
    """The target name of a volume. iSCSI names have lower-case letters, digits, '-', '.' and ':' (RFC 3722)."""
    return IQN_PREFIX + name.lower().replace("_", "-")


def check_size(size_bytes: int, block_size: int) -> None:
    if block_size not in BLOCK_SIZES:
        raise Invalid(f"a block size of {block_size} bytes is not supported: use 512 or 4096")
    if size_bytes <= 0:
        raise Invalid(f"a size of {size_bytes} bytes is not possible: it must be more than 0")
    if size_bytes > SIZE_BYTES_MAX:
        raise Invalid(f"a size of {size_bytes} bytes is not possible: the most is {SIZE_BYTES_MAX}")
    if size_bytes % block_size:
        raise Invalid(f"the size of {size_bytes} bytes is no multiple of the block size of {block_size} bytes")


def check_copies(copies: int) -> None:
    if not 1 <= copies <= COPIES_MAX:
        raise Invalid(f"{copies} copies are not supported by this version: use 1")


def check_allowed(names: Sequence[str]) -> None:
    for name in names:
        if not _ISCSI_NAME.fullmatch(name) or len(name.encode()) > ISCSI_NAME_BYTES_MAX:
            raise Invalid(f"{name!r} is no iSCSI name; one looks like iqn.1993-08.org.debian:01:host")


def check_chap(users: Sequence[ChapRecord], mutual: ChapRecord | None) -> None:
    for user in (*users, *((mutual,) if mutual else ())):
        _check_user(user)
    names = [user.user for user in users]
    if len(set(names)) != len(names):
        raise Invalid("a CHAP user is given twice")
    if mutual is None:
        return
    if not users:
        raise Invalid("mutual CHAP needs one-way CHAP too: give a CHAP user that initiators log in with")
    if any(user.secret == mutual.secret for user in users):
        # RFC 7143 9.2.1: the same secret in both directions can be reflected.
        raise Invalid("the mutual CHAP secret is the same as a CHAP secret; the two directions need different ones")


def _check_user(user: ChapRecord) -> None:
    if not 1 <= len(user.user.encode()) <= USER_BYTES_MAX or _CONTROL.search(user.user):
        raise Invalid(f"{user.user!r} is no CHAP user name: use 1 to {USER_BYTES_MAX} bytes without control characters")
    length = len(user.secret.encode())
    if not SECRET_BYTES_MIN <= length <= SECRET_BYTES_MAX:
        raise Invalid(
            f"the secret of the CHAP user {user.user!r} has {length} bytes; "
            f"it must have {SECRET_BYTES_MIN} to {SECRET_BYTES_MAX}"
        )
    if _CONTROL.search(user.secret):
        raise Invalid(f"the secret of the CHAP user {user.user!r} has control characters (a line end?)")


def check_volume(record: VolumeRecord) -> None:
    """Every rule that one record can break by itself."""
    check_name(record.name)
    check_size(record.size_bytes, record.block_size)
    check_copies(record.copies)
    check_allowed(record.allow)
    check_chap(record.chap, record.mutual_chap)
