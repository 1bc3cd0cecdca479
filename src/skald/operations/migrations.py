"""The numbered SQL files that are still to be applied, and applying them."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from skald.app import App
from skald.operations.access import chosen


class PendingFile(msgspec.Struct, frozen=True):
    service: str
    name: str
    sql: str


class Migrated(msgspec.Struct, frozen=True):
    service: str
    applied: list[str]


async def plan_migrations(app: App, services: Iterable[str] = ()) -> list[PendingFile]:
    """What ``migrate`` would apply, in order; changes nothing and makes no file."""
    found: list[PendingFile] = []
    for name in chosen(app, services):
        store = app.store(name)
        try:
            pending = await store.pending_migrations(app.service(name).migrations)
        finally:
            await store.close()
        found += [PendingFile(name, file, text) for file, text in pending]
    return found


async def migrate(app: App, services: Iterable[str] = ()) -> list[Migrated]:
    """Applies the pending files of the library and of the services; safe when many processes do it at once."""
    applied = await app.migrate(chosen(app, services))
    return [Migrated(name, files) for name, files in applied.items()]
