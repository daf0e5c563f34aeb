"""Credits: how much one member may have under way at another. Pure.

Each kind of work has its own, so that mirrored writes never wait for forwarded ones: two members whose credits for
forwards are used up by writes that each need a mirror at the other would otherwise wait for each other for ever.

Both sides count the same: a request takes its payload and the answer that it wants, from when it is sent until its
answer is there. So whoever grants them knows the memory that it can be asked for.
"""

from enum import IntEnum
from typing import Final

import msgspec

from san_target.peer.frames import Operation


class LaneName(IntEnum):
    FORWARD = 0
    MIRROR = 1
    CONTROL = 2


class LaneLimits(msgspec.Struct, frozen=True):
    """requests: under way at once; bytes: of their payloads and answers together."""

    requests: int
    bytes: int


Lanes = tuple[LaneLimits, LaneLimits, LaneLimits]
"""In the order of `LaneName`."""

# A request of the largest size (frames.PAYLOAD_BYTES_MAX each way never comes together) must fit into an empty lane.
LIMITS: Final[Lanes] = (
    LaneLimits(requests=256, bytes=16 << 20),
    LaneLimits(requests=64, bytes=16 << 20),
    LaneLimits(requests=64, bytes=16 << 20),
)

_MIRROR: Final = {
    Operation.PREPARE,
    Operation.COPY,
    Operation.MIRROR,
    Operation.MIRROR_UNMAP,
    Operation.SEAL,
    Operation.HANDOVER,
    Operation.CANCEL,
}

LANE_OF_OPERATION: Final[tuple[LaneName, ...]] = tuple(
    LaneName.MIRROR if each in _MIRROR else LaneName.CONTROL if each is Operation.CONTROL else LaneName.FORWARD
    for each in Operation
)
"""Indexed by operation. NOP is in no lane: it is answered at once."""


class Lane:
    """What is under way in one lane of one link."""

    __slots__ = ("bytes", "bytes_max", "requests", "requests_max")

    def __init__(self, limits: LaneLimits) -> None:
        self.requests = 0
        self.bytes = 0
        self.requests_max = limits.requests
        self.bytes_max = limits.bytes

    def fits(self, cost_bytes: int) -> bool:
        return self.requests < self.requests_max and self.bytes + cost_bytes <= self.bytes_max

    def take(self, cost_bytes: int) -> None:
        self.requests += 1
        self.bytes += cost_bytes

    def give_back(self, cost_bytes: int) -> None:
        self.requests -= 1
        self.bytes -= cost_bytes
