"""The one boundary at which errors of asyncpg become ours; the driver's own stays the ``__cause__``."""

from __future__ import annotations

from contextlib import AbstractContextManager

import asyncpg

from skald.errors import (
    Busy,
    SchemaMismatch,
    SkaldError,
    StoreError,
    StoreUnavailable,
    TransactionConflict,
    TransactionTooLong,
)

_GONE = ("08", "53", "57P0", "58")
"""Connection failures, insufficient resources (disk full, too many connections), shutdowns, I/O errors."""


def is_gone(error: BaseException) -> bool:
    """The connection or the server is lost, or cannot serve now; the same work can be tried again later."""
    if isinstance(error, asyncpg.PostgresError):
        return str(error.sqlstate or "").startswith(_GONE)
    if isinstance(error, asyncpg.InternalClientError):
        return True  # the protocol's state is unknown: the connection must not be used again
    if isinstance(error, asyncpg.InterfaceError):
        return "connection is closed" in str(error) or "closed in the middle" in str(error)
    return isinstance(error, OSError | EOFError | TimeoutError)


def translated(error: BaseException) -> SkaldError | None:
    """Our error for one of the driver; ``None`` for what is neither the driver's nor the network's."""
    if isinstance(error, SkaldError):
        return None
    if is_gone(error):
        return StoreUnavailable(f"PostgreSQL cannot be reached or cannot serve now: {_text(error)}")
    if isinstance(error, asyncpg.PostgresError):
        return _by_state(str(error.sqlstate or ""), error)
    if isinstance(error, asyncpg.InterfaceError):
        return StoreError(_text(error))
    return None


def _by_state(state: str, error: BaseException) -> SkaldError:
    if state in ("40001", "40P01"):
        return TransactionConflict(f"{_text(error)}: the transaction was rolled back and can be run again")
    if state == "55P03":
        return Busy("a row")
    if state in ("25P03", "25P04"):
        return TransactionTooLong(f"the transaction was open for too long and has been rolled back: {_text(error)}")
    if state in ("42P01", "42883", "3F000") and "skald_" in str(error):
        return SchemaMismatch(f"{_text(error)}: run skald migrate")
    return StoreError(f"{state}: {_text(error)}")


def _text(error: BaseException) -> str:
    return str(error) or type(error).__name__


class _Boundary:
    """No generator, because every commit passes it."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, Exception) and (ours := translated(error)) is not None:
            raise ours from error


_BOUNDARY = _Boundary()


def boundary() -> AbstractContextManager[None, None]:
    """Translates what leaves the block."""
    return _BOUNDARY
