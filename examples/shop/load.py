"""The customers of the demo: each places an order, watches until it is settled, and some think again.

What they do is drawn from a seed. A request without an answer is repeated with the same Idempotency-Key, as
often as it takes, so that whatever is killed, no order is placed twice and none is lost.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
import uuid
from collections import Counter
from collections.abc import Iterable
from typing import Any

import httpx
import msgspec

ORDINARY = ("TEA-EARL", "TEA-MINT", "MUG-BLUE", "KETTLE")
WHIMS = (
    # (share of the orders, card, article)
    (0.08, "card-declined", None),
    (0.02, "card-expired", None),
    (0.02, "card-slow", None),
    (0.01, "card-silent", None),
    (0.01, "card-lost", None),
    (0.05, "card-ok", "POT-GOLD"),
    (0.05, "card-ok", "CUP-LAST"),
    (0.02, "card-ok", "CACTUS"),
    (0.01, "card-ok", "ANVIL"),
    (0.01, "card-ok", "BALLOON"),
)
SECOND_THOUGHTS = 0.06
AGAIN = (0.05, 0.1, 0.2, 0.4, 0.8)


class Plan(msgspec.Struct, frozen=True):
    """What one customer is going to do."""

    key: str
    customer: str
    card: str
    items: dict[str, int]
    ordinary: bool
    cancels: bool


def plans(number: int, seed: int) -> list[Plan]:
    draw = random.Random(seed)
    return [_plan(draw, n) for n in range(number)]


def _plan(draw: random.Random, n: int) -> Plan:
    items = {sku: draw.randint(1, 3) for sku in draw.sample(ORDINARY, draw.randint(1, 3))}
    card, ordinary, chance = "card-ok", True, draw.random()
    for share, with_card, article in WHIMS:
        if 0 <= chance < share:
            card, ordinary = with_card, False
            items |= {article: 1} if article else {}
        chance -= share
    key = str(uuid.UUID(int=draw.getrandbits(128), version=4))
    cancels = draw.random() < SECOND_THOUGHTS
    return Plan(key, f"customer{n % 97}@example.com", card, items, ordinary, cancels)


class Tally(msgspec.Struct):
    """What the customers have seen so far."""

    placed: dict[str, str] = msgspec.field(default_factory=dict)
    """Order id to its status, as last seen."""
    latencies: list[float] = msgspec.field(default_factory=list)
    """Seconds from POST to CONFIRMED, of orders with nothing peculiar about them."""
    repeated: int = 0
    """Requests that were sent again."""

    def counts(self) -> Counter[str]:
        return Counter(self.placed.values())


async def place_all(url: str, todo: Iterable[Plan], tally: Tally, customers: int) -> None:
    """So many customers at a time, each with one order at a time."""
    queue = iter(todo)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=customers * 2)
    async with httpx.AsyncClient(base_url=url, timeout=5.0, limits=limits) as http:

        async def customer() -> None:
            for plan in queue:
                await _order(http, plan, tally)

        async with asyncio.TaskGroup() as group:
            for _ in range(customers):
                group.create_task(customer())


async def _order(http: httpx.AsyncClient, plan: Plan, tally: Tally) -> None:
    started = time.perf_counter()
    items = [{"sku": sku, "quantity": quantity} for sku, quantity in plan.items.items()]
    body = {"customer": plan.customer, "items": items, "card": plan.card}
    placed = await _post(http, "/orders", body, plan.key, tally)
    order_id = placed.json()["order_id"]
    tally.placed[order_id] = "PENDING"
    tally.placed[order_id] = await _settled(http, order_id, tally)
    if tally.placed[order_id] == "CONFIRMED":
        if plan.ordinary:
            tally.latencies.append(time.perf_counter() - started)
        if plan.cancels:
            await _post(http, f"/orders/{order_id}/cancel", {"reason": "second thoughts"}, f"{plan.key}-c", tally)
            tally.placed[order_id] = await _settled(http, order_id, tally)


async def _post(http: httpx.AsyncClient, path: str, body: dict[str, Any], key: str, tally: Tally) -> httpx.Response:
    for attempt in range(1_000_000):
        try:
            response = await http.post(path, json=body, headers={"Idempotency-Key": key})
        except httpx.TransportError:
            pass
        else:
            if response.status_code not in (429, 500, 502, 503):
                return response.raise_for_status()
        tally.repeated += 1
        await asyncio.sleep(AGAIN[min(attempt, len(AGAIN) - 1)])
    raise AssertionError("unreachable")


async def _settled(http: httpx.AsyncClient, order_id: str, tally: Tally) -> str:
    """Follows the order's events until it is settled; a stream that breaks is opened again."""
    while True:
        try:
            async with http.stream("GET", f"/orders/{order_id}/events", timeout=30.0) as stream:
                if stream.status_code == 200:
                    event = ""
                    async for line in stream.aiter_lines():
                        if line.startswith("event: "):
                            event = line[7:]
                        elif line.startswith("data: ") and event == "settled":
                            return str(json.loads(line[6:])["status"])
        except httpx.TransportError:
            pass
        tally.repeated += 1
        await asyncio.sleep(AGAIN[1])


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0
