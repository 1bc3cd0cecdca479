"""The shop's books: the audit sees whatever is wrong, and the end state depends on no order and no repetition.

The books are real: some orders of every kind, placed with all processes running.
"""

from __future__ import annotations

import copy
import random
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from examples.shop.app import app as shop
from examples.shop.audit import audit
from examples.shop.books import Books, Fact, collect
from examples.shop.house import House
from examples.shop.inventory import inventory
from examples.shop.load import Plan, Tally, place_all
from examples.shop.seed import stock_up
from skald import App, Done
from skald.messaging.definition import Handler

pytestmark = pytest.mark.asyncio(loop_scope="module")

PACE = {"SHOP_PATIENCE": "0.3", "SHOP_CHARGE_DELAYS": "0.05,0.1", "SHOP_LABEL_DELAYS": "0.05,0.05,0.1"}
KINDS = [
    ("card-ok", {"TEA-EARL": 2, "KETTLE": 1}, False),
    ("card-ok", {"TEA-EARL": 1, "MUG-BLUE": 1}, True),
    ("card-ok", {"POT-GOLD": 1, "TEA-MINT": 1}, False),
    ("card-ok", {"ANVIL": 1, "TEA-EARL": 1}, False),
    ("card-ok", {"BALLOON": 2}, False),
    ("card-declined", {"TEA-EARL": 1}, False),
    ("card-lost", {"MUG-BLUE": 1}, False),
    ("card-slow", {"KETTLE": 1}, False),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def books(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Books]:
    folder = tmp_path_factory.mktemp("house")
    todo = [
        Plan(f"key-{kind}-{number}", "ada@example.com", card, items, False, cancels)
        for number in range(3)
        for kind, (card, items, cancels) in enumerate(KINDS)
    ]
    async with House(folder, f"sqlite:{folder}", settings=PACE) as house:
        tally = Tally()
        await place_all(house.url, todo, tally, customers=8)
        assert len(tally.placed) == len(todo)
        while not (await house.audit(tally.placed)).balanced:
            await house.supervisor.tick()
        yield await house.books()


# --- the audit ----------------------------------------------------------------------------------------------


def kept(books: Books) -> str:
    return next(str(row["order_id"]) for row in books.tables["orders"] if row["status"] == "CONFIRMED")


def entry(books: Books, kind: str, order_id: str | None = None) -> dict[str, Any]:
    order_id = order_id or kept(books)
    found = [e for e in books.keyed if (e["kind"], e["status"], e["reference"]) == (kind, "done", order_id)]
    return found[0]


def row(books: Books, table: str, **values: Any) -> dict[str, Any]:
    return next(row for row in books.tables[table] if values.items() <= row.items())


def charged_twice(books: Books) -> None:
    books.keyed.append({**entry(books, "charge"), "key": "another"})


def refunded_for_nothing(books: Books) -> None:
    books.keyed.append({**entry(books, "charge"), "kind": "refund", "key": "another"})


def not_refunded(books: Books) -> None:
    books.keyed.remove(next(e for e in books.keyed if (e["kind"], e["status"]) == ("refund", "done")))


def labelled_twice(books: Books) -> None:
    books.keyed.append({**entry(books, "label"), "key": "another"})


def two_effects_for_a_key(books: Books) -> None:
    books.keyed.append({**entry(books, "label"), "kind": "pickup"})


def stock_lost(books: Books) -> None:
    row(books, "items", sku="KETTLE")["available"] -= 1


def still_reserved(books: Books) -> None:
    row(books, "reservations", status="RELEASED")["status"] = "RESERVED"


def still_pending(books: Books) -> None:
    row(books, "orders", status="CONFIRMED")["status"] = "PENDING"


def forgotten(books: Books) -> None:
    books.tables["orders"].remove(row(books, "orders", status="CANCELLED"))


def step_wrong(books: Books) -> None:
    row(books, "orders", status="CONFIRMED")["shipping"] = "pending"


def payment_wrong(books: Books) -> None:
    row(books, "payments", status="CHARGED")["status"] = "FAILED"


def shipment_wrong(books: Books) -> None:
    row(books, "shipments", status="CANCELLED")["status"] = "SCHEDULED"


def price_wrong(books: Books) -> None:
    row(books, "prices", sku="ANVIL")["price"] += 1


def counted_twice(books: Books) -> None:
    books.tables["revenue_per_day"][0]["cents"] += 1


def saga_forgotten(books: Books) -> None:
    books.tables["sagas"] = [{"order_id": kept(books), "status": "IN_PROGRESS"}]


def never_sent(books: Books) -> None:
    noted = books.tables["sent"][0]["reference"]
    books.keyless[:] = [entry for entry in books.keyless if entry["reference"] != noted]


@pytest.mark.parametrize(
    ("harm", "rule"),
    [
        (charged_twice, "each order is charged at most once"),
        (charged_twice, "money taken is the sum of confirmed and completed orders"),
        (refunded_for_nothing, "each charged and cancelled order is refunded exactly once, and no other"),
        (not_refunded, "each charged and cancelled order is refunded exactly once, and no other"),
        (labelled_twice, "each confirmed order has one label, and no other order has any"),
        (two_effects_for_a_key, "the keyed provider has one entry per key"),
        (stock_lost, "stock before is stock after, shipped and reserved"),
        (still_reserved, "stock is held for confirmed orders and for no other"),
        (still_pending, "no order is pending"),
        (still_pending, "orders equal a fold of the log"),
        (forgotten, "every acknowledged order exists"),
        (step_wrong, "steps equal a fold of the log"),
        (saga_forgotten, "each saga stands where its order does"),
        (payment_wrong, "payments equal a fold of the log"),
        (shipment_wrong, "shipments equal a fold of the log"),
        (price_wrong, "prices equal a fold of the log"),
        (counted_twice, "the analytics equal a fold of the log"),
        (never_sent, "every message noted as sent was sent"),
    ],
)
async def test_the_audit_sees_it(books: Books, harm: Callable[[Books], None], rule: str) -> None:
    acknowledged = [row["order_id"] for row in books.tables["orders"]]
    assert audit(books, acknowledged).balanced
    harmed = copy.deepcopy(books)
    harm(harmed)

    found = audit(harmed, acknowledged)

    assert not found.balanced
    assert rule in [finding.rule for finding in found.findings if not finding.holds]


async def test_a_message_sent_twice_is_counted_and_listed_but_nobodys_fault(books: Books) -> None:
    harmed = copy.deepcopy(books)
    harmed.keyless.append(harmed.keyless[0])
    found = audit(harmed)

    assert found.balanced
    assert found.doubled == (harmed.keyless[0]["reference"],)


# --- twice, and shuffled ------------------------------------------------------------------------------------

SERVICES = ("orders", "payments", "inventory", "shipping")
STATE = {
    "orders": ("order_id", "status", "reason", "payment", "inventory", "shipping", "cancelling", "handed_over"),
    "payments": ("order_id", "status", "amount", "charge_id", "refund_id", "reason"),
    "items": ("sku", "available"),
    "reservations": ("order_id", "status"),
    "reserved_items": ("order_id", "sku", "quantity"),
    "shipments": ("order_id", "status", "label_id", "reason"),
}


@pytest.mark.parametrize("seed", range(10))
async def test_every_message_twice_and_shuffled_gives_the_same_end_state(
    books: Books, seed: int, tmp_path: Path
) -> None:
    """What each service writes depends on no order between origins and keys, and on nothing being new to it."""
    draw = random.Random(seed)
    application = App(*shop.services.values(), stores=dict.fromkeys(shop.services, f"sqlite:{tmp_path}"))
    await application.migrate()
    async with application.connect():
        await stock_up(inventory)
        await place_again(application, books)
        for name in SERVICES:
            received = list(deliveries(application, name, books))
            once = shuffled(draw, received, after=causes(books, name))
            again = shuffled(draw, received, after={})
            for handler, fact in [*once, *again]:
                await handle(application, name, handler, fact)
    there = await collect(application, tmp_path)

    for table, columns in STATE.items():
        assert state(there, table, columns) == state(books, table, columns), table


async def place_again(application: App, books: Books) -> None:
    """The orders as the gateway wrote them, before anything had become of them."""
    async with application.service("orders").transaction() as tx:
        for fact in books.facts("orders", "OrderPlaced"):
            cancelling = any(f.order_id == fact.order_id for f in books.facts("orders", "CancelOrder"))
            await tx.execute(
                "INSERT INTO orders (order_id, customer, total, status, placed_at, cancelling)"
                " VALUES (:order_id, :customer, :total, 'PENDING', 0, :cancelling)",
                order_id=fact.order_id,
                customer=fact.body["order"]["customer"],
                total=fact.body["order"]["total"],
                cancelling=int(cancelling),
            )


def deliveries(application: App, service: str, books: Books) -> Iterator[tuple[Handler, Fact]]:
    """What a service's handlers that write get to see, origin by origin."""
    for log in books.logs.values():
        for fact in log:
            for handler in application.service(service).handlers:
                if handler.transaction and fact.type in {kind.name for kind in handler.types}:
                    yield handler, fact


def causes(books: Books, service: str) -> dict[str, set[str]]:
    """For each fact the facts that the service must have handled before, because it answered them on the way there."""
    facts = {fact.id: fact for log in books.logs.values() for fact in log}
    own = {fact.id for fact in books.logs[service]}
    before: dict[str, set[str]] = {}
    for fact in facts.values():
        step, needed = fact, set[str]()
        while step.cause in facts:
            if step.id in own:
                needed.add(step.cause)
            step = facts[step.cause]
        before[fact.id] = needed
    return before


def shuffled(
    draw: random.Random, received: list[tuple[Handler, Fact]], after: dict[str, set[str]]
) -> list[tuple[Handler, Fact]]:
    """In order for each handler, origin and key, at random otherwise, and never before what it needs."""
    queues: dict[tuple[str, str, str], list[tuple[Handler, Fact]]] = {}
    for handler, fact in received:
        # No service has two of its types from two origins, so the type tells the origin's side of the order.
        origin = next(name for name in ("Order", "Payment", "Inventory", "Shipment", "") if name in fact.type)
        queues.setdefault((handler.name, origin, fact.key), []).append((handler, fact))
    waiting = {fact.id for _, fact in received}
    order: list[tuple[Handler, Fact]] = []
    left = {fact.id: sum(f.id == fact.id for _, f in received) for _, fact in received}
    while queues:
        ready = [place for place, queue in queues.items() if not after.get(queue[0][1].id, set()) & waiting]
        place = draw.choice(ready)
        order.append(taken := queues[place].pop(0))
        left[taken[1].id] -= 1
        if not left[taken[1].id]:
            waiting.discard(taken[1].id)
        if not queues[place]:
            del queues[place]
    return order


async def handle(application: App, service: str, handler: Handler, fact: Fact) -> None:
    kind = next(kind for kind in handler.types if kind.name == fact.type)
    message: Any = msgspec.convert(fact.body, kind.cls)
    async with application.service(service).transaction() as tx:
        arguments: dict[str, Any] = {str(handler.transaction): tx}
        if handler.keeps is not None and handler.keeps.done is not None:
            # In these books whatever is undone had been done.
            arguments[handler.keeps.done] = Done(None, "", (), "")
        await handler.function(message, **arguments)


def state(books: Books, table: str, columns: tuple[str, ...]) -> list[tuple[Any, ...]]:
    return sorted((tuple(row[column] for column in columns) for row in books.tables[table]), key=repr)
