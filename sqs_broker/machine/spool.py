"""Tables that may be larger than memory, in a temporary file without a name.

SQLite writes to the file only what does not fit into its cache of some MiB, and removes it with its
connection. https://www.sqlite.org/inmemorydb.html#temp_db
"""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence


class Spool:
    """Keys and a value for each, in the order in which they were added. For one thread at a time.

    It takes the same memory for any number of rows.
    """

    def __init__(self) -> None:
        self._rows = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._rows.execute("PRAGMA journal_mode = OFF")
        self._rows.execute(
            "CREATE TABLE rows (place INTEGER PRIMARY KEY, key BLOB UNIQUE, value TEXT)"
        )

    def add(self, rows: Iterable[tuple[str | bytes, str]]) -> None:
        """Add rows. A known key keeps its place and gets the new value."""
        self._rows.executemany(
            "INSERT INTO rows (key, value) VALUES (?, ?) "
            "ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            rows,
        )

    def discard(self, keys: Iterable[str | bytes]) -> None:
        """Remove rows. A key that is not there is no error."""
        self._rows.executemany("DELETE FROM rows WHERE key = ?", ((key,) for key in keys))

    def __contains__(self, key: str | bytes) -> bool:
        return self._rows.execute("SELECT 1 FROM rows WHERE key = ?", (key,)).fetchone() is not None

    def __len__(self) -> int:
        return int(self._rows.execute("SELECT count(*) FROM rows").fetchone()[0])

    def packs(self, size: int) -> Iterator[Sequence[tuple[str | bytes, str]]]:
        """All rows, `size` at a time. Rows may be removed meanwhile."""
        last = 0
        while True:
            found = self._rows.execute(
                "SELECT place, key, value FROM rows WHERE place > ? ORDER BY place LIMIT ?",
                (last, size),
            ).fetchall()
            if not found:
                return
            last = found[-1][0]
            yield [(key, value) for _, key, value in found]

    def page(self, start: int, size: int) -> Sequence[tuple[str | bytes, str]]:
        """`size` rows, after the first `start` of them."""
        return self._rows.execute(
            "SELECT key, value FROM rows ORDER BY place LIMIT ? OFFSET ?", (size, start)
        ).fetchall()

    def close(self) -> None:
        """Remove the file. A second call does nothing."""
        self._rows.close()
