"""The partition map of a volume as the keys in the store say it, followed change by change.

Keys that make no map (a damaged store, or a volume half deleted) are kept as they are: a later change may make them
one again. Until then there is a reason instead of a map.
"""

from collections.abc import Mapping
from typing import Final

from san_target.metadata.schema import PlacementRecord
from san_target.volume.partition_map import MapSnapshot, PartitionMap, PartitionMapError, check_end, record_of

EMPTY: Final = "the volume has no partition map; restore the store from a backup"


class StoredMap:
    """revision: of the store, at which it last changed."""

    def __init__(self) -> None:
        self.revision = 0
        self._problem = EMPTY
        self._map: PartitionMap | None = None
        self._raw: dict[int, PlacementRecord] = {}  # while there is no map
        self._is_tried = True  # whether `_raw` has been looked at since it changed
        self._cut: tuple[MapSnapshot, MapSnapshot] | None = None  # a snapshot, and how it was cut last

    def __len__(self) -> int:
        """The number of keys."""
        return len(self._raw if self._map is None else self._map)

    def append(self, start: int, record: PlacementRecord, revision: int) -> None:
        """The next key, when all are read in order; the key was changed last at `revision`."""
        self.revision = max(self.revision, revision)
        if self._map is None:
            self._raw[start] = record
            self._is_tried = False
            if len(self._raw) == 1:
                self._try()
        else:
            try:
                self._map.append(start, record)
            except PartitionMapError as error:
                self._give_up(self._map, str(error))
                self._raw[start] = record

    def completed(self) -> None:
        """A part of the keys has been read; call it every some hundred, so that no call takes long."""
        if self._map is not None:
            self._map.snapshot()

    def apply(self, changes: Mapping[int, PlacementRecord | None], revision: int) -> None:
        """All keys that one revision changed; None: the key is gone."""
        self.revision = max(self.revision, revision)
        if self._map is not None:
            before = self._map.snapshot()
            try:
                self._map.apply(changes)
            except PartitionMapError as error:
                self._give_up(before, str(error))
            else:
                return
        for start, record in changes.items():
            if record is None:
                self._raw.pop(start, None)
            else:
                self._raw[start] = record
        self._is_tried = False

    def snapshot(self, blocks: int) -> MapSnapshot:
        """The first `blocks` of the map, the same object until it changes. PartitionMapError: there is no such map.

        Keys may reach further than the volume: those that a growth adds are not shown before their blocks are there,
        and those that a shrink cuts off go one after another.
        """
        whole = self.whole()
        if whole.blocks <= blocks:
            check_end(whole.blocks, blocks)
            return whole
        if self._cut is None or self._cut[0] is not whole or self._cut[1].blocks != blocks:
            self._cut = (whole, whole.resized(blocks))
        return self._cut[1]

    def whole(self) -> MapSnapshot:
        """All keys. PartitionMapError: they are no map."""
        if self._map is None and not self._is_tried:
            self._try()
        if self._map is None:
            raise PartitionMapError(self._problem)
        return self._map.snapshot()

    def records(self) -> dict[int, PlacementRecord]:
        """All keys, by start LBA."""
        return dict(self._raw) if self._map is None else self._map.records()

    def _give_up(self, known: PartitionMap | MapSnapshot, problem: str) -> None:
        ranges = known.snapshot().ranges() if isinstance(known, PartitionMap) else known.ranges()
        self._raw = {start: record_of(end, placement) for start, end, placement in ranges}
        self._map, self._problem, self._is_tried = None, problem, True

    def _try(self) -> None:
        """Are the keys a map? Looks at all of them, so only when somebody asks."""
        self._is_tried = True
        if not self._raw:
            self._problem = EMPTY
            return
        end = max(record.end_lba for record in self._raw.values())
        try:
            self._map = PartitionMap.from_records(end, self._raw.items())
        except PartitionMapError as error:
            self._problem = str(error)
        else:
            self._raw = {}
