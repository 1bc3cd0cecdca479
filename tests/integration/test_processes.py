"""Processes: a state per key, moved on by events of several services, with timeouts in the same commit."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from skald import NEVER, App, Event, ManualClock, Process, Retry, Service, SystemClock, Transaction
from skald.messaging.proceeding import Proceeding
from skald.messaging.processes import ProcessNotFound
from skald.runtime.pruner import Pruner
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
    no_deliveries,
    playing,
    redrive,
)


class OrderPlaced(Event, key="order_id"):
    order_id: str
    total: int = 5


class Paid(Event, key="payment"):
    payment: str
    order_id: str


class Reserved(Event, key="order_id"):
    order_id: str


class Confirmed(Event, key="order_id"):
    order_id: str
    total: int


class Expired(Event, key="order_id"):
    order_id: str
    step: str


class Refund(Event, key="order_id"):
    order_id: str


class Checkout(Process):
    order_id: str
    total: int
    paid: bool = False
    reserved: bool = False
    step: str = "waiting"


class Count(Process):
    order_id: str
    seen: int = 0


async def at_rest(service: Service, origin: Service) -> None:
    """Everything is read, and nothing goes on by itself but timeouts."""

    async def check() -> bool:
        states = {row["state"] for row in await deliveries(service)}
        return await caught_up(service, origin) and states <= {"queued", "parked"}

    await eventually(check)


class Shop:
    def __init__(self, url: str, *, seconds: float = 3600, tx: bool = False, **options: Any) -> None:
        self.shop = Service("shop", publishes=[OrderPlaced])
        self.bank = Service("bank", publishes=[Paid])
        self.stock = Service("stock", publishes=[Reserved])
        self.orders = Service("orders", migrations=MIGRATIONS)
        self.app = App(self.shop, self.bank, self.stock, self.orders, store=url, settings=QUICK)
        self.expires = True
        checkout = self.orders.process(Checkout, by="order_id", **options)

        @checkout.starts(OrderPlaced)
        def placed(state: Checkout, event: OrderPlaced) -> None:
            state.timeout(seconds, "patience")

        if tx:

            @checkout.on(Paid)
            async def paid(state: Checkout, event: Paid, tx: Transaction) -> Confirmed | None:
                await effect(tx, "paid", event.payment, event.order_id, 0)
                state.paid, state.step = True, "paid"
                return self.confirmed(state)
        else:

            @checkout.on(Paid)
            async def paid_(state: Checkout, event: Paid) -> Confirmed | None:
                state.paid, state.step = True, "paid"
                return self.confirmed(state)

        @checkout.on(Reserved)
        def reserved(state: Checkout, event: Reserved) -> Confirmed | None:
            state.reserved = True
            return self.confirmed(state)

        @checkout.on_timeout("patience", retry=NEVER)
        async def too_late(state: Checkout) -> Expired:
            if not self.expires:
                raise ValueError("not now")
            state.end()
            return Expired(state.order_id, state.step)

    def confirmed(self, state: Checkout) -> Confirmed | None:
        if not (state.paid and state.reserved):
            return None
        state.step = "confirmed"
        state.end()
        return Confirmed(state.order_id, state.total)

    async def place(self, *keys: str) -> None:
        await self.shop.publish(*(OrderPlaced(key) for key in keys))
        await self.settled(self.shop)

    async def settled(self, *origins: Service) -> None:
        for origin in origins or (self.shop, self.bank, self.stock):
            await at_rest(self.orders, origin)

    async def published(self) -> list[tuple[str, str]]:
        return [(record.type, record.key) for record in await self.orders.store.log.read(0, 10_000)]

    async def rows(self) -> list[dict[str, Any]]:
        return await self.orders.fetch(
            "SELECT name, key, state, step, correlation_id FROM skald_marks WHERE kind = 'process' ORDER BY key"
        )


@pytest.mark.parametrize("tx", [True, False], ids=["tx", "plain"])
async def test_events_of_several_services_move_one_state_on(store_url: str, tx: bool) -> None:  # noqa: F811
    shop = Shop(store_url, tx=tx)
    keys = [f"o{n}" for n in range(40)]
    async with playing(shop.app):
        await shop.place(*keys)
        (first, *_) = await shop.shop.store.log.read(0, 1)
        await asyncio.gather(
            shop.bank.publish(*(Paid(f"p{key}", key) for key in keys)),
            shop.stock.publish(*(Reserved(key) for key in keys)),
        )
        await shop.settled()
        assert sorted(await shop.published()) == sorted(("Confirmed", key) for key in keys)
        rows = await shop.rows()
        assert {(row["state"], row["step"]) for row in rows} == {("ended", "confirmed")}
        assert rows[0] == {
            "name": "Checkout", "key": "o0", "state": "ended", "step": "confirmed",
            "correlation_id": first.correlation_id,
        }  # fmt: skip
        assert await deliveries(shop.orders) == []
        if tx:
            assert len(await effects(shop.orders, "paid")) == 40


async def test_many_events_of_a_key_in_one_stretch(store_url: str) -> None:  # noqa: F811
    shop, orders = Service("shop", publishes=[OrderPlaced]), Service("orders")
    count = orders.process(Count, by="order_id")

    @count.starts(OrderPlaced)
    def placed(state: Count, event: OrderPlaced) -> Confirmed | None:
        state.seen += 1
        if state.seen < 50:
            state.timeout(3600 * state.seen, "idle")
            return None
        state.end()
        return Confirmed(state.order_id, state.seen)

    @count.on_timeout("idle")
    def idle(state: Count) -> None: ...

    app = App(shop, orders, store=store_url, settings=QUICK)
    await app.migrate()
    async with app.connect("shop"):
        await shop.publish(*(OrderPlaced(f"o{n % 5}") for n in range(249)))
    async with playing(app):
        await at_rest(orders, shop)
        assert len(await orders.store.log.read(0, 100)) == 4
        [row] = await deliveries(orders)
        assert (row["handler"], row["key"], row["state"]) == ("Count.idle", "o4", "queued")
        await shop.publish(OrderPlaced("o4"))
        await at_rest(orders, shop)
        assert await deliveries(orders) == []


async def test_a_timeout_comes_once_and_not_before_its_time(store_url: str) -> None:  # noqa: F811
    shop = Shop(store_url, seconds=0.3)
    async with playing(shop.app):
        await shop.place("o", "p")
        await shop.stock.publish(Reserved("o"))
        await shop.bank.publish(Paid("x", "o"), Paid("y", "p"))
        await shop.settled()
        await eventually(lambda: _has(shop, ("Expired", "p")))
        log = await shop.orders.store.log.read(0, 100)
        placed = {record.key: record for record in await shop.shop.store.log.read(0, 10)}
        expired = next(record for record in log if record.type == "Expired")
        assert expired.time - placed["p"].time >= 300_000
        assert expired.correlation_id == placed["p"].correlation_id
        assert b'"paid"' in (expired.payload or b"")
        assert sorted((record.type, record.key) for record in log) == [("Confirmed", "o"), ("Expired", "p")]
        assert await deliveries(shop.orders) == []
        assert {row["key"]: row["state"] for row in await shop.rows()} == {"o": "ended", "p": "ended"}


class Behind(SystemClock):
    """Of a machine whose clock is an hour behind that of its database."""

    def now(self) -> int:
        return super().now() - 3_600_000_000


@pytest.mark.parametrize("tx", [True, False], ids=["tx", "plain"])
async def test_a_timeout_is_due_by_the_clock_of_the_database(store_url: str, tx: bool) -> None:  # noqa: F811
    shop, orders = Service("shop", publishes=[OrderPlaced]), Service("orders")
    checkout = orders.process(Checkout, by="order_id")

    if tx:

        @checkout.starts(OrderPlaced)
        async def placed(state: Checkout, event: OrderPlaced, tx: Transaction) -> None:
            state.timeout(600, "patience")
    else:

        @checkout.starts(OrderPlaced)
        def placed_(state: Checkout, event: OrderPlaced) -> None:
            state.timeout(600, "patience")

    @checkout.on_timeout("patience")
    def patience(state: Checkout) -> None: ...

    async with playing(App(shop, orders, store=store_url, settings=QUICK, clock=Behind())):
        await shop.publish(OrderPlaced("o"))
        await at_rest(orders, shop)
        [row] = await deliveries(orders)
        assert 0 < row["due"] - await orders.store.now() < 600_000_000


async def _has(shop: Shop, what: tuple[str, str]) -> bool:
    return what in await shop.published()


async def test_a_timeout_that_fails_is_parked_and_can_be_redriven_or_cancelled(store_url: str) -> None:  # noqa: F811
    shop = Shop(store_url, seconds=0.01)
    shop.expires = False
    async with playing(shop.app):
        await shop.place("o", "p")
        await eventually(lambda: _parked(shop, 2))
        # One is cancelled with its process, although it is parked; the other one comes after all.
        await shop.stock.publish(Reserved("o"))
        await shop.bank.publish(Paid("x", "o"))
        await shop.settled()
        assert [row["key"] for row in await deliveries(shop.orders)] == ["p"]
        shop.expires = True
        async with shop.orders.transaction() as tx:
            await tx.execute("UPDATE skald_deliveries SET state = 'queued', attempts = 0")
        await eventually(lambda: _has(shop, ("Expired", "p")))
        assert await shop.published() == [("Confirmed", "o"), ("Expired", "p")]


async def _parked(shop: Shop, count: int) -> bool:
    return [row["state"] for row in await deliveries(shop.orders)] == ["parked"] * count


async def test_one_whose_parked_timeout_was_discarded_goes_on(store_url: str) -> None:  # noqa: F811
    shop = Shop(store_url, seconds=0.01)
    shop.expires = False
    async with playing(shop.app):
        await shop.place("o")
        await eventually(lambda: _parked(shop, 1))
        async with shop.orders.transaction() as tx:
            await tx.execute("DELETE FROM skald_deliveries")
        await shop.stock.publish(Reserved("o"))
        await shop.bank.publish(Paid("x", "o"))
        await shop.settled()
        assert await shop.published() == [("Confirmed", "o")]


async def test_what_finds_no_process_is_ignored(store_url: str) -> None:  # noqa: F811
    shop = Shop(store_url)
    async with playing(shop.app):
        await shop.bank.publish(Paid("x", "o"))
        await shop.settled()
        assert await shop.rows() == []
        await shop.place("o")
        await shop.stock.publish(Reserved("o"))
        await shop.bank.publish(Paid("x", "o"))
        await shop.settled()
        await shop.bank.publish(Paid("x", "o"))
        await shop.place("o")
        await shop.settled()
        assert await shop.published() == [("Confirmed", "o")]
        assert await deliveries(shop.orders) == []


async def test_what_finds_no_process_waits_for_it_or_is_parked(store_url: str) -> None:  # noqa: F811
    bank, orders = Service("bank", publishes=[Paid, OrderPlaced]), Service("orders")
    checkout = orders.process(Checkout, by="order_id", not_found="park")

    @checkout.starts(OrderPlaced)
    def placed(state: Checkout, event: OrderPlaced) -> None: ...

    @checkout.on(Paid, retry=Retry(immediate=1, delays=()))
    def paid(state: Checkout, event: Paid) -> Confirmed:
        return Confirmed(state.order_id, state.total)

    async with playing(App(bank, orders, store=store_url, settings=QUICK)):
        await bank.publish(Paid("x", "o"))
        rows = await eventually(lambda: deliveries(orders))
        assert rows[0]["state"] == "parked"
        assert rows[0]["error"].startswith(ProcessNotFound.__name__)
        await bank.publish(OrderPlaced("o", 7))
        await at_rest(orders, bank)
        await redrive(orders)
        assert await eventually(lambda: orders.store.log.read(0, 10))


@pytest.mark.parametrize("tx", [True, False], ids=["tx", "plain"])
@pytest.mark.parametrize("trouble", ["slow", "delayed", "parked"])
async def test_what_comes_behind_a_start_that_is_not_finished_is_not_lost(
    store_url: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    trouble: str,
    tx: bool,
) -> None:
    """Both have one key, and so an order."""
    monkeypatch.setattr("skald.messaging.outcome.NOT_YET", 20_000)
    shop, orders = Service("shop", publishes=[OrderPlaced, Reserved]), Service("orders")
    checkout, goes_on, tried = orders.process(Checkout, by="order_id"), asyncio.Event(), Seen[str]()
    retry = NEVER if trouble == "parked" else Retry(immediate=1, delays=(0.01,) * 1_000)

    @checkout.starts(OrderPlaced, retry=retry)
    async def placed(state: Checkout, event: OrderPlaced) -> None:
        if trouble == "slow":
            await goes_on.wait()
        elif not goes_on.is_set():
            raise ValueError("not yet")

    if tx:

        @checkout.on(Reserved, retry=NEVER)
        async def reserved(state: Checkout, event: Reserved, tx: Transaction) -> Confirmed:
            tried.note(event.order_id)
            return Confirmed(state.order_id, state.total)
    else:

        @checkout.on(Reserved, retry=NEVER)
        async def reserved_(state: Checkout, event: Reserved) -> Confirmed:
            tried.note(event.order_id)
            return Confirmed(state.order_id, state.total)

    async def wait() -> bool:
        rows = await deliveries(orders)
        return len(rows) == 2 and (trouble != "parked" or {row["state"] for row in rows} == {"parked"})

    async with playing(App(shop, orders, store=store_url, settings=QUICK)):
        await shop.publish(OrderPlaced("o"), Reserved("o"))
        await eventually(wait)
        goes_on.set()
        if trouble == "parked":
            await redrive(orders)
        assert await eventually(lambda: orders.store.log.read(0, 10))
        assert await eventually(lambda: no_deliveries(orders))
    assert tried.items == ["o"]


async def test_a_start_that_ends_while_it_is_looked_for_is_found(
    store_url: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The process was not there yet, and what starts it is not there any more."""
    monkeypatch.setattr("skald.messaging.outcome.NOT_YET", 20_000)
    shop, orders = Service("shop", publishes=[OrderPlaced, Reserved]), Service("orders")
    checkout, goes_on, look = orders.process(Checkout, by="order_id"), asyncio.Event(), Proceeding._check_start

    @checkout.starts(OrderPlaced, retry=Retry(immediate=1, delays=(0.01,) * 1_000))
    async def placed(state: Checkout, event: OrderPlaced) -> None:
        if not goes_on.is_set():
            raise ValueError("not yet")

    @checkout.on(Reserved, retry=NEVER)
    async def reserved(state: Checkout, event: Reserved) -> Confirmed:
        return Confirmed(state.order_id, state.total)

    async def has_started() -> bool:
        return [row["handler"] for row in await deliveries(orders)] == ["Checkout.reserved"]

    async def once_it_has(self: Proceeding, item: Any, *given: Any) -> None:
        if item.blocked is None:
            goes_on.set()
            await eventually(has_started)
        await look(self, item, *given)

    monkeypatch.setattr(Proceeding, "_check_start", once_it_has)
    async with playing(App(shop, orders, store=store_url, settings=QUICK)):
        await shop.publish(OrderPlaced("o"), Reserved("o"))
        assert await eventually(lambda: orders.store.log.read(0, 10))


async def test_what_finds_no_process_is_answered_by_a_function(store_url: str) -> None:  # noqa: F811
    bank, orders = Service("bank", publishes=[Paid, OrderPlaced]), Service("orders")
    checkout = orders.process(Checkout, by="order_id")

    @checkout.starts(OrderPlaced)
    def placed(state: Checkout, event: OrderPlaced) -> None: ...

    async def give_back(event: Paid) -> Refund:
        return Refund(event.order_id)

    @checkout.on(Paid, not_found=give_back)
    def paid(state: Checkout, event: Paid) -> None: ...

    async with playing(App(bank, orders, store=store_url, settings=QUICK)):
        await bank.publish(OrderPlaced("p"))
        await at_rest(orders, bank)
        await bank.publish(Paid("x", "o"), Paid("y", "p"))
        await at_rest(orders, bank)
        [refund] = await orders.store.log.read(0, 10)
        assert (refund.type, refund.key) == ("Refund", "o")


async def test_a_function_that_fails_leaves_the_state_alone(store_url: str) -> None:  # noqa: F811
    shop, orders = Service("shop", publishes=[OrderPlaced]), Service("orders")
    checkout = orders.process(Checkout, by="order_id")
    seen: list[int] = []

    @checkout.starts(OrderPlaced, retry=Retry(immediate=3))
    def placed(state: Checkout, event: OrderPlaced) -> Confirmed:
        state.total += 1
        state.timeout(3600, "patience")
        seen.append(state.total)
        if len(seen) < 3:
            raise ValueError("again")
        return Confirmed(state.order_id, state.total)

    @checkout.on_timeout("patience")
    def patience(state: Checkout) -> None: ...

    async with playing(App(shop, orders, store=store_url, settings=QUICK)):
        await shop.publish(OrderPlaced("o", 1))
        await at_rest(orders, shop)
        assert len(await deliveries(orders)) == 1
        assert len(await orders.store.log.read(0, 10)) == 1
    assert seen == [2, 2, 2]


async def test_a_state_that_does_not_fit_its_class_is_a_failure_of_its_function(store_url: str) -> None:  # noqa: F811
    """And of no other: those that come next find the state as it was."""
    shop, orders = Service("shop", publishes=[OrderPlaced, Paid]), Service("orders")
    checkout = orders.process(Checkout, by="order_id")

    @checkout.starts(OrderPlaced)
    def placed(state: Checkout, event: OrderPlaced) -> None: ...

    @checkout.on(Paid, retry=NEVER)
    def paid(state: Checkout, event: Paid) -> Confirmed | None:
        if event.payment == "half":
            state.total /= 2  # type: ignore[assignment]
            return None
        return Confirmed(state.order_id, state.total)

    async with playing(App(shop, orders, store=store_url, settings=QUICK)):
        await shop.publish(OrderPlaced("o", 7))
        await at_rest(orders, shop)
        await shop.publish(Paid("half", "o"))
        [row] = await eventually(lambda: deliveries(orders))
        assert (row["handler"], row["state"]) == ("Checkout.paid", "parked")
        assert row["error"].startswith("TypeError: Checkout: its state does not fit the class")
        await shop.publish(Paid("whole", "o"))
        await at_rest(orders, shop)
        assert await eventually(lambda: orders.store.log.read(0, 10))


async def test_those_that_have_ended_are_forgotten_and_those_that_run_are_not(store_url: str) -> None:  # noqa: F811
    shop, orders, clock = Service("shop", publishes=[OrderPlaced]), Service("orders"), ManualClock()
    checkout = orders.process(Checkout, by="order_id", remember=10)

    @checkout.starts(OrderPlaced)
    def placed(state: Checkout, event: OrderPlaced) -> None:
        if event.total == 0:
            state.end()

    async def readers() -> int | None:
        return None

    async with playing(App(shop, orders, store=store_url, settings=QUICK, clock=clock)):
        await shop.publish(OrderPlaced("over", 0), OrderPlaced("open", 1))
        await at_rest(orders, shop)
        pruner = Pruner(store=orders.store, service=orders, readers=readers, clock=clock)
        clock.advance(9 * 86_400)
        assert (await pruner.step()).marks == 0
        clock.advance(2 * 86_400)
        assert (await pruner.step()).marks == 1
        assert await orders.fetch("SELECT key, state FROM skald_marks") == [{"key": "open", "state": "running"}]
