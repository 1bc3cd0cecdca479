"""SQLite, the embedded default: a file per service, one writing connection per process, readers beside it."""

from skald.stores.sqlite.log import SqliteLog
from skald.stores.sqlite.store import SqliteStore

__all__ = ["SqliteLog", "SqliteStore"]
