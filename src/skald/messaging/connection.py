"""A service connected to its database: publishing, appending and transactions, through one committer."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from skald.message import Message
from skald.messaging.publisher import Publisher
from skald.messaging.transaction import Transaction, user_transaction
from skald.store import Store
from skald.unit import Committed, Tag, Unit
from skald.workflows.client import Client


class Submit(Protocol):
    """The committer, as far as publishing needs it."""

    def submit(self, unit: Unit) -> Awaitable[Committed]: ...


class Connection:
    def __init__(self, store: Store, publisher: Publisher, committer: Submit, workflows: Client) -> None:
        self.store, self.publisher, self._committer, self.workflows = store, publisher, committer, workflows

    def submit(self, unit: Unit) -> Awaitable[Committed]:
        """Commits a unit with whatever else is pending; await it until it is durable."""
        return self._committer.submit(unit)

    async def publish(
        self, messages: Iterable[Message], *, key: str | None = None, priority: int = 0, delay: float = 0
    ) -> list[int]:
        unit = self.publisher.unit(messages, key=key, priority=priority, delay=delay)
        return list((await self._committer.submit(unit)).positions)

    async def append(
        self, stream: str, events: Iterable[Message], expected: int | None, tags: Iterable[Tag] = ()
    ) -> int:
        committed = await self._committer.submit(self.publisher.append(stream, events, expected, tags))
        return committed.versions[0]

    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        return user_transaction(self.store, self.publisher)
