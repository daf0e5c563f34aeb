"""Reads many keys of an SQLite store page by page, all as of one moment. Blocking; one thread at a time."""

import sqlite3
from pathlib import Path
from urllib.parse import quote

from san_target.metadata.sqlite_database import translate, upper_bound
from san_target.metadata.store import PAGE_ITEMS, Item, Snapshot


class SqliteReader:
    """One read transaction. `open` gives the first page, `more` the next ones; `close` in any case."""

    def __init__(self, path: Path, prefix: str) -> None:
        self._path = path
        self._prefix = prefix
        self._connection: sqlite3.Connection | None = None
        self._cursor: sqlite3.Cursor | None = None
        self._revision = 0

    def open(self) -> Snapshot:
        try:
            self._connection = sqlite3.connect(
                f"file:{quote(str(self._path))}?mode=ro", uri=True, isolation_level=None, check_same_thread=False
            )
            self._connection.execute("BEGIN")
            self._revision = self._connection.execute("SELECT revision FROM state").fetchone()[0]
            self._cursor = self._connection.execute(
                "SELECT key, value, create_revision, mod_revision, lease_id FROM items "
                "WHERE key >= ? AND key < ? ORDER BY key",
                (self._prefix, upper_bound(self._prefix)),
            )
        except sqlite3.Error as error:
            raise translate(error, self._path) from error
        return self.more()

    def more(self) -> Snapshot:
        if self._cursor is None:
            raise AssertionError("the reader is not open")
        try:
            rows = self._cursor.fetchmany(PAGE_ITEMS)
        except sqlite3.Error as error:
            raise translate(error, self._path) from error
        return Snapshot(tuple(Item(*row) for row in rows), self._revision)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
