"""How the use cases reach an application's databases: by name, opened for one question, closed again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from difflib import get_close_matches
from typing import TypeVar

from skald.app import App
from skald.errors import Busy, SkaldError, TransactionConflict
from skald.runtime.process import is_gone
from skald.store import Log, Member, Store, Transaction
from skald.telemetry import scrubbed

__all__ = [
    "NotFound",
    "OperationRefused",
    "UnknownName",
    "change",
    "chosen",
    "members",
    "opened",
    "opened_log",
    "scrubbed",
    "unknown",
]

T = TypeVar("T")
TRIES = 5


class NotFound(SkaldError):
    """What the operator named does not exist; the text says what does."""


class UnknownName(NotFound):
    """A service, handler or type that the application does not have: a typing error, mostly."""


class OperationRefused(SkaldError):
    """It would lose or double something as things stand; nothing was changed, and the text says what to do first."""


def unknown(what: str, name: str, known: Iterable[str]) -> UnknownName:
    """The error for a name that nobody has, with the one that was probably meant."""
    names = sorted(known)
    near = get_close_matches(name, names, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(names) or 'none'}"
    return UnknownName(f"there is no {what} {name!r}; {hint}")


def chosen(app: App, names: Iterable[str] = ()) -> tuple[str, ...]:
    """The services that were asked for, all by default; an unknown one is an error that names the likely one."""
    wanted = tuple(dict.fromkeys(names)) or tuple(app.services)
    for name in wanted:
        if name not in app.services:
            raise unknown("service", name, app.services)
    return wanted


@asynccontextmanager
async def opened(app: App, service: str) -> AsyncIterator[Store]:
    store = app.store(service)
    try:
        await store.open()
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def opened_log(app: App, service: str) -> AsyncIterator[Log]:
    log = app.log(service)
    try:
        await log.open()
        yield log
    finally:
        await log.close()


async def change(store: Store, work: Callable[[Transaction], Awaitable[T]]) -> T:
    """Runs ``work`` in a transaction, again if another transaction was in its way."""
    for left in reversed(range(TRIES)):
        try:
            async with store.transaction() as tx:
                return await work(tx)
        except (TransactionConflict, Busy):
            if not left:
                raise
            await asyncio.sleep(0.05 * (TRIES - left))
    raise AssertionError("unreachable")


async def members(store: Store) -> list[tuple[Member, str | None]]:
    """The processes that have joined the service's group; for one that is gone, how that is known."""

    def look() -> list[tuple[Member, str | None]]:
        membership = store.membership()
        try:
            now, found = membership.members(store.service)
        finally:
            membership.close()
        return [(member, _gone(member, now)) for member in found]

    return await asyncio.to_thread(look)


def _gone(member: Member, now: int) -> str | None:
    if is_gone(member):
        return "its process is gone"
    if member.expires_at < now:
        return "its lease has run out"
    return None
