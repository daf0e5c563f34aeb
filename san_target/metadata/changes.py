"""What the stores share: checks of a transaction, and the grouping of history rows into whole revisions."""

from collections.abc import Iterable, Sequence

from san_target.metadata.store import OPERATIONS_MAX, Compare, Delete, Event, Put, RevisionCompacted, WatchBatch


def check_transaction(compares: Sequence[Compare], operations: Sequence[Put | Delete]) -> None:
    """What no store takes (ValueError), so that whatever works on one works on all.

    A key may be changed once per transaction: what a watch would show otherwise has no meaning.
    """
    if max(len(compares), len(operations)) > OPERATIONS_MAX:
        raise ValueError(f"a transaction has more than {OPERATIONS_MAX} compares or operations")
    keys = [operation.key for operation in operations]
    if len(set(keys)) != len(keys):
        raise ValueError(f"a transaction changes a key twice: {sorted(keys)}")
    if any(not key for key in keys) or any(not compare.key for compare in compares):
        raise ValueError("a transaction has an empty key")


def check_kept(from_revision: int, compacted: int) -> None:
    """Raises RevisionCompacted where a watch from this revision would have a gap."""
    if from_revision <= compacted:
        raise RevisionCompacted(
            f"revision {from_revision} is no longer kept (the store keeps those after {compacted}); read again"
        )


def batches(events: Iterable[tuple[int, Event]]) -> list[WatchBatch]:
    """(revision, event) pairs in order -> one batch per revision."""
    grouped: dict[int, list[Event]] = {}
    for revision, event in events:
        grouped.setdefault(revision, []).append(event)
    return [WatchBatch(revision, tuple(found)) for revision, found in grouped.items()]
