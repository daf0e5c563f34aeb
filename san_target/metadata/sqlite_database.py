"""The SQLite file of a store: tables, transactions, leases and history. Blocking; used by one thread (see sqlite.py).

Invariants kept here:
- every change is made between BEGIN IMMEDIATE and COMMIT with synchronous=FULL, and is never repeated by itself;
- `history` holds every change of every revision after `state.compacted`, written by the transaction that made it;
- a lease of another boot, or past its time, has ended: whoever looks deletes it and its keys, in one revision each;
- write-ahead log and file hold disk space in reserve, for the store often shares its disk with a pool. Initiators may
  fill that, and then leases must still be renewed, and volumes deleted: it is the way out.
"""

import errno
import os
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from san_target.metadata.changes import batches, check_kept
from san_target.metadata.sqlite_holder import StoppedHolder
from san_target.metadata.store import (
    Compare,
    Delete,
    Event,
    Item,
    LeaseEnded,
    Put,
    Snapshot,
    StoreError,
    StoreUnavailable,
    TransactionResult,
    WatchBatch,
)

APPLICATION_ID = 0x53414E54  # "SANT", in the header of the file
SCHEMA_VERSION = 1
COMPACT_EVERY = 64  # revisions between two trims of the history
CHANGES_REVISIONS_MAX = 256  # revisions that one look at the history takes
RESERVED_PAGES = 256
RESERVE_MARGIN_BYTES = 52 << 10  # for what else a reserve of that size makes: its index, the pages that lead to it
LOOK_S = 0.2  # while waiting for the write lock: who holds it?
STOPPED_HOLDER_S = 5.0  # well within a lease's time, so that no lease is lost by the wait
CHECKPOINT_PAGES = 128  # in the log; half of the reserve, so that the log is used from its start again in time

TABLES = """
CREATE TABLE state (id INTEGER PRIMARY KEY CHECK (id = 1), revision INTEGER NOT NULL, compacted INTEGER NOT NULL);
INSERT INTO state VALUES (1, 0, 0);
CREATE TABLE items (
    key TEXT PRIMARY KEY, value BLOB NOT NULL,
    create_revision INTEGER NOT NULL, mod_revision INTEGER NOT NULL, lease_id INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX items_by_lease ON items (lease_id) WHERE lease_id != 0;
CREATE TABLE history (
    revision INTEGER NOT NULL, ordinal INTEGER NOT NULL, key TEXT NOT NULL,
    value BLOB, create_revision INTEGER NOT NULL, lease_id INTEGER NOT NULL,
    PRIMARY KEY (revision, ordinal)
) WITHOUT ROWID;
CREATE TABLE leases (
    id INTEGER PRIMARY KEY AUTOINCREMENT, boot_id TEXT NOT NULL, expires_at_s REAL NOT NULL, ttl_s REAL NOT NULL
);
"""


def translate(error: sqlite3.Error, path: Path) -> StoreError:
    """What SQLite found, as an error that says what to do about the file at `path`."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the primary code of an extended one
    if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return StoreError(f"the store {path} is damaged ({error}); stop its members and restore it from a backup")
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH):
        return StoreError(f"the store {path} cannot be written ({error}); make its file and directory writable")
    if code == sqlite3.SQLITE_CANTOPEN:
        return StoreError(f"the store {path} cannot be opened ({error}); check its directory and permissions")
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StoreUnavailable(
            f"the store {path} is locked by another process for too long; nothing was changed. "
            "A member that is stopped (SIGSTOP) while it writes does this: continue or kill it"
        )
    if code == sqlite3.SQLITE_FULL:
        return StoreUnavailable(f"the file system of the store {path} is full, nothing was changed; free some space")
    return StoreUnavailable(f"the store {path} did not work ({error}); check its file system")


def upper_bound(prefix: str) -> str:
    """A key greater than each key with this prefix."""
    return prefix + "\U0010ffff"


class SqliteDatabase:
    """One connection to one store file. All methods belong to the thread that called `open`."""

    def __init__(
        self,
        path: Path,
        *,
        clock: Callable[[], float],
        boot_id: str,
        history_revisions: int,
        busy_timeout_s: float,
        stopped_holder_s: float,
    ) -> None:
        self.path = path
        self._clock = clock
        self._boot_id = boot_id
        self._history_revisions = history_revisions
        self._busy_timeout_s = busy_timeout_s
        self._stopped_holder = StoppedHolder(path, stopped_holder_s)
        self._connection: sqlite3.Connection | None = None

    # ---- opening ----

    def open(self) -> None:
        """Create or open. StoreError for a damaged, foreign, newer or unwritable file."""
        self._create_file()
        try:
            connection = sqlite3.connect(
                f"file:{quote(str(self.path))}?mode=rw",
                uri=True,
                isolation_level=None,
                timeout=self._busy_timeout_s,
            )
        except sqlite3.Error as error:
            raise translate(error, self.path) from error
        self._connection = connection
        try:
            self._check_owner(connection)
            self._enter_wal(connection)
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
            self._check_schema(connection)
            self._keep_reserve(connection)
        except sqlite3.Error as error:
            self.close()
            raise translate(error, self.path) from error
        except StoreError:
            self.close()
            raise

    def _create_file(self) -> None:
        """The file exists and only its owner reads it (it holds secrets); SQLite gives -wal and -shm the same mode.

        One that exists is not opened here: closing it would give up the locks that this process has on it (POSIX).
        """
        try:
            information = self.path.stat()
        except OSError:
            self._create_new_file()
            return
        if not stat.S_ISREG(information.st_mode):
            raise StoreError(f"the store {self.path} is no regular file; give another path")
        if not os.access(self.path, os.R_OK | os.W_OK):
            is_read_only = os.statvfs(self.path).f_flag & os.ST_RDONLY
            raise self._not_writable(errno.EROFS if is_read_only else errno.EACCES)
        if stat.S_IMODE(information.st_mode) & 0o077:
            try:
                self.path.chmod(0o600)
            except OSError as error:
                raise StoreError(f"the store {self.path} cannot be made private ({error.strerror})") from None

    def _create_new_file(self) -> None:
        try:
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except FileNotFoundError:
            raise StoreError(f"the directory {self.path.parent} of the store does not exist; create it") from None
        except OSError as error:
            raise self._not_writable(error.errno) from None
        directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _not_writable(self, number: int | None) -> StoreError:
        return StoreError(
            f"the store {self.path} cannot be opened for writing ({os.strerror(number or 0)}); check the path, "
            "its permissions and that its file system is not read-only"
        )

    def _check_owner(self, connection: sqlite3.Connection) -> None:
        """Before anything is written: a database of another program stays as it is."""
        tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        # In this order: whoever makes the tables at this moment names the application in the same transaction.
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        if application != APPLICATION_ID and tables:
            raise StoreError(f"{self.path} is another program's database, not a store; give another path")

    def _enter_wal(self, connection: sqlite3.Connection) -> None:
        """SQLite does not wait for other openers here, so this does; members often start together."""
        deadline = time.monotonic() + self._busy_timeout_s
        while True:
            try:
                mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
                continue
            if mode != "wal":
                raise StoreError(
                    f"the store {self.path} cannot use write-ahead logging (mode {mode!r}); "
                    "put it on a writable local file system"
                )
            return

    def _check_schema(self, connection: sqlite3.Connection) -> None:
        """BEGIN IMMEDIATE also proves that the file can be written: SQLite opens a read-only file without a word."""
        self._begin(connection)
        try:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                for statement in TABLES.strip().split(";\n"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            elif version != SCHEMA_VERSION:
                raise StoreError(
                    f"the store {self.path} has schema version {version}, this program knows {SCHEMA_VERSION}; "
                    "use the version of san-target that wrote it, or a newer one"
                )
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        # Reads the whole file, so without the lock: others have leases to renew meanwhile.
        faults = [row[0] for row in connection.execute("PRAGMA quick_check(1)")]
        if faults != ["ok"]:
            raise StoreError(
                f"the store {self.path} is damaged ({faults[0]}); stop its members and restore it from a backup"
            )

    def _keep_reserve(self, connection: sqlite3.Connection) -> None:
        """Have RESERVED_PAGES of disk space in the log, and as many free pages in the file, as far as the disk lets us.

        A large value is written and dropped: SQLite never cuts a log that is in use, and never gives free pages back.
        """
        free_pages = connection.execute("PRAGMA freelist_count").fetchone()[0]
        page_bytes = connection.execute("PRAGMA page_size").fetchone()[0]
        try:
            log_bytes = os.stat(f"{self.path}-wal").st_size
        except OSError:
            log_bytes = 0
        if free_pages >= RESERVED_PAGES // 2 and log_bytes >= RESERVED_PAGES * page_bytes:
            return
        # On a disk that is full, a new log has what the last one gave back, less what others took of it meanwhile. (To
        # try with more than there is would take all that is left, and fail.)
        status = os.statvfs(self.path.parent)
        free_bytes = log_bytes + status.f_bavail * status.f_frsize - RESERVE_MARGIN_BYTES
        pages = min(RESERVED_PAGES, free_bytes // (page_bytes + 24))
        if pages > 0:
            self._reserve(connection, pages * page_bytes)

    def _reserve(self, connection: sqlite3.Connection, size_bytes: int) -> None:
        try:
            self._begin(connection, wait=False)  # whoever has the lock now, this is not worth waiting for
            connection.execute("DROP TABLE IF EXISTS reserve")  # of a process that was killed
            connection.execute("CREATE TABLE reserve (bytes BLOB)")
            connection.execute("INSERT INTO reserve VALUES (zeroblob(?))", (size_bytes,))
            connection.execute("COMMIT")
            connection.execute("DROP TABLE reserve")
        except sqlite3.Error:
            # Less, or no, reserve. Worse is met by the next transaction; nobody's transaction failed here.
            if connection.in_transaction:
                connection.execute("ROLLBACK")

    def close(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            try:
                connection.close()
            except sqlite3.Error as error:
                raise translate(error, self.path) from error

    # ---- transactions ----

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            raise StoreError(f"the store {self.path} is not open")
        return self._connection

    def _begin(self, connection: sqlite3.Connection, wait: bool = True) -> None:
        """Take the write lock. sqlite3.OperationalError (busy): another process has kept it for too long."""
        deadline = time.monotonic() + (self._busy_timeout_s if wait else 0)
        try:
            while True:
                left_s = max(0.0, deadline - time.monotonic())
                connection.execute(f"PRAGMA busy_timeout = {int(min(left_s, LOOK_S) * 1000)}")
                try:
                    connection.execute("BEGIN IMMEDIATE")
                    return
                except sqlite3.OperationalError as error:
                    if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= deadline:
                        raise
                self._stopped_holder.look()
        finally:
            connection.execute(f"PRAGMA busy_timeout = {int(self._busy_timeout_s * 1000)}")

    @contextmanager
    def _writing(self, wait: bool = True) -> Iterator[sqlite3.Connection]:
        """A write transaction; ended leases are reaped first, and stay reaped whatever the caller finds then."""
        connection = self._opened()
        try:
            self._begin(connection, wait)
            try:
                self._reap(connection)
                yield connection
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            try:
                connection.execute("COMMIT")
            except sqlite3.Error as error:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_FULL:
                    raise  # the frame that would commit it was not written: it was surely not made
                raise StoreUnavailable(
                    f"the store {self.path} did not confirm a change ({error}), which may have been made or not; "
                    "check its file system"
                ) from error
        except sqlite3.Error as error:
            raise translate(error, self.path) from error

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """A read transaction: everything in it is of one revision."""
        connection = self._opened()
        try:
            self._reap_if_due(connection)
            connection.execute("BEGIN")
            try:
                yield connection
            finally:
                if connection.in_transaction:
                    connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise translate(error, self.path) from error

    def get(self, key: str) -> Item | None:
        with self._reading() as connection:
            row = connection.execute(
                "SELECT key, value, create_revision, mod_revision, lease_id FROM items WHERE key = ?", (key,)
            ).fetchone()
        return Item(*row) if row else None

    def range(self, prefix: str) -> Snapshot:
        with self._reading() as connection:
            rows = connection.execute(
                "SELECT key, value, create_revision, mod_revision, lease_id FROM items "
                "WHERE key >= ? AND key < ? ORDER BY key",
                (prefix, upper_bound(prefix)),
            ).fetchall()
            revision = self._revision(connection)
        return Snapshot(tuple(Item(*row) for row in rows), revision)

    def transact(self, compares: Sequence[Compare], operations: Sequence[Put | Delete]) -> TransactionResult:
        with self._writing() as connection:
            for compare in compares:
                row = connection.execute("SELECT mod_revision FROM items WHERE key = ?", (compare.key,)).fetchone()
                if (row[0] if row else 0) != compare.mod_revision:
                    return TransactionResult(False, self._revision(connection))
            revision = self._apply(connection, operations)
        if revision % COMPACT_EVERY == 0:
            self._keep_reserve(connection)
        return TransactionResult(True, revision)

    def skip_to(self, revision: int) -> None:
        with self._writing() as connection:
            connection.execute("UPDATE state SET revision = max(revision, ?)", (revision,))

    def _apply(self, connection: sqlite3.Connection, operations: Sequence[Put | Delete]) -> int:
        """Make one revision of these changes and record them; returns it."""
        revision = self._revision(connection) + 1
        connection.execute("UPDATE state SET revision = ?", (revision,))
        for ordinal, operation in enumerate(operations):
            entry: tuple[int, int, str, bytes | None, int, int]
            row = connection.execute("SELECT create_revision FROM items WHERE key = ?", (operation.key,)).fetchone()
            if isinstance(operation, Put):
                self._check_lease(connection, operation.lease_id)
                created = row[0] if row else revision
                connection.execute(
                    "INSERT OR REPLACE INTO items VALUES (?, ?, ?, ?, ?)",
                    (operation.key, operation.value, created, revision, operation.lease_id),
                )
                entry = (revision, ordinal, operation.key, operation.value, created, operation.lease_id)
            elif row:
                connection.execute("DELETE FROM items WHERE key = ?", (operation.key,))
                entry = (revision, ordinal, operation.key, None, row[0], 0)
            else:
                continue
            connection.execute("INSERT INTO history VALUES (?, ?, ?, ?, ?, ?)", entry)
        if revision % COMPACT_EVERY == 0 or self._history_revisions < COMPACT_EVERY:
            self._compact(connection, revision - self._history_revisions)
        return revision

    @staticmethod
    def _check_lease(connection: sqlite3.Connection, lease_id: int) -> None:
        if lease_id and connection.execute("SELECT 1 FROM leases WHERE id = ?", (lease_id,)).fetchone() is None:
            raise LeaseEnded(f"lease {lease_id} has ended")

    @staticmethod
    def _compact(connection: sqlite3.Connection, up_to: int) -> None:
        if up_to > 0:
            connection.execute("DELETE FROM history WHERE revision <= ?", (up_to,))
            connection.execute("UPDATE state SET compacted = max(compacted, ?)", (up_to,))

    @staticmethod
    def _revision(connection: sqlite3.Connection) -> int:
        revision: int = connection.execute("SELECT revision FROM state").fetchone()[0]
        return revision

    # ---- history ----

    def changes(self, prefix: str, from_revision: int) -> tuple[list[WatchBatch], int, bool]:
        """(whole revisions that touch the prefix, the next revision to ask for, whether more may be there now)."""
        with self._reading() as connection:
            revision, compacted = connection.execute("SELECT revision, compacted FROM state").fetchone()
            check_kept(from_revision, compacted)
            last = min(revision, from_revision + CHANGES_REVISIONS_MAX - 1)
            rows = connection.execute(
                "SELECT revision, key, value, create_revision, lease_id FROM history "
                "WHERE revision BETWEEN ? AND ? AND key >= ? AND key < ? ORDER BY revision, ordinal",
                (from_revision, last, prefix, upper_bound(prefix)),
            ).fetchall()
        events = (
            (at, Event(key, None if value is None else Item(key, value, created, at, lease_id)))
            for at, key, value, created, lease_id in rows
        )
        return batches(events), max(from_revision, last + 1), last < revision

    def poll(self) -> int:
        """The present revision, ended leases reaped. Cheap: asked many times a second."""
        connection = self._opened()
        try:
            self._reap_if_due(connection)
            return self._revision(connection)
        except sqlite3.Error as error:
            raise translate(error, self.path) from error

    # ---- leases ----

    def grant_lease(self, ttl_s: float) -> int:
        with self._writing() as connection:
            cursor = connection.execute(
                "INSERT INTO leases (boot_id, expires_at_s, ttl_s) VALUES (?, ?, ?)",
                (self._boot_id, self._clock() + ttl_s, ttl_s),
            )
            lease_id = cursor.lastrowid
        if not lease_id:
            raise StoreError(f"the store {self.path} gave no id for a lease")
        return lease_id

    def renew_lease(self, lease_id: int) -> bool:
        with self._writing() as connection:
            cursor = connection.execute(
                "UPDATE leases SET expires_at_s = ? + ttl_s WHERE id = ?", (self._clock(), lease_id)
            )
            return cursor.rowcount == 1

    def revoke_lease(self, lease_id: int) -> None:
        with self._writing() as connection:
            self._end_lease(connection, lease_id)

    def _due(self, connection: sqlite3.Connection) -> list[int]:
        rows = connection.execute(
            "SELECT id FROM leases WHERE expires_at_s <= ? OR boot_id != ? ORDER BY id", (self._clock(), self._boot_id)
        )
        return [row[0] for row in rows]

    def _reap(self, connection: sqlite3.Connection) -> None:
        for lease_id in self._due(connection):
            self._end_lease(connection, lease_id)

    def _end_lease(self, connection: sqlite3.Connection, lease_id: int) -> None:
        """Ending a lease deletes its keys in one revision; a lease without keys needs none."""
        rows = connection.execute("SELECT key FROM items WHERE lease_id = ? ORDER BY key", (lease_id,)).fetchall()
        if rows:
            self._apply(connection, [Delete(row[0]) for row in rows])
        connection.execute("DELETE FROM leases WHERE id = ?", (lease_id,))

    def _reap_if_due(self, connection: sqlite3.Connection) -> None:
        """For readers: reap now if the write lock is free, else leave it to whoever holds it or looks next."""
        if not self._due(connection):
            return
        try:
            with self._writing(wait=False):
                pass
        except StoreUnavailable:
            pass
