"""Choreographed compensation: what was done for a key is undone once, and what comes behind a tombstone is refused."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from skald import (
    NEVER,
    App,
    Attempt,
    CompensationFailed,
    Done,
    Event,
    ManualClock,
    Retry,
    Service,
    Transaction,
    Unknown,
)
from skald.telemetry import ForwardRefused
from tests.simulation.conftest import store_url  # noqa: F401
from tests.simulation.stage import (
    MIGRATIONS,
    QUICK,
    Seen,
    caught_up,
    deliveries,
    effect,
    effects,
    eventually,
    happens,
    occurrences,
    playing,
    redrive,
)


class OrderPlaced(Event, key="order"):
    order: str
    n: int = 0


class OrderCancelled(Event, key="order"):
    order: str


class StockRejected(Event, key="order"):
    order: str


class Charged(Event, key="order"):
    order: str
    payment: str


class Declined(Event, key="order"):
    order: str


class Refunded(Event, key="order"):
    order: str
    payment: str
    of: str


async def at_rest(service: Service, origin: Service) -> None:
    """Everything is read, and nothing goes on by itself."""

    async def check() -> bool:
        states = {row["state"] for row in await deliveries(service)}
        return await caught_up(service, origin) and states <= {"parked"}

    await eventually(check)


class Shop:
    """Orders and stock say what happened, payments charges and refunds, and ``watch`` sees what is published."""

    def __init__(self, url: str, *, tx: bool = True, retry: Any = NEVER, clock: ManualClock | None = None) -> None:
        self.orders = Service("orders", publishes=[OrderPlaced, OrderCancelled])
        self.stock = Service("stock", publishes=[StockRejected])
        self.payments = Service("payments", migrations=MIGRATIONS)
        self.app = App(self.orders, self.stock, self.payments, store=url, settings=QUICK, clock=clock)
        self.broken_charge = self.broken_refund = self.declines = False
        self.charges: list[str] = []
        self.refunds: list[str] = []
        if tx:
            self.with_transactions(retry)
        else:
            self.without(retry)

    def with_transactions(self, retry: Any) -> None:
        @self.payments.on(OrderPlaced, once_by="order", retry=retry)
        async def charge(event: OrderPlaced, tx: Transaction) -> Charged | Declined:
            return await self.charge(event, tx)

        @self.payments.on(StockRejected, OrderCancelled, compensates=charge, retry=retry)
        async def refund(event: StockRejected | OrderCancelled, tx: Transaction, done: Done[Charged]) -> Refunded:
            return await self.refund(event, done, tx)

    def without(self, retry: Any) -> None:
        @self.payments.on(OrderPlaced, retry=retry)
        async def charge(event: OrderPlaced, attempt: Attempt) -> Charged | Declined:
            assert attempt.key == f"payments:charge:{event.order}"
            return await self.charge(event)

        @self.payments.on(StockRejected, OrderCancelled, compensates=charge, retry=retry)
        async def refund(event: StockRejected | OrderCancelled, done: Done[Charged], attempt: Attempt) -> Refunded:
            assert attempt.key == f"payments:refund:{event.order}"
            assert done.attempt == f"payments:charge:{event.order}"
            return await self.refund(event, done)

    async def charge(self, event: OrderPlaced, tx: Transaction | None = None) -> Charged | Declined:
        self.charges.append(event.order)
        if tx is not None:
            await effect(tx, "charge", f"charge {event.order}", event.order, event.n)
        if self.broken_charge:
            raise ValueError("the gateway is down")
        return Declined(event.order) if self.declines else Charged(event.order, f"p-{event.order}")

    async def refund(
        self, event: StockRejected | OrderCancelled, done: Done[Charged], tx: Transaction | None = None
    ) -> Refunded:
        self.refunds.append(event.order)
        if tx is not None:
            await effect(tx, "refund", f"refund {event.order}", event.order, 0)
        if self.broken_refund:
            raise ValueError("the gateway is down")
        assert [done.message] == [*done.messages]
        return Refunded(event.order, done.message.payment, done.id)

    async def settled(self) -> None:
        """Everything that can go on by itself has ended."""
        for origin in (self.orders, self.stock):
            await eventually(lambda origin=origin: caught_up(self.payments, origin))
        await eventually(self._nothing_moves)

    async def _nothing_moves(self) -> bool:
        return all(row["state"] == "parked" for row in await deliveries(self.payments))

    async def published(self) -> list[Any]:
        return [(record.type, record.key) for record in await self.payments.store.log.read(0, 1_000)]

    async def state(self, key: str = "o") -> str | None:
        sql = "SELECT state FROM skald_marks WHERE kind = 'effect' AND name = 'charge' AND key = :key"
        rows = await self.payments.fetch(sql, key=key)
        return rows[0]["state"] if rows else None


@pytest.fixture(params=[True, False], ids=["tx", "plain"])
def shop(request: pytest.FixtureRequest, store_url: str) -> Shop:  # noqa: F811
    return Shop(store_url, tx=request.param)


CHARGED, REFUNDED = ("Charged", "o"), ("Refunded", "o")


async def test_what_was_done_is_undone_once_whoever_asks_and_however_often(shop: Shop) -> None:
    async with playing(shop.app):
        await shop.orders.publish(OrderPlaced("o"))
        await shop.settled()
        assert await shop.state() == "done"
        for _ in range(2):
            await shop.stock.publish(StockRejected("o"))
            await shop.orders.publish(OrderCancelled("o"))
            await shop.settled()
        assert await shop.published() == [CHARGED, REFUNDED]
        assert await shop.state() == "undone"
        charged, refunded = await shop.payments.store.log.read(0, 10)
        assert charged.id in (refunded.payload or b"").decode()
    # Two that are in work at the same time both call the world, under one idempotency key.
    assert set(shop.refunds) == {"o"}


async def test_all_of_it_in_one_stretch(shop: Shop) -> None:
    await shop.app.migrate()
    keys = [f"o{n}" for n in range(30)]
    async with shop.app.connect("orders"):
        await shop.orders.publish(*(OrderPlaced(key) for key in keys))
        await shop.orders.publish(*(OrderCancelled(key) for key in keys[::2]), *(OrderPlaced(key) for key in keys))
        await shop.orders.publish(*(OrderCancelled(key) for key in keys[::2]))
    async with playing(shop.app):
        await shop.settled()
        assert sorted(await shop.published()) == sorted(
            [("Charged", key) for key in keys] + [("Refunded", key) for key in keys[::2]]
        )


async def test_a_compensation_that_comes_first_leaves_a_tombstone(shop: Shop) -> None:
    async with playing(shop.app), occurrences() as seen:
        await shop.stock.publish(StockRejected("o"))
        await shop.settled()
        assert await shop.state() == "cancelled"
        await shop.orders.publish(OrderPlaced("o"), OrderPlaced("other"))
        await shop.settled()
        refused = await seen.until(lambda items: [item for item in items if isinstance(item, ForwardRefused)])
        assert await shop.published() == [("Charged", "other")]
        await shop.stock.publish(StockRejected("o"))
        await shop.settled()
        assert await shop.published() == [("Charged", "other")]
        (late, _) = await shop.orders.store.log.read(0, 10)
        sql = "SELECT handler, key, state, refused FROM skald_effects WHERE refused IS NOT NULL"
        seen_rows = await shop.payments.fetch(sql)
    (line,) = {(item.handler, item.key, item.state) for item in refused if isinstance(item, ForwardRefused)}
    assert line == ("charge", "o", "cancelled")
    assert seen_rows == [{"handler": "charge", "key": "o", "state": "cancelled", "refused": f'["{late.id}"]'}]
    assert shop.charges == ["other"]
    assert shop.refunds == []


async def test_what_was_undone_is_not_done_again(shop: Shop) -> None:
    async with playing(shop.app):
        await shop.orders.publish(OrderPlaced("o"))
        await shop.settled()
        await shop.orders.publish(OrderCancelled("o"), OrderPlaced("o", 1))
        await shop.settled()
        assert await shop.published() == [CHARGED, REFUNDED]


async def test_there_is_nothing_to_undo_if_something_else_was_published(shop: Shop) -> None:
    shop.declines = True
    async with playing(shop.app):
        await shop.orders.publish(OrderPlaced("o"), OrderCancelled("o"))
        await shop.settled()
        assert await shop.published() == [("Declined", "o")]
        assert await shop.state() == "done"
    assert shop.refunds == []


@pytest.mark.parametrize("tx", [True, False])
@pytest.mark.parametrize("retry", [NEVER, Retry(immediate=1, delays=(3600,))], ids=["parked", "delayed"])
async def test_a_forward_that_is_not_finished_is_discarded(store_url: str, retry: Any, tx: bool) -> None:  # noqa: F811
    clock = ManualClock()
    shop = Shop(store_url, tx=tx, retry=retry, clock=clock)
    shop.broken_charge = True
    async with playing(shop.app):
        await shop.orders.publish(OrderPlaced("o"), OrderPlaced("o", 1))
        rows = await eventually(lambda: _rows(shop, 2))
        assert [row["state"] for row in rows] == ["parked" if retry is NEVER else "delayed", "waiting"]
        shop.broken_charge = False
        await shop.stock.publish(StockRejected("o"))
        await eventually(lambda: _rows(shop, 0))
        assert await shop.state() == "cancelled"
        await shop.orders.publish(OrderPlaced("o", 2), OrderPlaced("p"))
        await shop.settled()
        clock.advance(7200)
        assert await eventually(lambda: _rows(shop, 0)) is None
        assert await shop.published() == [("Charged", "p")]
    assert shop.refunds == []


async def _rows(shop: Shop, count: int) -> Any:
    rows = await deliveries(shop.payments)
    return (rows or None) if len(rows) == count else []


async def test_one_that_parks_in_the_stretch_of_its_compensation_is_refused(shop: Shop) -> None:
    shop.broken_charge = True
    await shop.app.migrate()
    async with shop.app.connect("orders"):
        await shop.orders.publish(OrderPlaced("o"), OrderCancelled("o"))
    async with playing(shop.app):
        await eventually(lambda: caught_up(shop.payments, shop.orders))
        await eventually(lambda: _rows(shop, 0))
        shop.broken_charge = False
        await shop.orders.publish(OrderPlaced("o"))
        await shop.settled()
        assert await shop.published() == []
        assert await shop.state() == "cancelled"


async def test_a_forward_in_work_is_undone_when_it_has_ended(store_url: str) -> None:  # noqa: F811
    """Its effect outside cannot be rolled back: so it is recorded, and the compensation is called once more."""
    shop = Shop(store_url, tx=False)
    begun, go = asyncio.Event(), asyncio.Event()
    charge = shop.charge

    async def slowly(event: OrderPlaced, tx: Transaction | None = None) -> Charged | Declined:
        begun.set()
        await go.wait()
        return await charge(event, tx)

    shop.charge = slowly  # type: ignore[method-assign]
    async with playing(shop.app):
        await shop.orders.publish(OrderPlaced("o"))
        await happens(begun)
        await shop.stock.publish(StockRejected("o"))
        await eventually(lambda: _is(shop, "cancelled"))
        go.set()
        await eventually(lambda: _is(shop, "undone"))
        await shop.settled()
        assert await shop.published() == [CHARGED, REFUNDED]
        await shop.orders.publish(OrderCancelled("o"), OrderPlaced("o"))
        await shop.settled()
        assert await shop.published() == [CHARGED, REFUNDED]
    assert (shop.charges, shop.refunds) == (["o"], ["o"])


async def _is(shop: Shop, state: str) -> bool:
    return await shop.state() == state


async def test_a_compensation_that_parks_says_so_in_the_same_commit_and_a_redrive_resumes_it(shop: Shop) -> None:
    told: Seen[CompensationFailed] = Seen()

    @shop.orders.on(CompensationFailed)
    async def needs_attention(event: CompensationFailed) -> None:
        told.note(event)

    shop.broken_refund = True
    async with playing(shop.app):
        await shop.orders.publish(OrderPlaced("o"))
        await shop.settled()
        await shop.stock.publish(StockRejected("o"))
        (failed,) = await told.count(1)
        (trigger,) = await shop.stock.store.log.read(0, 10)
        assert failed == CompensationFailed("payments", "refund", "charge", "o", "ValueError", trigger.id)
        [row] = await deliveries(shop.payments)
        assert (row["handler"], row["state"]) == ("refund", "parked")
        assert await shop.state() == "done"

        await redrive(shop.payments)
        await told.count(2)
        shop.broken_refund = False
        await eventually(lambda: _parked_again(shop))
        await redrive(shop.payments)
        await eventually(lambda: _is(shop, "undone"))
        await shop.settled()
        rows = await effects(shop.payments, "refund")
        assert len(rows) in (0, 1)
        assert await shop.published() == [CHARGED, *[("CompensationFailed", "o")] * 2, REFUNDED]


async def _parked_again(shop: Shop) -> bool:
    return [row["state"] for row in await deliveries(shop.payments)] == ["parked"]


async def test_what_was_tried_without_a_known_outcome_is_looked_up_by_who_takes_unknown(
    store_url: str,  # noqa: F811
) -> None:
    orders, payments = Service("orders", publishes=[OrderPlaced, OrderCancelled]), Service("payments")
    asked: list[Done[Charged] | Unknown] = []
    ledger = {"payments:charge:happened"}

    @payments.on(OrderPlaced, retry=NEVER)
    async def charge(event: OrderPlaced, attempt: Attempt) -> Charged:
        if event.order == "fine":
            return Charged(event.order, "p")
        raise TimeoutError("no answer")

    @payments.on(OrderCancelled, compensates=charge)
    async def refund(event: OrderCancelled, done: Done[Charged] | Unknown) -> Refunded | None:
        asked.append(done)
        if isinstance(done, Unknown):
            return Refunded(event.order, "looked up", "") if done.attempt in ledger else None
        return Refunded(event.order, done.message.payment, done.id)

    async with playing(App(orders, payments, store=store_url, settings=QUICK)):
        await orders.publish(OrderPlaced("happened"), OrderPlaced("not"), OrderPlaced("fine"))
        await at_rest(payments, orders)
        for _ in range(2):
            await orders.publish(OrderCancelled("happened"), OrderCancelled("not"), OrderCancelled("fine"))
        await orders.publish(OrderCancelled("never"))
        await at_rest(payments, orders)
        assert await eventually(lambda: _no_deliveries(payments))
        log = [(record.type, record.key) for record in await payments.store.log.read(0, 100)]
        rows = await payments.fetch("SELECT key, state FROM skald_effects ORDER BY key")
    assert sorted(log) == [("Charged", "fine"), ("Refunded", "fine"), ("Refunded", "happened")]
    assert {one.attempt for one in asked} == {f"payments:charge:{key}" for key in ("happened", "not", "fine")}
    assert {row["key"]: row["state"] for row in rows} == {
        "fine": "undone", "happened": "undone", "never": "cancelled", "not": "undone",
    }  # fmt: skip


@pytest.mark.parametrize("tx", [True, False])
async def test_one_that_takes_none_answers_also_where_there_is_nothing_to_undo(
    store_url: str,  # noqa: F811
    tx: bool,
) -> None:
    """Once, whoever asks; and the tombstone stands all the same."""
    orders, payments = Service("orders", publishes=[OrderPlaced, OrderCancelled]), Service("payments")
    broken = {"fixed"}

    @payments.on(OrderPlaced, retry=NEVER)
    async def charge(event: OrderPlaced) -> Charged | Declined:
        if event.order in ("broken", "declined"):
            return Declined(event.order)
        if event.order == "tried":
            raise TimeoutError("no answer")
        return Charged(event.order, "p")

    async def undo(event: OrderCancelled, done: Done[Charged] | None) -> Refunded:
        if event.order in broken:
            raise ValueError("down")
        return Refunded(event.order, "nothing" if done is None else done.message.payment, "")

    if tx:

        @payments.on(OrderCancelled, compensates=charge, retry=NEVER)
        async def refund(event: OrderCancelled, tx: Transaction, done: Done[Charged] | None) -> Refunded:
            return await undo(event, done)
    else:
        payments.on(OrderCancelled, compensates=charge, retry=NEVER, name="refund")(undo)

    async with playing(App(orders, payments, store=store_url, settings=QUICK)):
        await orders.publish(OrderPlaced("done"), OrderPlaced("declined"), OrderPlaced("tried"))
        await at_rest(payments, orders)
        for _ in range(2):
            await orders.publish(*(OrderCancelled(order) for order in ("done", "declined", "tried", "late")))
        await orders.publish(OrderCancelled("fixed"))
        await at_rest(payments, orders)
        await orders.publish(OrderPlaced("late"), OrderPlaced("fixed"))
        await at_rest(payments, orders)
        broken.clear()
        await redrive(payments)
        await at_rest(payments, orders)
        log = [json.loads(r.payload or b"") for r in await payments.store.log.read(0, 100) if r.type == "Refunded"]
        rows = await payments.fetch("SELECT key, state FROM skald_effects WHERE handler = 'charge'")
    told = sorted((one["order"], one["payment"]) for one in log)
    assert told == [
        ("declined", "nothing"), ("done", "p"), ("fixed", "p"), ("late", "nothing"), ("tried", "nothing"),
    ]  # fmt: skip
    assert {row["key"]: row["state"] for row in rows} == {
        "done": "undone", "declined": "undone", "tried": "cancelled", "late": "cancelled", "fixed": "undone",
    }  # fmt: skip


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
async def test_who_was_told_that_there_is_nothing_is_called_again_for_what_comes_behind_the_tombstone(
    store_url: str,  # noqa: F811
) -> None:
    orders, stock = Service("orders", publishes=[OrderPlaced]), Service("stock", publishes=[OrderCancelled])
    payments = Service("payments")
    begun, go_on = asyncio.Event(), asyncio.Event()
    keys: list[str] = []

    @payments.on(OrderPlaced)
    async def charge(event: OrderPlaced) -> Charged:
        begun.set()
        await go_on.wait()
        return Charged(event.order, "p")

    @payments.on(OrderCancelled, compensates=charge)
    async def refund(event: OrderCancelled, done: Done[Charged] | None, attempt: Attempt) -> Refunded:
        keys.append(attempt.key)
        go_on.set()
        return Refunded(event.order, "nothing" if done is None else done.message.payment, "")

    async with playing(App(orders, stock, payments, store=store_url, settings=QUICK)):
        await orders.publish(OrderPlaced("o"))
        await begun.wait()
        await stock.publish(OrderCancelled("o"))
        await eventually(lambda: payments.fetch("SELECT key FROM skald_effects WHERE state = 'undone'"))
        log = [json.loads(r.payload or b"") for r in await payments.store.log.read(0, 100) if r.type == "Refunded"]
    assert [one["payment"] for one in log] == ["nothing", "p"]
    assert len(set(keys)) == 2, "somebody who honours keys must not answer the second one as the first one"


async def _no_deliveries(service: Service) -> bool:
    return not await deliveries(service)


async def test_what_gave_up_is_settled(store_url: str) -> None:  # noqa: F811
    orders, payments = Service("orders", publishes=[OrderPlaced, OrderCancelled]), Service("payments")
    ran: list[str] = []

    def declined(event: OrderPlaced, error: Exception) -> Declined:
        return Declined(event.order)

    @payments.on(OrderPlaced, retry=NEVER, exhausted=declined)
    async def charge(event: OrderPlaced) -> Charged:
        ran.append("charge")
        raise ValueError("down")

    @payments.on(OrderCancelled, compensates=charge)
    async def refund(event: OrderCancelled) -> Refunded | None:
        ran.append("refund")
        return None

    async with playing(App(orders, payments, store=store_url, settings=QUICK)):
        await orders.publish(OrderPlaced("o"), OrderCancelled("o"), OrderPlaced("o"))
        await at_rest(payments, orders)
        assert [record.type for record in await payments.store.log.read(0, 10)] == ["Declined"]
    assert ran == ["charge"]


async def test_the_idempotency_key_is_the_one_that_the_handler_had(store_url: str) -> None:  # noqa: F811
    """Also if the handler acts once by another field than the key."""
    orders, payments = Service("orders", publishes=[OrderPlaced, OrderCancelled]), Service("payments")
    asked: list[str] = []
    told: list[str] = []

    @payments.on(OrderPlaced, once_by="n", retry=NEVER)
    async def charge(event: OrderPlaced, attempt: Attempt) -> Charged:
        asked.append(attempt.key)
        if event.order == "broken":
            raise TimeoutError
        return Charged(event.order, "p")

    @payments.on(OrderCancelled, compensates=charge)
    async def refund(event: OrderCancelled, done: Done[Charged] | Unknown) -> None:
        told.append(done.attempt)

    async with playing(App(orders, payments, store=store_url, settings=QUICK)):
        await orders.publish(OrderPlaced("fine", 7), OrderPlaced("broken", 8))
        await at_rest(payments, orders)
        await orders.publish(OrderCancelled("fine"), OrderCancelled("broken"))
        await at_rest(payments, orders)
        assert await eventually(lambda: _no_deliveries(payments))
    assert set(asked) == set(told) == {"payments:charge:7", "payments:charge:8"}
