"""The order of the shop over messages: four services, a schema or a file of each, in three styles; orders in a process
of its own, the three others in a second one.

Some thousand orders are placed at once, and the clock runs until the last of them is confirmed; how long an order takes
is measured with few of them under way. Sagas that were confirmed may have a last answer to journal.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from benchmarks.harness.child import Children
from benchmarks.harness.figures import Figure, at_least, plain
from benchmarks.harness.places import Place, PostgresPlace
from benchmarks.harness.rounds import interleave
from benchmarks.sagas.running import counted
from benchmarks.sagas.services import NAMES, STYLES, application
from benchmarks.sagas.sizes import Sizes

BARS = {"choreography": 1_500, "orchestration": 700}
"""Orders per second on PostgreSQL."""


def measure(place: Place, sizes: Sizes) -> list[Figure]:
    figures = []
    found = interleave(sizes.shop_rounds, {style: partial(_run, place, style, sizes) for style in STYLES})
    for style in STYLES:
        runs = sorted(found[style], key=lambda run: float(run["rate"]))
        run = runs[len(runs) // 2]
        text = f"{style} over messages {place.name}"
        bar = BARS.get(style) if isinstance(place, PostgresPlace) else None
        rate = at_least(f"{text}: {sizes.orders:,} orders", (run["rate"], bar), "orders/s", 1.0) if bar else None
        figures += [
            rate or plain(f"{text}: {sizes.orders:,} orders", run["rate"], "orders/s"),
            plain(f"{text}: from placed to confirmed, p50 at {sizes.steady:g} a second", run["p50"], "ms"),
            plain(f"{text}: the same, p99", run["p99"], "ms"),
            plain(f"{text}: messages of an order", run["messages"], ""),
            plain(f"{text}: CPU of an order in both processes", run["cpu"], "µs"),
        ]
        if isinstance(place, PostgresPlace):
            figures.append(plain(f"{text}: commits of an order", run["commits"], ""))
    return figures


def _run(place: Place, style: str, sizes: Sizes) -> dict[str, Any]:
    url = place.fresh()
    try:
        asyncio.run(application(url, style).migrate())
        with Children() as start:
            serve = partial(start, "benchmarks.sagas.running:serve", url=url, style=style)
            children = orders, _ = serve(names=["orders"]), serve(names=[n for n in NAMES if n != "orders"])
            for child in children:
                child.hear()
            orders.ask(count=sizes.orders // 10)  # warm
            before, used = _transactions(place), sum(child.ask()["used"] for child in children)
            loaded = orders.ask(count=sizes.orders)
            commits = (_transactions(place) - before) / sizes.orders
            cpu = (sum(child.ask()["used"] for child in children) - used) / sizes.orders
            steady = orders.ask(count=sizes.orders // 20, rate=sizes.steady)
        all_orders = sizes.orders // 10 + sizes.orders + sizes.orders // 20
        messages = asyncio.run(counted(url, style)) / all_orders
    finally:
        place.drop(url)
    return {
        "rate": sizes.orders / loaded["took"], "cpu": cpu, "commits": commits, "messages": messages,
        "p50": steady["p50"], "p99": steady["p99"],
    }  # fmt: skip


def _transactions(place: Place) -> int:
    """Those that have written something, as the server counts them."""
    return int(place.execute("SELECT txid_current()")) if isinstance(place, PostgresPlace) else 0
