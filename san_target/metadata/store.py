"""The store interface: etcd's data model in small (ARCHITECTURE section 7).

Keys are "/"-separated text, values bytes. Every successful transaction gets the next store revision; each item
remembers the revisions of its creation and last change. Rules every implementation keeps:

- a transaction is durable before `transact` returns, and is never retried by the store client itself [1, 25];
- a watch yields whole revisions, in order, without a gap from the revision asked for [27];
- a lease that is not renewed within its TTL deletes its keys in one revision.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

PAGE_ITEMS = 500
OPERATIONS_MAX = 128  # in one transaction, compares and operations each: what etcd takes


class StoreError(Exception):
    """The store cannot be used; the message tells the operator what to do."""


class StoreUnavailable(StoreError):
    """The store did not answer in time; whether a transaction was applied is unknown [1]."""


class LeaseEnded(StoreError):
    """A key was to be bound to a lease that does not exist or has ended; nothing was changed."""


class RevisionCompacted(StoreError):
    """A watch was asked to start at a revision that is no longer kept: re-read with `range`, then watch."""


@dataclass(frozen=True, slots=True)
class Item:
    """One key. mod_revision: of its last change; create_revision: of its creation; lease_id: 0 = none."""

    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    lease_id: int = 0


@dataclass(frozen=True, slots=True)
class Compare:
    """True if the key's mod_revision equals this (0 = the key must not exist)."""

    key: str
    mod_revision: int


@dataclass(frozen=True, slots=True)
class Put:
    key: str
    value: bytes
    lease_id: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    key: str


@dataclass(frozen=True, slots=True)
class TransactionResult:
    """revision: the store revision after a success, or the one at which a compare failed."""

    succeeded: bool
    revision: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A consistent (linearizable) read of a prefix: items by key, and the store revision they were read at."""

    items: tuple[Item, ...]
    revision: int


@dataclass(frozen=True, slots=True)
class Event:
    """A change of one key; `item` is None for a deletion."""

    key: str
    item: Item | None


@dataclass(frozen=True, slots=True)
class WatchBatch:
    """All changes of one revision that fall under the watched prefix."""

    revision: int
    events: tuple[Event, ...]


class Store(Protocol):
    async def open(self) -> None:
        """Connect or create. StoreError with a remedy for damaged, foreign or newer stores."""
        ...

    async def close(self) -> None: ...

    async def get(self, key: str) -> Item | None: ...

    async def range(self, prefix: str) -> Snapshot: ...

    def pages(self, prefix: str) -> AsyncIterator[Snapshot]:
        """What `range` reads, PAGE_ITEMS at a time, all of the revision of the first page; at least one page.

        For prefixes with so many keys that they should not all be in memory at once.
        """
        ...

    async def transact(self, compares: Sequence[Compare], operations: Sequence[Put | Delete]) -> TransactionResult:
        """Apply all operations in one revision if every compare holds; else change nothing.

        At most OPERATIONS_MAX of each, and about 1 MiB. A transaction that changes nothing may get no revision of its
        own: the result then has that of the store. LeaseEnded; StoreUnavailable: whether it was applied is unknown.
        """
        ...

    def watch(self, prefix: str, from_revision: int) -> AsyncIterator[WatchBatch]:
        """Yield every revision >= from_revision that touches the prefix, then wait for more.

        RevisionCompacted; StoreUnavailable if the store stays away: watch again from where it ended.
        """
        ...

    def hurry(self) -> None:
        """Somebody has heard of a change elsewhere: a watch that looks only now and then looks now."""
        ...

    async def skip_to(self, revision: int) -> None:
        """Let every later change have a greater revision than this one. For a store that is just being restored."""
        ...

    async def grant_lease(self, ttl_s: float) -> int:
        """A new lease id (> 0). The lease lasts at least `ttl_s`; etcd counts whole seconds."""
        ...

    async def renew_lease(self, lease_id: int) -> bool:
        """False if the lease has ended."""
        ...

    async def revoke_lease(self, lease_id: int) -> None: ...
