"""Tells whoever watches an order that it changed: one query for all of them, and none while nobody does."""

from __future__ import annotations

import asyncio
import logging

from skald import Service
from skald.errors import SkaldError

CHUNK = 200

log = logging.getLogger("shop.gateway")


class Watch:
    """Run ``run()`` as a task; ``changed()`` returns when the order's revision is above the one given."""

    def __init__(self, service: Service, every: float) -> None:
        self._service, self._every = service, every
        self._waiting: dict[str, list[tuple[int, asyncio.Future[None]]]] = {}
        self._somebody = asyncio.Event()

    async def changed(self, order_id: str, revision: int, within: float) -> bool:
        """False if nothing changed within so many seconds."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.setdefault(order_id, [])
        waiting.append(entry := (revision, future))
        self._somebody.set()
        try:
            async with asyncio.timeout(within):
                await future
        except TimeoutError:
            return False
        finally:
            waiting.remove(entry)
            if not waiting and self._waiting.get(order_id) is waiting:
                del self._waiting[order_id]
        return True

    async def run(self) -> None:
        while True:
            await self._somebody.wait()
            if not self._waiting:
                self._somebody.clear()
                continue
            try:
                await self._look()
            except SkaldError as error:
                log.warning("cannot look at the orders now: %s", error)
                await asyncio.sleep(1)
            await asyncio.sleep(self._every)

    async def _look(self) -> None:
        wanted = list(self._waiting)
        for start in range(0, len(wanted), CHUNK):
            ids = {f"id{n}": order_id for n, order_id in enumerate(wanted[start : start + CHUNK])}
            names = ", ".join(f":{name}" for name in ids)
            query = f"SELECT order_id, revision FROM orders WHERE order_id IN ({names})"
            for row in await self._service.fetch(query, **ids):
                for revision, future in self._waiting.get(row["order_id"], ()):
                    if row["revision"] > revision and not future.done():
                        future.set_result(None)
