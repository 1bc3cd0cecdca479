"""Retention: deletes what nobody needs any more, in small batches, below the slowest registered reader.

Events are kept for ever, unless the service declares days for their type. Commands and replies are kept for a week
(a reader that was restored from a backup reads them again), answers of the HTTP face too, what handlers remember of
keys as long as they say, and what the store keeps for itself for a day. A message is deleted only when every lane of
every reader stands *behind* it: the one that a cursor points at stays, because the reader compares its id. If one
reader's database cannot be asked, nothing is deleted, and that is told. The floors (of all types together, and of each)
rise in the transaction that deletes.

The log is walked by its primary key, a page at a time, from where the last walk found nothing due any more; there is
no index on types or times that every append would have to pay for. One process of a service prunes (``leads``); if two
do for a moment, they delete the same rows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from skald.clock import Clock
from skald.errors import SkaldError
from skald.messaging.definition import remembered
from skald.messaging.outcome import describe
from skald.messaging.service import Service
from skald.sql import blocks
from skald.store import Row, Store, Transaction
from skald.telemetry import Recovering, emit

_SQL = blocks("skald.runtime", "pruner")
_DAY = 86_400_000_000
MAX_BYTES = 16 << 20
"""Of payloads per transaction; on SQLite, freeing them takes the time of every other writer."""
RARELY = 3_600.0
"""Seconds between two walks through what has no order of time: answers of the HTTP face, the store's own records."""
PAUSE = 0.01
"""Seconds between two batches, in which others write."""

Slowest = Callable[[], Awaitable[int | None]]
"""The lowest position of all readers' lanes; ``None`` if there are no readers. Raises if one cannot be asked."""


class PrunerSettings(msgspec.Struct, frozen=True):
    """``messages`` and ``idempotency`` are days; ``interval`` is in seconds, ``batch`` in rows."""

    interval: float = 60.0
    messages: float = 7.0
    idempotency: float = 7.0
    batch: int = 1_000


class Pruned(msgspec.Struct):
    """Rows that one step has deleted."""

    events: int = 0
    messages: int = 0
    idempotency: int = 0
    marks: int = 0
    own: int = 0


class _Walk(msgspec.Struct):
    """Through one table, for one type, or for all but some."""

    table: str
    days: float
    only: str | None = None
    but: frozenset[str] = frozenset()
    place: int = 0
    """Nothing at or below it is left to delete, as far as it ever will be."""

    def concerns(self, type: str) -> bool:
        return type == self.only if self.only is not None else type not in self.but


class Pruner:
    """``readers`` is asked only when something is due; ``leads`` says whether this process is the one that prunes."""

    def __init__(
        self,
        *,
        store: Store,
        service: Service,
        readers: Slowest,
        clock: Clock,
        settings: PrunerSettings | None = None,
        leads: Callable[[], bool] = lambda: True,
    ) -> None:
        self._store, self._service, self._readers, self._clock = store, service, readers, clock
        self._settings, self._leads = settings or PrunerSettings(), leads
        self._walks: list[_Walk] | None = None
        self._rarely_at = 0
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Every ``interval``, until ``stop``."""
        while not await self._stopped(self._settings.interval):
            if self._leads():
                try:
                    await self.step()
                except (SkaldError, OSError) as error:
                    emit(Recovering(self._service.name, "retention", describe(error), self._settings.interval))

    async def stop(self) -> None:
        self._stopping.set()

    async def _stopped(self, seconds: float) -> bool:
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except TimeoutError:
            return False
        return True

    async def step(self) -> Pruned:
        """Deletes everything that is due now. Raises if a reader cannot be asked; no message is deleted then."""
        done = Pruned()
        now = self._clock.now()
        for walk in await self._all_walks():
            count = await self._walk(walk, now)
            setattr(done, walk.table, getattr(done, walk.table) + count)
        if now >= self._rarely_at:
            self._rarely_at = now + round(RARELY * 1e6)
            done.idempotency = await self._forget_answers(now)
            done.marks = await self._forget_marks(now)
            done.own = await self._store.tidy()
        return done

    async def _all_walks(self) -> list[_Walk]:
        """One per type with a limit of its own, because each limit has a frontier of its own."""
        if self._walks is None:
            rows = await self._store.fetch(_SQL["floors"])
            floors = {row["key"].removeprefix("floor:"): int(row["value"]) for row in rows}
            retention, commands = self._service.retention, _commands(self._service)
            walks = [
                _Walk("messages" if type in commands else "events", days, only=type, place=floors.get(type, 0))
                for type, days in retention.items()
            ]
            self._walks = [*walks, _Walk("messages", self._settings.messages, but=frozenset(retention))]
        return self._walks

    # --- the log ------------------------------------------------------------------------------------------------------

    async def _walk(self, walk: _Walk, now: int) -> int:
        before = now - round(walk.days * _DAY)
        deleted, place, waits, asked = 0, walk.place, False, False
        below: int | None = None
        while not self._stopping.is_set():
            rows = await self._store.fetch(_SQL[walk.table], after=place, limit=self._settings.batch)
            due = [row for row in rows if row["time"] < before and walk.concerns(row["type"])]
            if due and not asked:
                below, asked = await self._readers(), True
            rows = _by_size(rows if below is None else [row for row in rows if row["position"] < below], due)
            if not rows:
                break
            place = rows[-1]["position"]
            due = [row for row in due if row["position"] <= place]
            if due:
                deleted += await self._delete(walk.table, due, before)
            # What is dated far in the future, by a wrong clock, is not waited for.
            waits = waits or any(before <= row["time"] <= now + _DAY and walk.concerns(row["type"]) for row in rows)
            if not waits:
                walk.place = place
            elif not due and rows[-1]["time"] >= before:
                break
            await asyncio.sleep(PAUSE if due else 0)
        return deleted

    async def _delete(self, table: str, due: list[Row], before: int) -> int:
        last = {row["type"]: row["position"] for row in due}
        first, count = due[0]["position"], 0
        async with self._store.transaction() as tx:
            for type, position in last.items():
                count += await tx.execute(_SQL[f"delete_{table}"], first=first, last=position, type=type, before=before)
                await _raise_floor(tx, f"floor:{type}", position)
            await _raise_floor(tx, "floor", due[-1]["position"])
        return count

    # --- what has no position -----------------------------------------------------------------------------------------

    async def _forget_answers(self, now: int) -> int:
        before = now - round(self._settings.idempotency * _DAY)
        place: dict[str, Any] = {"scope": "", "key": ""}
        deleted = 0
        while not self._stopping.is_set():
            rows = await self._store.fetch(_SQL["idempotency"], limit=self._settings.batch, **place)
            if not rows:
                break
            last = {"scope": rows[-1]["scope"], "key": rows[-1]["key"]}
            if any(row["created_at"] < before for row in rows):
                async with self._store.transaction() as tx:
                    ends = {f"last_{name}": value for name, value in last.items()}
                    deleted += await tx.execute(_SQL["delete_idempotency"], before=before, **place, **ends)
            place = last
            await asyncio.sleep(PAUSE)
        return deleted

    async def _forget_marks(self, now: int) -> int:
        deleted = 0
        for (kind, name), days in remembered(self._service.handlers).items():
            before, key = now - round(days * _DAY), ""
            while not self._stopping.is_set():
                of = {"kind": kind.value, "name": name, "key": key}
                rows = await self._store.fetch(_SQL["marks"], limit=self._settings.batch, **of)
                if not rows:
                    break
                key = rows[-1]["key"]
                if any(row["updated_at"] < before for row in rows):
                    async with self._store.transaction() as tx:
                        deleted += await tx.execute(_SQL["delete_marks"], before=before, last=key, **of)
                await asyncio.sleep(PAUSE)
        return deleted


async def _raise_floor(tx: Transaction, key: str, position: int) -> None:
    await tx.execute(_SQL["raise_floor"], key=key, position=str(position))


def _commands(service: Service) -> set[str]:
    of_handlers = (kind for handler in service.handlers for kind in (*handler.types, *handler.returns))
    kinds = [*service.publishes, *service.calls.kinds, *of_handlers]
    return {kind.name for kind in kinds if kind.kind == "command"}


def _by_size(rows: list[Row], due: list[Row]) -> list[Row]:
    """As many rows from the front as one transaction should free, but always one that is due."""
    sizes = {row["position"]: row["size"] for row in due}
    total, found = 0, 0
    for count, row in enumerate(rows):
        size = sizes.get(row["position"])
        if size is not None:
            total, found = total + size, found + 1
            if found > 1 and total > MAX_BYTES:
                return rows[:count]
    return rows
