"""The application: which services there are and where they keep their data. Registers, composes, runs; no more.

    app = App(orders, payments, inventory, store="sqlite:.skald")

With ``sqlite:FOLDER`` each service has the file ``FOLDER/SERVICE.db``; with ``postgresql://…`` a schema named after it.
``SKALD_STORE`` overrides the argument, and ``stores={"payments": "postgresql://…"}`` places single services elsewhere.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

from skald.clock import Clock, SystemClock
from skald.errors import ConfigurationError
from skald.messaging import cursor
from skald.messaging.router import Topology, topology
from skald.messaging.service import Service
from skald.runtime.service import ConnectedService, RunningService, RuntimeSettings
from skald.store import Log, Store

DEFAULT_STORE = "sqlite:.skald"


class App:
    """The services of one application; made at import, checked when it is first used.

    ``settings`` apply to every service of the process.
    """

    def __init__(
        self,
        *services: Service,
        store: str | None = None,
        stores: Mapping[str, str] | None = None,
        settings: RuntimeSettings | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.services = {service.name: service for service in services}
        if len(self.services) != len(services):
            names = [service.name for service in services]
            double = sorted({name for name in names if names.count(name) > 1})
            raise ConfigurationError(f"two services are named {', '.join(double)}")
        self._store = os.environ.get("SKALD_STORE") or store or DEFAULT_STORE
        self._stores = dict(stores or {})
        self.settings = settings or settings_from(os.environ)
        self._clock: Clock = clock or SystemClock()
        self._memory: str | None = None
        self._topology: Topology | None = None

    @property
    def topology(self) -> Topology:
        """Who publishes what to whom; raises ``ConfigurationError`` if the services do not fit together."""
        if self._topology is None:
            self._topology = topology(service.declaration() for service in self.services.values())
            for name, service in self.services.items():
                service.calls.routes = self._topology.calls[name]
                service.calls.max_body = self.settings.max_body
        return self._topology

    def service(self, name: str) -> Service:
        if name not in self.services:
            raise ConfigurationError(f"there is no service {name!r}; there are: {', '.join(sorted(self.services))}")
        return self.services[name]

    # --- stores -------------------------------------------------------------------------------------------------------

    def url(self, service: str) -> str:
        """Where a service keeps its data."""
        return self._stores.get(service, self._store)

    def shown_url(self, service: str) -> str:
        """The same for people: without password and parameters."""
        return shown_url(self.url(service))

    def store(self, service: str) -> Store:
        """A store of a service, not yet opened. The adapters are named here and nowhere else."""
        url, sessions = self.url(service), self.service(service).transactions
        if url.startswith("sqlite:"):
            from skald.stores.sqlite import SqliteStore

            if sessions is not None:
                raise ConfigurationError(
                    f"{service}: transactions= needs PostgreSQL; on SQLite the transaction is the library's own"
                )
            return SqliteStore(self._folder(url) / f"{service}.db", service, clock=self._clock)
        if url.partition(":")[0].lower() in ("postgresql", "postgres"):
            try:
                from skald.stores.postgres import PostgresStore
            except ImportError as error:
                raise ConfigurationError("PostgreSQL needs asyncpg: pip install 'skald[postgres]'") from error
            return PostgresStore(url, service, lease=self.settings.lease, sessions=sessions)
        raise ConfigurationError(
            f"store {shown_url(url)!r}: use sqlite:FOLDER, sqlite::memory: or postgresql://HOST/DATABASE"
        )

    def log(self, service: str) -> Log:
        """The log of a service, to be read by others."""
        url = self.url(service)
        if url.startswith("sqlite:"):
            from skald.stores.sqlite import SqliteLog

            return SqliteLog(self._folder(url) / f"{service}.db")
        from skald.stores.postgres import PostgresLog

        return PostgresLog(url, service)

    def _folder(self, url: str) -> Path:
        path = url.removeprefix("sqlite:")
        if path.startswith("//"):
            path = path[2:]
        if path != ":memory:":
            return Path(path or ".")
        if self._memory is None:
            # A folder in memory rather than SQLite's own memory databases, which know neither WAL nor other processes.
            base = "/dev/shm" if os.path.isdir("/dev/shm") else None
            self._memory = tempfile.mkdtemp(prefix="skald-", dir=base)
        return Path(self._memory)

    def discard_memory(self) -> None:
        """Deletes what ``sqlite::memory:`` has stored."""
        if self._memory is not None:
            shutil.rmtree(self._memory, ignore_errors=True)
            self._memory = None

    # --- use cases ----------------------------------------------------------------------------------------------------

    async def migrate(self, names: Iterable[str] | None = None) -> dict[str, list[str]]:
        """Applies the pending SQL files of the named services (all by default); returns their names."""
        applied = {}
        for name in names or self.services:
            service, store = self.service(name), self.store(name)
            try:
                applied[name] = await store.migrate(service.migrations)
            finally:
                await store.close()
        return applied

    @asynccontextmanager
    async def connect(self, *names: str) -> AsyncIterator[None]:
        """Within the block the named services can publish and open transactions; nothing is consumed."""
        async with AsyncExitStack() as stack:
            for name in names or tuple(self.services):
                await self._connect(name, stack)
            yield

    @asynccontextmanager
    async def run(self, *names: str) -> AsyncIterator[list[RunningService]]:
        """Within the block the named services (all by default) consume, and can publish."""
        async with AsyncExitStack() as stack:
            connected = [await self._connect(name, stack) for name in names or tuple(self.services)]
            running = []
            for one in connected:
                running.append(await self._run(one, stack))
            yield running

    async def _connect(self, name: str, stack: AsyncExitStack) -> ConnectedService:
        service = self.service(name)
        publishes = {cls: topic for cls, topic in self.topology.topics.items() if self._may_publish(name, cls)}
        connected = ConnectedService(service, self.store(name), publishes, self._clock, self.settings)
        stack.push_async_callback(connected.stop)
        await connected.start()
        return connected

    async def slowest_reader(self, origin: str) -> int | None:
        """The lowest position of all services that read an origin's log, ``None`` if none does. Asks their databases,
        and raises if one cannot be asked: what it has read is then not known."""
        positions = []
        for group, subscriptions in self.topology.subscriptions.items():
            if any(subscription.origin == origin for subscription in subscriptions):
                store = self.store(group)
                try:
                    await store.open()
                    positions.append(await cursor.slowest(store, group, origin))
                finally:
                    await store.close()
        return min(positions, default=None)

    def _may_publish(self, service: str, cls: type) -> bool:
        return service in self.topology.owners[cls.__message__.name]  # type: ignore[attr-defined]

    async def _run(self, connected: ConnectedService, stack: AsyncExitStack) -> RunningService:
        subscriptions = self.topology.subscriptions[connected.service.name]
        logs = {subscription.origin: self.log(subscription.origin) for subscription in subscriptions}
        for log in logs.values():
            stack.push_async_callback(log.close)
        readers = partial(self.slowest_reader, connected.service.name)
        running = RunningService(connected, subscriptions, logs, self._clock, readers)
        stack.push_async_callback(running.stop)
        await running.start()
        return running


def shown_url(url: str) -> str:
    """An address for people: without password and parameters, which may hold one too."""
    scheme, rest = url.partition(":")[::2]
    if scheme == "sqlite":
        return url
    address, _, query = rest.removeprefix("//").partition("?")
    user, at, place = address.rpartition("@")
    if not at and "@" in query:  # a password with a ? that nobody has quoted
        return f"{scheme}://***"
    return f"{scheme}://{user.partition(':')[0]}{at}{place}"


_SETTINGS: dict[str, Callable[[str], float | int]] = {"lease": float, "max_pending": int, "max_body": int}


def settings_from(environment: Mapping[str, str]) -> RuntimeSettings:
    """Settings from ``SKALD_LEASE``, ``SKALD_MAX_PENDING`` and ``SKALD_MAX_BODY``."""
    values = {}
    for name, convert in _SETTINGS.items():
        text = environment.get(f"SKALD_{name.upper()}")
        if text:
            try:
                values[name] = convert(text)
            except ValueError as error:
                raise ConfigurationError(f"SKALD_{name.upper()}={text!r} is not a number") from error
    return RuntimeSettings(**values)  # type: ignore[arg-type]
