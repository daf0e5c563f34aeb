"""How fast a migration copies: as fast as its limit, and only as long as applications hardly notice. Pure.

What an initiator notices is the event loop that is busy with the copy, and the disk and network behind it. So the pace
follows how late the loop comes to a thing that is due at once, and how long a block takes to be copied, against what it
takes at best. Each late answer halves the share of the time that is spent copying, each good one raises it a little.
"""

from typing import Final

LAG_S_MAX: Final = 0.01
SLOWER_MAX: Final = 4.0
SHARE_MIN: Final = 0.2
SHARE_STEP: Final = 0.05
FORGET: Final = 1.02
"""What a block takes at best is forgotten slowly."""


class Pace:
    """limit_bytes_per_second: 0 = none. share: of the time, spent copying."""

    def __init__(self, limit_bytes_per_second: int = 0) -> None:
        self.limit_bytes_per_second = limit_bytes_per_second
        self.share = 1.0
        self._best_s = 0.0
        self._free_at_s = 0.0

    def rest_s(self, now_s: float, took_s: float, lag_s: float, length_bytes: int, busy: bool) -> float:
        """How long to wait after a copy that took so long. busy: applications use the same blocks' member now."""
        self._best_s = took_s if not self._best_s else min(took_s, self._best_s * FORGET)
        slow = lag_s > LAG_S_MAX or took_s > max(self._best_s * SLOWER_MAX, LAG_S_MAX)
        if slow and busy:
            self.share = max(SHARE_MIN, self.share / 2)
        else:
            self.share = min(1.0, self.share + SHARE_STEP)
        rest_s = took_s * (1 / self.share - 1)
        if self.limit_bytes_per_second:
            begin_s = max(self._free_at_s, now_s - took_s)
            self._free_at_s = begin_s + length_bytes / self.limit_bytes_per_second
            rest_s = max(rest_s, self._free_at_s - now_s)
        return rest_s
