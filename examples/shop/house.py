"""The shop with all its processes in one folder: what the demo shows, and what tests break on purpose.

async with House(folder, "sqlite:.skald") as house:
    ...  # house.url is the gateway; kill, switch off and audit as you like
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import httpx

from examples.shop import seed
from examples.shop.audit import Audit, audit
from examples.shop.books import Books, collect
from examples.shop.styles import DEFAULT, application
from examples.shop.supervisor import Child, NotStarted, Supervisor, listen, url_of
from skald import App

SHOP = "examples.shop.app:app"
CALLED = ("keyed", "keyless", "catalogue", "gateway")
"""The processes that others talk to; the services are reached through their logs alone."""
READY_WITHIN = 60.0


class Used(Exception):
    """The store holds an earlier run, and to start clean is for its owner to decide."""


class House:
    """``settings`` are variables of the environment (``SHOP_…``)."""

    def __init__(
        self,
        folder: Path,
        store: str,
        *,
        style: str = DEFAULT,
        port: int = 0,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.folder, self.store, self.style = folder, store, style
        services = application(style).services
        self.app = App(*services.values(), stores=dict.fromkeys(services, store))
        self._sockets = {name: listen(port if name == "gateway" else 0) for name in CALLED}
        self.urls = {name: url_of(opened) for name, opened in self._sockets.items()}
        environment = {
            **os.environ,
            **(settings or {}),
            "SHOP_STYLE": style,
            "SKALD_STORE": store,
            "SHOP_LEDGERS": str(self.ledgers),
            **{f"SHOP_{name.upper()}_URL": self.urls[name] for name in ("keyed", "keyless", "catalogue")},
        }
        self.supervisor = Supervisor(folder, self._children(), environment)

    @property
    def url(self) -> str:
        return self.urls["gateway"]

    @property
    def ledgers(self) -> Path:
        return self.folder / "providers"

    def _children(self) -> Iterable[Child]:
        yield from providers(self._sockets)
        for name in self.app.services:
            yield Child(name, ("skald", "run", SHOP, "--service", name))
        for name in ("catalogue", "gateway"):
            yield Child(name, ("serve", f"examples.shop.{name}:create"), self._sockets[name])

    async def __aenter__(self) -> House:
        try:
            await self.open()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def open(self) -> None:
        """Makes the tables, fills the warehouse, starts everything, and waits until orders can be placed."""
        await self.app.migrate()
        async with self.app.connect("orders", "inventory"):
            known = await self.app.service("orders").fetch("SELECT COUNT(*) AS number FROM orders")
            if known[0]["number"]:
                names = ", ".join(self.app.services)
                raise Used(
                    f"{without_password(self.store)} holds the orders of an earlier run. To start clean, "
                    f"on PostgreSQL: DROP SCHEMA {names} CASCADE; on SQLite: delete the folder"
                )
            await seed.stock_up(self.app.service("inventory"))
        self.supervisor.start()
        await until_ready(self.url, self.supervisor)

    async def close(self) -> None:
        await self.supervisor.stop()
        for opened in self._sockets.values():
            opened.close()

    async def books(self) -> Books:
        return await collect(self.app, self.ledgers)

    async def audit(self, acknowledged: Collection[str] = ()) -> Audit:
        return audit(await self.books(), acknowledged)


def providers(sockets: Mapping[str, socket.socket]) -> list[Child]:
    return [
        Child(name, ("serve", f"examples.shop.providers.{name}:app"), sockets[name]) for name in ("keyed", "keyless")
    ]


async def until_ready(url: str, supervisor: Supervisor, path: str = "/ready") -> None:
    deadline = time.monotonic() + READY_WITHIN
    async with httpx.AsyncClient(base_url=url, timeout=2.0) as http:
        while time.monotonic() < deadline:
            with suppress(httpx.TransportError):
                if (await http.get(path)).status_code == 200:
                    return
            await supervisor.tick()
    raise NotStarted(f"{url}{path} was not ready within {READY_WITHIN:g} s; look into {supervisor.logs}")


def without_password(store: str) -> str:
    scheme, mark, rest = store.partition("://")
    return f"{scheme}{mark}{rest.rpartition('@')[2]}" if mark else store
