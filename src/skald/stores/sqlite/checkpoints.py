"""When the WAL is copied into the file: every thousand pages, and less often where a reader is in the way.

SQLite's own rule would try after every commit as long as it does not succeed, and sort the whole WAL for each try:
beside a snapshot that stays open, commits took three times as long after a minute.
"""

from __future__ import annotations

from contextlib import suppress

import apsw

PAGES = 1_000


class Checkpoints:
    """The hook of one writing connection; like SQLite's own it tells nobody of errors, and the WAL keeps everything."""

    def __init__(self) -> None:
        self._next, self._pages = PAGES, 0

    def __call__(self, connection: apsw.Connection, name: str, pages: int) -> int:
        if pages < self._pages:  # the WAL has been begun anew
            self._next = PAGES
        self._pages = pages
        if pages >= self._next:
            self._next = pages + max(PAGES, pages // 2)
            with suppress(apsw.Error):
                size, copied = connection.wal_checkpoint(name, apsw.SQLITE_CHECKPOINT_PASSIVE)
                if copied == size:
                    self._next = pages + PAGES
        return apsw.SQLITE_OK
