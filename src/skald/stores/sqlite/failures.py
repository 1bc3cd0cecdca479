"""The boundary at which SQLite's errors become the library's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw

from skald.errors import StoreError, StoreUnavailable

DEVICE: tuple[type[apsw.Error], ...] = (
    apsw.IOError,
    apsw.FullError,
    apsw.CantOpenError,
    apsw.CorruptError,
    apsw.NotADBError,
    apsw.ReadOnlyError,
    apsw.NoMemError,
    apsw.ProtocolError,
)
"""The file or its disk has failed; what a connection remembers about it is not to be trusted any more."""

_REMEDY: dict[type[apsw.Error], str] = {
    apsw.FullError: "the disk is full: free some space",
    apsw.IOError: "the disk failed to read or write: look at the system's log, and check the disk",
    apsw.CantOpenError: "the file cannot be opened: check that its folder exists and may be written",
    apsw.CorruptError: "the file is damaged: restore the last backup",
    apsw.NotADBError: "the file is not a SQLite database: check the path",
    apsw.ReadOnlyError: "the file cannot be written: check the rights of the file and its folder",
}

BAD_VALUE = (
    apsw.ConstraintError,
    apsw.MismatchError,
    apsw.TooBigError,
    apsw.RangeError,
    TypeError,
    ValueError,  # a text with a lone surrogate, for one
    OverflowError,
)
"""What one unit's own data can cause; every other error concerns the whole group."""


def translate(error: apsw.Error, path: Path) -> StoreError:
    """The library's error for one of SQLite's; raise it ``from`` the original."""
    if isinstance(error, apsw.BusyError):
        return StoreUnavailable(f"{path}: another process holds the file; try again ({error})")
    if path.is_dir():
        return StoreUnavailable(f"{path} is a folder, where the database should be: move it away ({error})")
    if isinstance(error, DEVICE):
        remedy = _REMEDY.get(type(error), "the file could not be used")
        return StoreUnavailable(f"{path}: {remedy} ({error})")
    return StoreError(f"{path}: {error}")


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Everything in the block raises the library's errors."""
    try:
        yield
    except apsw.Error as error:
        raise translate(error, path) from error
