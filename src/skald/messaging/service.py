"""A service: its handlers, what it publishes, what it needs, and who answers for it. Declared once, at import.

    payments = Service("payments", team="shop", on_call="payments@example.com", publishes=[PaymentRefunded])

    @payments.on(OrderPlaced, retry=Retry(immediate=3, delays=(1, 5, 30)))
    async def charge(event: OrderPlaced, gateway: Gateway, tx: Transaction) -> PaymentProcessed | PaymentFailed:
        ...

A service that is connected (``App.connect`` or ``App.run``) also publishes from ordinary code.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from skald.errors import ConfigurationError, Stopped
from skald.message import Message, message_type
from skald.messaging.definition import Handler, Queue, define
from skald.messaging.provider import Provider, provider_of
from skald.messaging.router import Declaration
from skald.messaging.starting import Start
from skald.messaging.transaction import Transaction
from skald.retry import Policy
from skald.store import Row, Store
from skald.unit import LetterKind, Tag
from skald.workflows.channels import Signal
from skald.workflows.definition import Workflow
from skald.workflows.letters import addressed

if TYPE_CHECKING:
    from skald.messaging.connection import Connection

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")
_NAME = re.compile(r"[a-z][a-z0-9_]{0,40}")


class Service:
    """``lanes`` bounds how many processes can share the service's work (1–16). ``start`` says from where a service
    that has never read an origin begins: ``"start"``, ``"now"``, a time, or a position.

    ``migrations`` is a folder of numbered SQL files (``0001_orders.sql``) with the service's own tables.
    ``transactions`` is a SQLAlchemy sessionmaker (or async_sessionmaker) or a psycopg pool on the service's PostgreSQL
    database: its transactions, those of handlers included, then run in such a session, which is ``tx.connection``.
    ``retention`` gives the days for which messages of a type are kept; events are kept for ever by default.
    ``workflows`` are the workflows that run in the service's processes and are stored in its database.
    """

    def __init__(
        self,
        name: str,
        *,
        team: str | None = None,
        on_call: str | None = None,
        publishes: Iterable[type] = (),
        migrations: Path | None = None,
        lanes: int = 8,
        start: Start = "start",
        retention: dict[type, float] | None = None,
        transactions: Any = None,
        workflows: Iterable[Workflow[*tuple[Any, ...], Any]] = (),
    ) -> None:
        if not _NAME.fullmatch(name):
            raise ConfigurationError(
                f"Service({name!r}): a name has lower-case letters, digits and underscores, starts with a letter, "
                "and has at most 41 characters (it names a topic, a file and a schema)"
            )
        if not 1 <= lanes <= 16:
            raise ConfigurationError(f"Service({name!r}, lanes={lanes}): lanes is 1 to 16")
        self.name, self.team, self.on_call = name, team, on_call
        self.migrations, self.lanes, self.start = migrations, lanes, start
        self.retention = {message_type(cls).name: days for cls, days in (retention or {}).items()}
        self.transactions = transactions
        self.publishes = tuple(message_type(cls) for cls in publishes)
        self.workflows = tuple(workflows)
        names = [workflow.name for workflow in self.workflows]
        if len(set(names)) != len(names):
            double = sorted({each for each in names if names.count(each) > 1})
            raise ConfigurationError(f"Service({name!r}): two workflows are named {', '.join(double)}")
        self.handlers: list[Handler] = []
        self.providers: dict[type, Provider] = {}
        self._connection: Connection | None = None

    def on(
        self,
        *types: type,
        retry: Policy | None = None,
        exhausted: Callable[..., Any] | None = None,
        timeout: float = 30.0,
        name: str | None = None,
    ) -> Callable[[F], F]:
        """Handles messages in order by key. What the function returns is published with what it wrote.

        ``exhausted`` is called instead of parking when all attempts have failed, with the message and the error;
        what it returns is published. ``timeout`` (seconds) bounds one attempt.
        """
        return self._register(types, name=name, retry=retry, exhausted=exhausted, timeout=timeout)

    def queue(
        self,
        *types: type,
        workers: int = 4,
        retry: Policy | None = None,
        exhausted: Callable[..., Any] | None = None,
        timeout: float = 30.0,
        name: str | None = None,
    ) -> Callable[[F], F]:
        """Handles messages as work: competing workers, by priority and due time, in no order by key, gone once done."""
        queue = Queue(workers)
        return self._register(types, name=name, retry=retry, exhausted=exhausted, timeout=timeout, queue=queue)

    def _register(self, types: Sequence[type], **options: Any) -> Callable[[F], F]:
        def register(function: F) -> F:
            handler = define(function, on=types, **options)
            if any(handler.name == other.name for other in self.handlers):
                raise ConfigurationError(
                    f"{handler.filename}:{handler.line}: {self.name} already has a handler named {handler.name!r}; "
                    "its name stands in stored retries, so give this one another with name="
                )
            self.handlers.append(handler)
            return function

        return register

    def provide(self, function: F) -> F:
        """Registers a dependency: a function annotated with what it returns, sync or async.

        A generator (or async generator) yields the value once and cleans up after its ``yield`` when the service
        stops. It is made once per process, before the first message.
        """
        provider = provider_of(function)
        self.providers[provider.makes] = provider
        return function

    def declaration(self) -> Declaration:
        return Declaration(self.name, tuple(self.handlers), self.publishes, self.lanes)

    # --- while connected ----------------------------------------------------------------------------------------------

    @property
    def connection(self) -> Connection:
        if self._connection is None:
            raise Stopped(
                f"service {self.name!r} is not connected: use it inside 'async with app.connect({self.name!r})' "
                f"or 'async with app.run({self.name!r})'"
            )
        return self._connection

    @property
    def store(self) -> Store:
        return self.connection.store

    def bind(self, connection: Connection | None) -> None:
        """Called by the application when it connects and disconnects the service."""
        if connection is not None and self._connection is not None:
            raise ConfigurationError(f"service {self.name!r} is connected already")
        self._connection = connection

    async def publish(
        self, *messages: Message, key: str | None = None, priority: int = 0, delay: float = 0
    ) -> list[int]:
        """Publishes in a unit of their own and returns the positions once they are durable.

        ``priority`` (higher first) and ``delay`` (seconds) concern handlers declared with ``queue``.
        """
        return await self.connection.publish(messages, key=key, priority=priority, delay=delay)

    async def append(
        self, stream: str, events: Iterable[Message], *, expected: int | None = None, tags: Iterable[Tag] = ()
    ) -> int:
        """Appends events to a stream; returns its new version, or raises ``Conflict``."""
        return await self.connection.append(stream, events, expected, tags)

    async def signal(self, signal: Signal[T], value: T, *, id: str | None = None, key: str | None = None) -> None:
        """Sends a signal to a workflow of this service, by its id or by its business key, also before it is started."""
        kind, by, address = LetterKind.SIGNAL, *addressed(id, key)
        await self.connection.workflows.send(kind, by, address, signal.name, signal.codec.encode(value))

    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        """A transaction of this service's database for ordinary code."""
        return self.connection.transaction()

    async def fetch(self, sql: str, /, **values: Any) -> list[Row]:
        """Reads committed rows of this service's database."""
        return await self.connection.store.fetch(sql, **values)
