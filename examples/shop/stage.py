"""One performance of the demo: start the processes, let the customers in, wait for rest, audit, compare."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

import httpx
import msgspec

from examples.shop import seed, synchronous
from examples.shop.app import app
from examples.shop.audit import Audit, audit
from examples.shop.books import collect
from examples.shop.chaos import Havoc
from examples.shop.demo import Options, Refused
from examples.shop.load import Tally, percentile, place_all, plans
from examples.shop.orders import orders
from examples.shop.settings import settings
from examples.shop.supervisor import Child, NotStarted, Supervisor, listen, url_of

CUSTOMERS = 12
"""At a time."""
COMPARED = 60
"""Orders placed by synchronous calls."""
READY_WITHIN = 60.0
REST_WITHIN = 60.0
SHOW_EVERY = (0.2, 2.0)
"""Seconds between two looks at the progress, on a terminal and elsewhere."""
SHOP = "examples.shop"


class Result(msgspec.Struct, frozen=True):
    audit: Audit
    seconds: float
    latencies: list[float]
    """Seconds from POST to CONFIRMED, for orders with nothing peculiar about them."""
    synchronous: list[float]
    kills: int
    restarts: int
    repeated: int

    def times(self) -> str:
        text = f"POST to CONFIRMED {_spread(self.latencies)}"
        return (
            f"{text}; the same by synchronous calls {_spread(self.synchronous)}" if self.synchronous else text
        )

    def as_dict(self) -> dict[str, Any]:
        return {
            **self.audit.as_dict(),
            "seconds": round(self.seconds, 3),
            "latency_ms": _percentiles(self.latencies),
            "synchronous_ms": _percentiles(self.synchronous),
            "kills": self.kills,
            "restarts": self.restarts,
            "repeated": self.repeated,
        }


def _percentiles(seconds: list[float]) -> dict[str, float]:
    return {f"p{n}": round(percentile(seconds, n / 100) * 1e3, 1) for n in (50, 99)}


def _spread(seconds: list[float]) -> str:
    return ", ".join(f"{name} {value:,.0f} ms" for name, value in _percentiles(seconds).items())


class Stage:
    """Everything started is stopped when the block ends."""

    def __init__(self, chosen: Options, folder: Path, sockets: dict[str, socket.socket], out: TextIO) -> None:
        self._chosen, self._folder, self._out = chosen, folder, out
        self._url = url_of(sockets["gateway"])
        self._supervisor = Supervisor(folder, _children(sockets), os.environ)
        self._havoc = Havoc(self._supervisor, chosen.seed)
        self._tally = Tally()

    async def __aenter__(self) -> Stage:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._supervisor.stop()

    async def perform(self) -> Result:
        self._say(
            f"The shop on {_public(self._chosen.store)}: six services, gateway, catalogue and two providers,"
        )
        self._say(f"each a process (ids in {self._folder}/run, output in {self._folder}/log).")
        await self._open()
        self._say(f"Page {self._url}/  API {self._url}/openapi.json")
        started = time.perf_counter()
        await self._let_customers_in()
        finding = await self._rest()
        seconds = time.perf_counter() - started
        compared = [] if self._chosen.chaos or not self._chosen.orders else await self._compare()
        return Result(
            audit=finding,
            seconds=seconds,
            latencies=self._tally.latencies,
            synchronous=compared,
            kills=self._havoc.kills,
            restarts=self._supervisor.restarts,
            repeated=self._tally.repeated,
        )

    # --- scenes ---------------------------------------------------------------------------------------------

    async def _open(self) -> None:
        await app.migrate()
        async with app.connect("orders"):
            known = await orders.fetch("SELECT COUNT(*) AS number FROM orders")
        if known[0]["number"]:
            names = ", ".join(app.services)
            raise Refused(
                f"{_public(self._chosen.store)} holds orders of an earlier run, and their ledgers are gone. To start "
                f"clean, on PostgreSQL: DROP SCHEMA {names} CASCADE; on SQLite: delete the folder"
            )
        await seed.main()
        self._supervisor.start()
        await _until_ready(self._url, self._supervisor)

    async def _let_customers_in(self) -> None:
        todo = plans(self._chosen.orders, self._chosen.seed)
        chaos = ", with kill -9 at random" if self._chosen.chaos else ""
        self._say(f"{len(todo)} orders by {CUSTOMERS} customers at a time (seed {self._chosen.seed}){chaos}:")
        showing = asyncio.create_task(self._show_progress(len(todo)))
        havoc = asyncio.create_task(self._havoc.run()) if self._chosen.chaos else None
        try:
            await place_all(self._url, todo, self._tally, CUSTOMERS)
        finally:
            for task in (showing, havoc):
                if task is not None:
                    task.cancel()
                    with suppress(asyncio.CancelledError):
                        await task
        self._show(len(todo), last=True)

    async def _rest(self) -> Audit:
        """Reads the ledger until it balances and nothing moves any more, or until no more patience is left."""
        deadline, before = time.monotonic() + REST_WITHIN, None
        while True:
            found = audit(await collect(app, self._folder / "providers"), self._tally.placed)
            if (found.balanced and found == before) or time.monotonic() > deadline:
                return found
            before = found
            await asyncio.sleep(0.3)

    async def _compare(self) -> list[float]:
        """The same orders by synchronous calls, on a store and with providers of their own."""
        folder = self._folder / "synchronous"
        sockets = {name: listen(0) for name in ("keyed", "keyless")}
        ledgers = {"SHOP_LEDGERS": str(folder / "providers")}
        providers = Supervisor(folder, _providers(sockets), {**os.environ, **ledgers})
        providers.start()
        try:
            for opened in sockets.values():
                await _until_ready(url_of(opened), providers, "/health")
            todo = [plan for plan in plans(self._chosen.orders, self._chosen.seed) if plan.ordinary][
                :COMPARED
            ]
            urls = {f"{name}_url": url_of(opened) for name, opened in sockets.items()}
            calls = msgspec.structs.replace(settings, **urls)
            return await synchronous.measure(f"sqlite:{folder}", calls, todo, CUSTOMERS)
        finally:
            await providers.stop()

    # --- telling --------------------------------------------------------------------------------------------

    def _say(self, text: str) -> None:
        print(text, file=self._out, flush=True)

    async def _show_progress(self, number: int) -> None:
        while True:
            await asyncio.sleep(SHOW_EVERY[not self._out.isatty()])
            self._show(number)

    def _show(self, number: int, last: bool = False) -> None:
        counts = self._tally.counts()
        line = (
            f"  placed {len(self._tally.placed)}/{number}, confirmed {counts['CONFIRMED']}, "
            f"cancelled {counts['CANCELLED']}, in process {counts['PENDING']}"
        )
        if self._chosen.chaos:
            line += f", killed {self._havoc.kills}, started again {self._supervisor.restarts}"
        if self._out.isatty():
            print(f"\r\033[K{line}", end="\n" if last else "", file=self._out, flush=True)
        else:
            self._say(line)


def _children(sockets: dict[str, socket.socket]) -> list[Child]:
    services = [Child(name, ("skald", "run", f"{SHOP}.app:app", "--service", name)) for name in app.services]
    faces = [
        Child(name, ("serve", f"{SHOP}.{name}:create"), sockets[name]) for name in ("gateway", "catalogue")
    ]
    return [*_providers(sockets), *services, *faces]


def _providers(sockets: dict[str, socket.socket]) -> list[Child]:
    return [
        Child(name, ("serve", f"{SHOP}.providers.{name}:app"), sockets[name]) for name in ("keyed", "keyless")
    ]


async def _until_ready(url: str, supervisor: Supervisor, path: str = "/ready") -> None:
    deadline = time.monotonic() + READY_WITHIN
    async with httpx.AsyncClient(base_url=url, timeout=2.0) as http:
        while time.monotonic() < deadline:
            supervisor.check()
            with suppress(httpx.TransportError):
                if (await http.get(path)).status_code == 200:
                    return
            await asyncio.sleep(0.05)
    raise NotStarted(f"{url}{path} was not ready within {READY_WITHIN:g} s; look into the log folder")


def _public(store: str) -> str:
    """The store's URL without a password."""
    scheme, mark, rest = store.partition("://")
    return f"{scheme}{mark}{rest.rpartition('@')[2]}" if mark else store
