"""A file's bytes where they lie in the page cache, to be sent without a copy.

Only pages that are in the cache are shown (mincore(2)): touching another one would wait for the disk, or, in a hole on
tmpfs, take space. A view is for the kernel only (sendmsg): should a page be lost in the next instant, the kernel says
EFAULT, where a look at it from here would end the process (SIGBUS).
"""

import ctypes
import mmap
from typing import Final

VIEW_BYTES_MAX: Final = 4 << 20

_PAGES_MAX: Final = VIEW_BYTES_MAX // mmap.PAGESIZE + 1
_RESIDENT: Final = b"\x01" * _PAGES_MAX
_page_states: Final = ctypes.create_string_buffer(_PAGES_MAX)
_page_states_view: Final = memoryview(_page_states).cast("B")

_mincore = ctypes.CDLL(None, use_errno=True).mincore
_mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
_mincore.restype = ctypes.c_int


class Mapping:
    """The first `size_bytes` of a file. A file that is cut afterwards needs a new mapping."""

    __slots__ = ("_address", "_bytes", "size_bytes")

    def __init__(self, descriptor: int, size_bytes: int) -> None:
        """OSError if it cannot be mapped."""
        mapping = mmap.mmap(descriptor, size_bytes, mmap.MAP_SHARED)
        # (Writable, since ctypes tells the address of nothing else; nobody gets to see it but read-only.)
        self._address: Final = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
        self._bytes: Final = memoryview(mapping).toreadonly()
        self.size_bytes: Final = size_bytes

    def view(self, offset_bytes: int, length_bytes: int) -> memoryview | None:
        """The bytes, or None: not all of them are cached, or they are more than VIEW_BYTES_MAX."""
        start = offset_bytes - offset_bytes % mmap.PAGESIZE
        end = offset_bytes + length_bytes
        pages = (end - start + mmap.PAGESIZE - 1) // mmap.PAGESIZE
        if (
            end > self.size_bytes
            or pages > _PAGES_MAX
            or _mincore(self._address + start, end - start, _page_states) != 0
        ):
            return None
        if _page_states_view[:pages] != _RESIDENT[:pages]:
            return None
        return self._bytes[offset_bytes:end]
