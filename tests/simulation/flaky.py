"""A store that fails now and then, before it has done what it was asked for or (the reply is lost) after."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from skald import App
from skald.errors import Rejection, StoreUnavailable
from skald.store import Row, Store, Transaction
from skald.unit import Committed, Unit


class Flaky:
    """Everything else is the store's own."""

    def __init__(self, store: Store, chance: random.Random, rate: float) -> None:
        self._store, self._chance, self.rate = store, chance, rate
        self.failures = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def _roll(self, what: str) -> None:
        if self._chance.random() < self.rate:
            self.failures += 1
            raise StoreUnavailable(f"{what}: planted")

    async def commit(self, units: Sequence[Unit], *, patient: bool = False) -> list[Committed | Rejection]:
        self._roll("before a commit")
        outcomes = await self._store.commit(units, patient=patient)
        self._roll("after a commit")
        return outcomes

    def commit_at_once(self, units: Sequence[Unit]) -> list[Committed | Rejection] | None:
        self._roll("before a commit")
        outcomes = self._store.commit_at_once(units)
        if outcomes is not None:
            self._roll("after a commit")
        return outcomes

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        self._roll("before a transaction")
        async with self._store.transaction() as tx:
            yield tx
            self._roll("before the end of a transaction")
        self._roll("after a transaction")

    async def fetch(self, sql: str, /, **values: Any) -> list[Row]:
        self._roll("a query")
        return await self._store.fetch(sql, **values)


class FlakyApp(App):
    """``flaky`` maps services to the rate at which their stores fail; 0 while they start."""

    def __init__(self, *services: Any, chance: random.Random, flaky: Sequence[str], **options: Any) -> None:
        super().__init__(*services, **options)
        self._chance, self._names = chance, flaky
        self.stores: list[Flaky] = []

    def store(self, service: str) -> Store:
        store = super().store(service)
        if service not in self._names:
            return store
        self.stores.append(Flaky(store, self._chance, 0))
        return self.stores[-1]

    @property
    def failures(self) -> int:
        return sum(store.failures for store in self.stores)

    def fail(self, rate: float) -> None:
        for store in self.stores:
            store.rate = rate
