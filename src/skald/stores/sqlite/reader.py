"""The reading connection of one file: short read transactions, and a new start when the file was replaced."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import apsw

from skald.errors import StoreError, StoreUnavailable
from skald.sql import blocks
from skald.store import Row
from skald.stores.sqlite.connect import close_quietly, connect_reader
from skald.stores.sqlite.failures import DEVICE, translate
from skald.stores.sqlite.foreign import Identity, identity
from skald.stores.sqlite.values import fetch_rows

_IS_LOG = blocks(__package__, "log")["is_log"]


class Reader:
    """Runs every read to its end at once: an open one would keep the WAL from being truncated."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: apsw.Connection | None = None
        self._shm = f"{path}-shm"
        self._files: tuple[Identity | None, Identity | None] = None, None
        self._is_open = False

    def open(self) -> None:
        """Raises ``StoreUnavailable`` if there is no such log yet."""
        self._is_open = True
        self.rows(_IS_LOG)

    def close(self) -> None:
        self._is_open = False
        self.reset()

    def reset(self) -> None:
        """Closes the connection; the next read opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            close_quietly(connection)

    def rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """All rows of a statement with positional parameters."""
        try:
            return self._ready().execute(sql, values).fetchall()
        except apsw.Error as error:
            raise self._failed(error) from error

    def fetch(self, sql: str, values: Mapping[str, Any]) -> list[Row]:
        """All rows as dicts, of a statement with named parameters."""
        connection = self._ready()
        try:
            return fetch_rows(connection, sql, values)
        except apsw.ReadOnlyError as error:
            raise StoreError(f"fetch only reads, use a transaction to write: {sql}") from error
        except apsw.Error as error:
            raise self._failed(error) from error

    def scan(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """The same as ``rows`` on a connection of its own: for what walks the log, on another thread."""
        try:
            connection = connect_reader(self._path)
            try:
                return connection.execute(sql, values).fetchall()
            finally:
                close_quietly(connection)
        except apsw.Error as error:
            raise translate(error, self._path) from error

    def _ready(self) -> apsw.Connection:
        if not self._is_open:
            raise StoreUnavailable(f"{self._path} is not open: await open() first")
        file = identity(self._path)
        if self._connection is None or (file, identity(self._shm)) != self._files:
            # Restored or copied over: the old file, or its WAL, would be read for ever, and the fork never be seen.
            self.reset()
            self._connect(file)
        assert self._connection is not None
        return self._connection

    def _connect(self, file: Identity | None) -> None:
        if file is None:
            raise StoreUnavailable(f"{self._path} does not exist (yet): the service has to start, or migrate, first")
        try:
            connection = connect_reader(self._path)
            if connection.execute(_IS_LOG).get is None:
                close_quietly(connection)
                raise StoreUnavailable(f"{self._path} has no log (yet): its service has to run `skald migrate` first")
        except apsw.Error as error:
            raise translate(error, self._path) from error
        self._connection, self._files = connection, (file, identity(self._shm))

    def _failed(self, error: apsw.Error) -> Exception:
        if isinstance(error, DEVICE):
            self.reset()
        return translate(error, self._path)
