"""One performance of the demo: let the customers in, wait for rest, audit, compare, and tell about it."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import suppress
from typing import Any, TextIO

import msgspec

from examples.shop import synchronous
from examples.shop.audit import Audit
from examples.shop.chaos import Havoc
from examples.shop.house import House, providers, until_ready, without_password
from examples.shop.load import Plan, Tally, percentile, place_all, plans
from examples.shop.settings import Settings
from examples.shop.supervisor import Supervisor, listen, url_of

CUSTOMERS = 12
"""At a time."""
COMPARED = 60
"""Orders placed by synchronous calls."""
REST_WITHIN = 60.0
SHOW_EVERY = (0.2, 2.0)
"""Seconds between two looks at the progress, on a terminal and elsewhere."""


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
        if self.synchronous:
            text += f"; the same by synchronous calls, on SQLite: {_spread(self.synchronous)}"
        return text

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


def _percentiles(seconds: list[float]) -> dict[str, float] | None:
    """``None`` if nothing was measured: 0 ms would be a figure."""
    if not seconds:
        return None
    return {f"p{n}": round(percentile(seconds, n / 100) * 1e3, 1) for n in (50, 99)}


def _spread(seconds: list[float]) -> str:
    found = _percentiles(seconds)
    return ", ".join(f"{name} {value:,.0f} ms" for name, value in found.items()) if found else "not measured"


class Stage:
    def __init__(self, house: House, number: int, seed: int, chaos: bool, out: TextIO) -> None:
        self._house, self._chaos, self._out = house, chaos, out
        self._plans = plans(number, seed)
        self._havoc = Havoc(house.supervisor, seed)
        self._tally = Tally()

    async def perform(self) -> Result:
        folder = self._house.folder
        house = self._house
        self._say(f"The shop, {house.style}, on {without_password(house.store)}: each of six services, the gateway,")
        self._say(f"the catalogue and two providers is a process (ids in {folder}/run, output in {folder}/log).")
        await self._house.open()
        self._say(f"Page {self._house.url}/  API {self._house.url}/openapi.json")
        started = time.perf_counter()
        await self._let_customers_in()
        found = await self._rest()
        seconds = time.perf_counter() - started
        todo = [plan for plan in self._plans if plan.ordinary][:COMPARED]
        return Result(
            audit=found,
            seconds=seconds,
            latencies=self._tally.latencies,
            synchronous=await self._compare(todo) if todo and not self._chaos else [],
            kills=self._havoc.kills,
            restarts=self._house.supervisor.restarts,
            repeated=self._tally.repeated,
        )

    # --- scenes ---------------------------------------------------------------------------------------------

    async def _let_customers_in(self) -> None:
        chaos = ", while processes are killed with kill -9" if self._chaos else ""
        self._say(f"{len(self._plans)} orders, {CUSTOMERS} customers at a time{chaos}:")
        tasks = [asyncio.create_task(self._show_progress())]
        if self._chaos:
            tasks.append(asyncio.create_task(self._havoc.run()))
        try:
            await place_all(self._house.url, self._plans, self._tally, CUSTOMERS)
        finally:
            for task in tasks:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
        self._show(last=True)

    async def _rest(self) -> Audit:
        """Audits until the books balance and nothing moves any more, or until no more patience is left."""
        deadline, before = time.monotonic() + REST_WITHIN, None
        while True:
            found = await self._house.audit(self._tally.placed)
            if (found.balanced and found == before) or time.monotonic() > deadline:
                return found
            before = found
            await asyncio.sleep(0.3)

    async def _compare(self, todo: list[Plan]) -> list[float]:
        """The same orders by synchronous calls, on a store and with providers of their own."""
        folder = self._house.folder / "synchronous"
        sockets = {name: listen(0) for name in ("keyed", "keyless")}
        ledgers = {"SHOP_LEDGERS": str(folder / "providers")}
        supervisor = Supervisor(folder, providers(sockets), {**os.environ, **ledgers})
        supervisor.start()
        try:
            for opened in sockets.values():
                await until_ready(url_of(opened), supervisor, "/health")
            calls = Settings(keyed_url=url_of(sockets["keyed"]), keyless_url=url_of(sockets["keyless"]))
            return await synchronous.measure(f"sqlite:{folder}", calls, todo, CUSTOMERS)
        finally:
            await supervisor.stop()

    # --- telling --------------------------------------------------------------------------------------------

    def _say(self, text: str) -> None:
        print(text, file=self._out, flush=True)

    async def _show_progress(self) -> None:
        while True:
            await asyncio.sleep(SHOW_EVERY[not self._out.isatty()])
            self._show()

    def _show(self, last: bool = False) -> None:
        counts = self._tally.counts()
        line = (
            f"  placed {len(self._tally.placed)}/{len(self._plans)}, confirmed {counts['CONFIRMED']}, "
            f"cancelled {counts['CANCELLED']}, in process {counts['PENDING']}"
        )
        if self._chaos:
            line += f", killed {self._havoc.kills}, started again {self._house.supervisor.restarts}"
        if self._out.isatty():
            print(f"\r\033[K{line}", end="\n" if last else "", file=self._out, flush=True)
        else:
            self._say(line)
