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

from msgspec.structs import replace

from skald.errors import ConfigurationError, Stopped
from skald.message import Command, Message, MessageType, message_type
from skald.messaging.definition import Handler, Keeping, Queue, define
from skald.messaging.processes import Definition as ProcessDefinition
from skald.messaging.processes import NotFound, Process, Registered, Role, TimeoutDue, check_state
from skald.messaging.provider import Provider, provider_of
from skald.messaging.router import Declaration
from skald.messaging.starting import Start
from skald.messaging.transaction import Transaction
from skald.retry import Policy
from skald.store import Row, Store
from skald.unit import LetterKind, Tag
from skald.workflows.calling import Calls, results
from skald.workflows.channels import Signal
from skald.workflows.definition import Workflow
from skald.workflows.letters import addressed

if TYPE_CHECKING:
    from skald.messaging.connection import Connection

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")
S = TypeVar("S", bound=Process)
_NAME = re.compile(r"[a-z][a-z0-9_]{0,40}")


class Service:
    """``lanes`` bounds how many processes can share the service's work (1–16). ``start`` says from where a service
    that has never read an origin begins: ``"start"``, ``"now"``, a time, or a position.

    ``migrations`` is a folder of numbered SQL files (``0001_orders.sql``) with the service's own tables.
    ``transactions`` is a SQLAlchemy sessionmaker (or async_sessionmaker) or a psycopg pool on the service's PostgreSQL
    database: its transactions, those of handlers included, then run in such a session, which is ``tx.connection``.
    ``retention`` gives the days for which messages of a type are kept; events are kept for ever by default.
    ``workflows`` are the workflows that run in the service's processes and are stored in its database, ``calls`` the
    commands that they ``call``.
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
        workflows: Iterable[Workflow[..., Any]] = (),
        calls: Iterable[type] = (),
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
        self.calls = Calls(name, [_command(name, cls) for cls in calls])
        self.bind_workflows()
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
        once_by: str | None = None,
        compensates: Callable[..., Any] | None = None,
        remember: float = 365.0,
    ) -> Callable[[F], F]:
        """Handles messages in order by key. What the function returns is published with what it wrote.

        ``exhausted`` is called instead of parking when all attempts have failed, with the message and the error;
        what it returns is published. ``timeout`` (seconds) bounds one attempt. ``once_by`` names the field that says
        which fact of its type it is: one that comes again, under another message id or key, is not handled again.
        ``compensates`` is a handler of this service: what it did for the message's key is undone, once. Both are
        remembered for ``remember`` days (of what can be undone: by the handler that does it).
        """
        options: dict[str, Any] = {"retry": retry, "exhausted": exhausted, "timeout": timeout, "once_by": once_by}
        if compensates is not None:
            options["compensates"] = self._handler_of(compensates)
        return self._register(types, name=name, remember=remember, **options)

    def queue(
        self,
        *types: type,
        workers: int = 4,
        retry: Policy | None = None,
        exhausted: Callable[..., Any] | None = None,
        timeout: float = 30.0,
        name: str | None = None,
        once_by: str | None = None,
        remember: float = 365.0,
    ) -> Callable[[F], F]:
        """Handles messages as work: competing workers, by priority and due time, in no order by key, gone once done."""
        options = {"retry": retry, "exhausted": exhausted, "timeout": timeout, "queue": Queue(workers)}
        return self._register(types, name=name, once_by=once_by, remember=remember, **options)

    def process(
        self,
        state: type[S],
        *,
        by: str,
        not_found: NotFound = "ignore",
        name: str | None = None,
        remember: float = 365.0,
    ) -> Registered[S]:
        """A process: a state per key, which events move on; see ``Process``. ``by`` is the field of the messages that
        says which one is meant.

        ``not_found`` says what becomes of a message for one that has not started or has ended: it is ignored; it fails,
        and is tried again and parked as its ``retry`` says; or a function of the message returns what is published.
        A process that has ended is remembered for ``remember`` days, and does not start again.
        """
        where = f"{self.name}.process({getattr(state, '__name__', state)!s})"
        check_state(state, where)
        definition = ProcessDefinition(name or state.__name__, state)
        if any(handler.keeps and _plays_in(handler.keeps, definition.name) for handler in self.handlers):
            raise ConfigurationError(f"{where}: {self.name} already has a process of this name, give it name=")

        def register(types: Sequence[type], role: Role, **options: Any) -> Callable[[F], F]:
            def decorate(function: F) -> F:
                own = f"{definition.name}.{function.__name__}"
                options["queue"] = Queue() if role.timeout is not None else None
                self._register(types, name=own, role=role, remember=remember, **options)(function)
                handler = self.handlers[-1]
                if role.timeout is not None:
                    if role.timeout in definition.timeouts:
                        raise ConfigurationError(f"{handler.filename}:{handler.line}: {role.timeout!r} has a function")
                    definition.timeouts[role.timeout] = own
                if role.starts:
                    definition.starts.append(own)
                return function

            return decorate

        return Registered(definition, by, not_found, register)

    def _register(self, types: Sequence[type], **options: Any) -> Callable[[F], F]:
        def register(function: F) -> F:
            handler = define(function, on=types, **options)
            if any(handler.name == other.name for other in self.handlers):
                raise ConfigurationError(
                    f"{handler.filename}:{handler.line}: {self.name} already has a handler named {handler.name!r}; "
                    "its name stands in stored retries, so give this one another with name="
                )
            self.handlers.append(handler)
            if handler.keeps is not None and handler.keeps.undoes is not None:
                self._is_compensated(handler.keeps.undoes)
            return function

        return register

    def _handler_of(self, function: Callable[..., Any]) -> Handler:
        for handler in self.handlers:
            if handler.function is function:
                return handler
        raise ConfigurationError(
            f"compensates={getattr(function, '__name__', function)!s} is no handler of {self.name}: "
            f"register it first, with @{self.name}.on"
        )

    def _is_compensated(self, name: str) -> None:
        for place, handler in enumerate(self.handlers):
            if handler.name == name:
                keeps = replace(handler.keeps or Keeping(), compensated=True)
                self.handlers[place] = replace(handler, keeps=keeps)

    def provide(self, function: F) -> F:
        """Registers a dependency: a function annotated with what it returns, sync or async.

        A generator (or async generator) yields the value once and cleans up after its ``yield`` when the service
        stops. It is made once per process, before the first message.
        """
        provider = provider_of(function)
        self.providers[provider.makes] = provider
        return function

    def declaration(self) -> Declaration:
        # Timeouts come through no log.
        timeouts = [handler for handler in self.handlers if handler.types == (message_type(TimeoutDue),)]
        handlers = [replace(handler, types=()) if handler in timeouts else handler for handler in self.handlers]
        return Declaration(self.name, tuple(handlers), self.publishes, self.lanes, self.calls.kinds)

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

    def bind_workflows(self) -> None:
        """Lets its workflows call what it declares; one may have been another service's before."""
        for workflow in self.workflows:
            workflow.calls = self.calls

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


def _command(service: str, cls: type) -> MessageType:
    """One that workflows may call; what its class says of its result is looked at here."""
    if not issubclass(cls, Command):
        raise ConfigurationError(
            f"Service({service!r}, calls=[{getattr(cls, '__name__', cls)!s}]): name classes of Command"
        )
    results(cls)
    return message_type(cls)


def _plays_in(keeps: Keeping, process: str) -> bool:
    return keeps.role is not None and keeps.role.process.name == process
