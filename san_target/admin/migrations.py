"""A migration, as it goes over the HTTP API."""

from msgspec import Struct


class BlockRange(Struct, kw_only=True, frozen=True):
    """Logical blocks; end_lba is exclusive."""

    start_lba: int
    end_lba: int


class Migration(Struct, kw_only=True, frozen=True):
    """What `source` owns of a range of a volume goes to `destination`, piece by piece.

    state: waiting (for another one) | running | retrying (a piece failed several times; see reason) | paused | done |
    cancelled. wanted: what the operator wants: run | pause | cancel. restarts: pieces that had to be copied anew.
    mirrored_writes: changes by initiators that were applied at both members meanwhile. eta_s: seconds left at the
    present speed, null = not known. generation: of the placements that it makes.
    """

    id: str
    volume: str
    range: BlockRange
    source: str
    destination: str
    state: str
    wanted: str
    reason: str = ""
    pieces_done: int
    pieces_total: int
    restarts: int
    mirrored_writes: int
    bytes_copied: int
    limit_bytes_per_second: int
    bytes_per_second: float
    eta_s: float | None = None
    created: str
    finished: str = ""
