"""The transaction that a handler or an endpoint holds: its own rows and its messages commit together."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, TypeVar, TypeVarTuple, Unpack

from skald import store as contract
from skald.errors import WorkflowExists
from skald.message import Message, new_id
from skald.messaging.context import correlation
from skald.messaging.definition import TransactionMarker
from skald.messaging.local import LocalWorkflows
from skald.messaging.publisher import Publisher
from skald.unit import Committed, Letter, LetterKind, Tag, Unit, WorkflowStart, WorkflowWrites
from skald.workflows.channels import Signal
from skald.workflows.letters import addressed, delayed, started
from skald.workflows.starting import StartOptions, Work, options_of, started_by

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Starts:
    """What the handlers of one transaction start, written together when they are through. What ``local`` takes belongs
    to this process then."""

    def __init__(self, inner: contract.Transaction, local: LocalWorkflows) -> None:
        self._inner, self._local = inner, local
        self._pending: list[WorkflowStart] = []
        self._written: list[WorkflowStart] = []

    def add(self, start: WorkflowStart) -> None:
        self._pending.append(self._local.take(start))

    async def write(self) -> None:
        """All whose id does not exist."""
        starts = {start.id: start for start in reversed(self._pending)}
        self._pending.clear()
        while starts:
            try:
                await self._inner.apply(Unit(workflows=WorkflowWrites(starts=tuple(starts.values()))))
            except WorkflowExists as error:
                del starts[error.id]
            else:
                self._written += starts.values()
                return

    def committed(self) -> None:
        if self._written:
            self._local.begin([start for start in self._written if start.owner is not None])

    def failed(self) -> None:
        """Nobody knows whether it was committed."""
        self._local.look_for(start for start in self._written if start.owner is not None)


class Transaction(TransactionMarker):
    """One small portable surface: ``:name`` parameters and a common subset of types, alike on every store.

    Values: text, int, float, bytes, bool, ``None``, JSON as dict or list, times as ISO text. ``connection`` is the
    driver's own, for everything else. Messages are written last, when the transaction ends, because the locks they
    take are held until then.
    """

    def __init__(self, inner: contract.Transaction, publisher: Publisher, starts: Starts | None = None) -> None:
        """Where ``starts`` are given, whoever ends the transaction writes them."""
        self._inner, self._publisher, self._starts = inner, publisher, starts
        self._units: list[Unit] = []

    @property
    def connection(self) -> Any:
        return self._inner.connection

    async def execute(self, sql: str, /, **values: Any) -> int:
        """Runs one statement; the number of rows it changed."""
        return await self._inner.execute(sql, **values)

    async def fetch(self, sql: str, /, **values: Any) -> list[contract.Row]:
        """All rows, as dicts."""
        return await self._inner.fetch(sql, **values)

    async def fetch_one(self, sql: str, /, **values: Any) -> contract.Row | None:
        """The first row, or ``None``."""
        rows = await self._inner.fetch(sql, **values)
        return rows[0] if rows else None

    async def now(self) -> int:
        """The database's clock, microseconds since 1970."""
        return await self._inner.now()

    @asynccontextmanager
    async def savepoint(self) -> AsyncIterator[None]:
        """Undoes what the block did if it raises, and only that (messages published in it are kept)."""
        starts = self._starts
        if starts is not None:
            await starts.write()
        async with self._inner.savepoint():
            self._starts = None
            try:
                yield
            finally:
                self._starts = starts

    def publish(self, *messages: Message, key: str | None = None, priority: int = 0, delay: float = 0) -> None:
        """Publishes when the transaction commits, or not at all. A bad message raises here, at its line."""
        self._units.append(self._publisher.unit(messages, key=key, priority=priority, delay=delay))

    async def append(
        self, stream: str, events: Iterable[Message], *, expected: int | None = None, tags: Iterable[Tag] = ()
    ) -> int:
        """Appends events to a stream and returns its new version; a ``Conflict`` leaves the transaction usable."""
        committed = await self._inner.apply(self._publisher.append(stream, events, expected, tags))
        return committed.versions[0]

    async def start(
        self,
        workflow: Callable[[Unpack[Ts]], Work[object]],
        *args: *Ts,
        **options: Unpack[StartOptions],
    ) -> str:
        """Starts a workflow of this service when the transaction commits, or not at all; returns its id.

        See ``Workflow.start``. ``WorkflowExists`` for an id that exists leaves the transaction usable; with
        ``existing="return"`` it is not raised, and what runs under the id is not compared.
        """
        found, chosen = started_by(workflow), options_of(options)
        (body, _), run = found.signature.input(args), new_id()
        id = run if chosen.id is None else chosen.id
        start = started(found, body, run, id, chosen, self._publisher.now(), correlation())
        if chosen.delay:
            start = await delayed(start, chosen.delay, self._inner.now)
        if self._starts is not None:
            if chosen.existing == "return" and chosen.key is None:
                self._starts.add(start)  # there is nothing that its caller would have to be told
                return id
            await self._starts.write()
        try:
            await self._inner.apply(Unit(workflows=WorkflowWrites(starts=(start,))))
        except WorkflowExists:
            if chosen.existing == "reject":
                raise
        return id

    async def signal(self, signal: Signal[T], value: T, *, id: str | None = None, key: str | None = None) -> None:
        """Sends a signal when the transaction commits, or not at all. See ``Service.signal``."""
        by, address = addressed(id, key)
        letter = Letter(
            new_id(), LetterKind.SIGNAL, by, address, signal.name, signal.codec.encode(value), self._publisher.now()
        )
        await self._inner.apply(Unit(workflows=WorkflowWrites(letters=(letter,))))

    async def apply(self, unit: Unit) -> Committed:
        return await self._inner.apply(unit)

    def collected(self) -> tuple[Unit, ...]:
        """What ``publish`` has gathered and nobody has applied yet; for whoever ends the transaction."""
        units, self._units = tuple(self._units), []
        return units


@asynccontextmanager
async def user_transaction(store: contract.Store, publisher: Publisher) -> AsyncIterator[Transaction]:
    """A transaction for ordinary code: what it published is applied at the end of the block."""
    async with store.transaction() as inner:
        transaction = Transaction(inner, publisher)
        yield transaction
        if units := transaction.collected():
            await inner.apply_all(units)
