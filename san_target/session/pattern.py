"""What a session asks for: how much in a row, where, and how many commands at a time. By samples. Pure.

The hot path only remembers its last two commands, in local variables. At the end of a batch, at most every SAMPLE_S,
those are looked at; a sample stands for all commands since the one before. So what is counted here costs a busy session
a thousandth, and a slow one loses nothing.
"""

from typing import TYPE_CHECKING, Final

from san_target.scsi.hot import decode_read_write

if TYPE_CHECKING:
    from san_target.session.commands import Commands, RawHeader

SAMPLE_S: Final = 0.005
REGION_BLOCKS: Final = 2048
"""What is touched is remembered in regions of so many blocks; boundaries of the partition map are boundaries of regions
(volumes are cut at multiples of 1 MiB, which is this many blocks of 512 bytes)."""
REGIONS_MAX: Final = 1024


class Taken:
    """Samples of one interval. commands: that they stand for; sequential: of those; depth: commands at a time, mean.

    regions: commands by region of the volume (region n begins at LBA n * REGION_BLOCKS)
    """

    __slots__ = ("commands", "depth", "regions", "sequential")

    def __init__(self, commands: int, sequential: int, depth: float, regions: dict[int, int]) -> None:
        self.commands = commands
        self.sequential = sequential
        self.depth = depth
        self.regions = regions


class Pattern:
    """next_s: no sample before that; interval_s: from one to the next, longer where there are many sessions.

    Other commands than READ and WRITE are not looked at.
    """

    __slots__ = ("_commands", "_counted", "_depths", "_regions", "_samples", "_sequential", "interval_s", "next_s")

    def __init__(self) -> None:
        self.next_s = float("-inf")
        self.interval_s = SAMPLE_S
        self._counted = 0
        self._begin()

    def _begin(self) -> None:
        self._commands = self._sequential = self._depths = self._samples = 0
        self._regions: dict[int, int] = {}

    def look(self, before: bytes, last: bytes, counted: int, at_a_time: int, now_s: float) -> None:
        """The CDBs of two commands in a row; `counted`: commands of the session so far; at_a_time: open now."""
        found = decode_read_write(last)
        if found is None:
            return
        self.next_s = now_s + self.interval_s
        weight, self._counted = counted - self._counted, counted
        lba = found[0]
        previous = decode_read_write(before)
        if previous is not None and previous[0] + previous[1] == lba:
            self._sequential += weight
        self._commands += weight
        self._samples += 1
        self._depths += at_a_time
        region = lba // REGION_BLOCKS
        regions = self._regions
        if region in regions or len(regions) < REGIONS_MAX:
            regions[region] = regions.get(region, 0) + weight

    def take(self) -> Taken:
        """What was seen since the last call."""
        depth = self._depths / self._samples if self._samples else 0.0
        taken = Taken(self._commands, self._sequential, depth, self._regions)
        self._begin()
        return taken


def sample(connection: "Commands", before: "RawHeader", last: "RawHeader", first: "RawHeader") -> None:
    """At the end of a batch: its last two commands, and the last of the batch before (their CmdSN tells how many came
    at once)."""
    if connection.session is not None:
        at_once = last[7] - first[7] & 0xFFFFFFFF if first[0] else 1
        at_a_time = max(len(connection.tasks), min(at_once, connection.limits.command_window))
        commands = connection.session.counters.commands
        connection.pattern.look(before[9], last[9], commands, at_a_time, connection.heard_s)
