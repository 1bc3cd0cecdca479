"""Procurement: three services that only events join. Silence, refusals, cancellations at any time, facts that come
twice or late, a service that is away for long; whatever a test did, the books of the three teams agree at its end."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import msgspec
import pytest

from examples.procurement import messages
from examples.procurement import purchasing as buying
from examples.procurement.messages import GoodsShipped, PurchaseOrderCancelled, VendorAcknowledged
from examples.procurement.purchasing import NoSuchOrder, OverBudget, cancel, order, purchasing
from examples.procurement.vendors import TooLate, answer, ship, vendors
from examples.procurement.warehouse import NotExpected, arrive, warehouse
from skald import App, Service
from skald.errors import StoreUnavailable
from tests.simulation.conftest import store_url  # noqa: F401
from tests.simulation.flaky import FlakyApp
from tests.simulation.stage import QUICK, caught_up, deliveries, eventually, seed

SERVICES = [purchasing, vendors, warehouse]
ORIGINS: dict[Service, list[Service]] = {
    purchasing: SERVICES,
    vendors: [purchasing, warehouse],
    warehouse: [purchasing, vendors],
}
BUDGET, PRICE = 1_000_000, 1_200
OPEN, RECEIVED, CANCELLED = "OPEN", "RECEIVED", "CANCELLED"


class Company:
    """Three teams on one store; ``run`` says who is at work."""

    def __init__(self, url: str, app: App | None = None) -> None:
        self.app = app or App(*SERVICES, store=url, settings=QUICK)

    @asynccontextmanager
    async def run(self, *away: Service) -> AsyncIterator[None]:
        """Who is away does not read, and can be asked for its tables all the same."""
        async with AsyncExitStack() as stack:
            if away:
                await stack.enter_async_context(self.app.connect(*(one.name for one in away)))
            await stack.enter_async_context(self.app.run(*(one.name for one in SERVICES if one not in away)))
            yield

    async def settled(self, *away: Service) -> None:
        """Whoever is at work has read everything, and nothing goes on but timeouts."""

        async def check() -> bool:
            before = [await one.store.log.end() for one in SERVICES]
            for service in (one for one in SERVICES if one not in away):
                assert {row["state"] for row in await deliveries(service)} <= {"queued"}
                for origin in ORIGINS[service]:
                    assert await caught_up(service, origin), f"{service.name} of {origin.name}"
            return before == [await one.store.log.end() for one in SERVICES]

        await eventually(check)


@pytest.fixture
async def company(store_url: str) -> Company:  # noqa: F811
    company = Company(store_url)
    await company.app.migrate()
    return company


async def buy(*ids: str) -> None:
    for id in ids:
        await order(id, "office", "paper-mill", "paper", PRICE)


Sight = tuple[str | None, str | None, str | None]


async def seen(id: str) -> Sight:
    """How the three teams see an order."""
    states = []
    for service, table, column in [
        (purchasing, "orders", "id"), (vendors, "sales", "order_id"), (warehouse, "arrivals", "order_id"),
    ]:  # fmt: skip
        rows = await service.fetch(f"SELECT state FROM {table} WHERE {column} = :id", id=id)
        states.append(rows[0]["state"] if rows else None)
    return states[0], states[1], states[2]


AGREE = {
    OPEN: {"sale": {None, "asked", "acknowledged", "shipped"}, "arrival": {None, "expected"}},
    RECEIVED: {"sale": {"shipped"}, "arrival": {"received"}},
    CANCELLED: {
        "sale": {None, "withdrawn", "declined", "recalled"}, "arrival": {None, "turned away", "returned"},
    },
}  # fmt: skip


async def audit() -> Counter[str]:
    """Once it is settled: the money is where it belongs, and nobody believes what another team does not. Returns how
    many orders are in which state."""
    orders = await purchasing.fetch("SELECT id, amount, state FROM orders")
    [budget] = await purchasing.fetch("SELECT free, committed, spent FROM budgets")
    assert sum(budget.values()) == BUDGET
    for column, state in [("committed", OPEN), ("spent", RECEIVED)]:
        assert budget[column] == sum(one["amount"] for one in orders if one["state"] == state)
    sales = {row["order_id"]: row["state"] for row in await vendors.fetch("SELECT * FROM sales")}
    arrivals = {row["order_id"]: row["state"] for row in await warehouse.fetch("SELECT * FROM arrivals")}
    for one in orders:
        sale, arrival = sales.get(one["id"]), arrivals.get(one["id"])
        agreed = AGREE[one["state"]]
        assert sale in agreed["sale"], (one, sale, arrival)
        assert arrival in agreed["arrival"], (one, sale, arrival)
        assert arrival is None or sale in ("shipped", "recalled")
    found = Counter(arrivals.values())
    scores = await vendors.fetch("SELECT sum(delivered) AS delivered, sum(returned) AS returned FROM scores")
    counted = {name: int(value or 0) for name, value in scores[0].items()}
    assert counted == {"delivered": found["received"] + found["returned"], "returned": found["returned"]}
    return Counter(one["state"] for one in orders)


async def when(moment: Callable[[], Awaitable[None]], refusal: type[Exception]) -> None:
    """Does what somebody outside does as soon as the service knows of it."""

    async def done() -> bool:
        with suppress(refusal):
            await moment()
            return True
        return False

    await eventually(done)


async def deliver(id: str) -> None:
    await when(lambda: answer(id, yes=True), TooLate)
    await ship(id)
    await when(lambda: arrive(id), NotExpected)


# --- what becomes of an order -----------------------------------------------------------------------------------------


async def test_goods_are_ordered_acknowledged_shipped_and_received(company: Company) -> None:
    async with company.run():
        await buy("o-1")
        await buy("o-1")
        await deliver("o-1")
        await company.settled()
        assert await seen("o-1") == (RECEIVED, "shipped", "received")
        [row] = await purchasing.fetch("SELECT state, step FROM skald_marks WHERE kind = 'process'")
        assert row == {"state": "ended", "step": "received"}
        assert await deliveries(purchasing) == [], "its timeout is gone"
        assert await audit() == {RECEIVED: 1}


async def test_nothing_is_ordered_that_the_budget_does_not_have(company: Company) -> None:
    async with company.run():
        await buy("o-1")
        with pytest.raises(OverBudget, match=f"office has no {BUDGET} left for a yacht"):
            await order("o-2", "office", "wharf", "a yacht", BUDGET)
        with pytest.raises(NoSuchOrder, match="'o-2' was never ordered"):
            await cancel("o-2", "a typo")
        await company.settled()
        assert await seen("o-2") == (None, None, None)
        assert await audit() == {OPEN: 1}


async def test_a_silent_vendor_is_not_waited_for(company: Company, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buying, "patience", 0.2)
    async with company.run():
        await buy("o-1")
        await eventually(lambda: _is(CANCELLED, "withdrawn", None))
        with pytest.raises(TooLate, match="o-1 is withdrawn, and not asked"):
            await answer("o-1", yes=True)
        await company.settled()
        [row] = await purchasing.fetch("SELECT reason FROM orders")
        assert row["reason"] == "the vendor is silent"
        assert await audit() == {CANCELLED: 1}


async def _is(*states: str | None) -> bool:
    return await seen("o-1") == states


async def test_a_vendor_who_declines(company: Company) -> None:
    async with company.run():
        await buy("o-1")
        await when(lambda: answer("o-1", yes=False, reason="sold out"), TooLate)
        await company.settled()
        assert await seen("o-1") == (CANCELLED, "declined", None)
        [row] = await purchasing.fetch("SELECT reason FROM orders")
        assert row["reason"] == "paper-mill has declined: sold out"
        assert await audit() == {CANCELLED: 1}


@pytest.mark.parametrize(
    ("steps", "states"),
    [
        (1, ("withdrawn", None)),
        (2, ("withdrawn", None)),
        (3, ("recalled", "turned away")),
        (4, ("shipped", "received")),
    ],
    ids=["asked", "acknowledged", "shipped", "received"],
)
async def test_an_order_is_cancelled_until_the_goods_are_here(
    company: Company, steps: int, states: tuple[str, str | None]
) -> None:
    async with company.run():
        await buy("o-1")
        for step in [lambda: answer("o-1", yes=True), lambda: ship("o-1"), lambda: arrive("o-1")][: steps - 1]:
            await company.settled()
            await step()
        await company.settled()
        await cancel("o-1", "changed my mind")
        await company.settled()
        assert await seen("o-1") == (RECEIVED if steps == 4 else CANCELLED, *states)
        with pytest.raises(NotExpected):
            await arrive("o-1")
        await audit()


async def returned(company: Company) -> None:
    """An order is cancelled, and its goods are received before the warehouse has heard of that."""
    async with company.run():
        await buy("o-1")
        await company.settled()
        await answer("o-1", yes=True)
        await ship("o-1")
        await company.settled()
    async with company.run(warehouse):
        await cancel("o-1", "changed my mind")
        await company.settled(warehouse)
        await arrive("o-1")
        await company.settled(warehouse)
        assert await seen("o-1") == (CANCELLED, "recalled", "received")


async def test_goods_that_are_received_while_the_order_is_cancelled_go_back(company: Company) -> None:
    await returned(company)
    async with company.run():
        await company.settled()
        assert await seen("o-1") == (CANCELLED, "recalled", "returned")
        assert await vendors.fetch("SELECT * FROM scores") == [{"vendor": "paper-mill", "delivered": 1, "returned": 1}]
        assert await audit() == {CANCELLED: 1}


async def test_goods_that_are_shipped_while_the_order_is_cancelled_are_not_expected(company: Company) -> None:
    async with company.run():
        await buy("o-1")
        await company.settled()
        await answer("o-1", yes=True)
        await company.settled()
    async with company.run(vendors):
        await cancel("o-1", "changed my mind")
        await company.settled(vendors)
        await ship("o-1")  # nobody has told them yet
        await company.settled(vendors)
        assert await refused(warehouse) == ["expect"]
    async with company.run():
        await company.settled()
        assert await seen("o-1") == (CANCELLED, "recalled", None)
        with pytest.raises(NotExpected, match="o-1 is not known"):
            await arrive("o-1")
        assert await audit() == {CANCELLED: 1}


async def refused(service: Service) -> list[str]:
    """The handlers whose message came behind its compensation."""
    return [
        row["handler"] for row in await service.fetch("SELECT handler FROM skald_effects WHERE refused IS NOT NULL")
    ]


# --- what comes twice, late, or after a long time ---------------------------------------------------------------------


async def again(service: Service) -> None:
    """Tells everything that a service has told so far once more, under new message ids."""
    for record in await service.store.log.read(0, 10_000):
        await service.publish(msgspec.json.decode(record.payload or b"", type=getattr(messages, record.type)))


@pytest.mark.parametrize("ending", ["received", "withdrawn", "returned"])
async def test_every_fact_comes_again_under_a_new_id(company: Company, ending: str) -> None:
    if ending == "returned":
        await returned(company)
    async with company.run():
        if ending == "received":
            await buy("o-1")
            await deliver("o-1")
        elif ending == "withdrawn":
            await buy("o-1")
            await company.settled()
            await cancel("o-1", "changed my mind")
        await company.settled()
        before, found = await seen("o-1"), await audit()
        for service in SERVICES * 2:
            await again(service)
        await company.settled()
        assert await seen("o-1") == before
        assert await audit() == found
        assert await deliveries(purchasing) == await deliveries(vendors) == await deliveries(warehouse) == []


async def test_what_is_told_after_a_cancellation_changes_nothing(company: Company) -> None:
    async with company.run():
        await buy("o-1")
        await company.settled()
        await cancel("o-1", "changed my mind")
        await company.settled()
        await vendors.publish(VendorAcknowledged("o-1", "paper-mill"), GoodsShipped("o-1", "paper-mill", "paper"))
        await company.settled()
        assert await seen("o-1") == (CANCELLED, "withdrawn", None)
        assert await refused(warehouse) == ["expect"]


async def test_the_cancellation_of_an_order_overtakes_it(company: Company) -> None:
    """As where the two come through different brokers: the vendor is not even asked."""
    async with company.run():
        await purchasing.publish(PurchaseOrderCancelled("o-1", "changed my mind"))
        await company.settled()
        await buy("o-1")
        await company.settled()
        assert await refused(vendors) == ["ask"]
        assert await vendors.fetch("SELECT * FROM sales") == []


async def test_the_vendors_team_is_away_for_long(company: Company) -> None:
    ids = [f"o-{n}" for n in range(40)]
    async with company.run(vendors):
        await buy(*ids)
        for id in ids[:10]:
            await cancel(id, "changed my mind")
        await company.settled(vendors)
        assert await vendors.fetch("SELECT * FROM sales") == []
        assert await audit() == {OPEN: 30, CANCELLED: 10}
    async with company.run():
        await company.settled()
        rows = await vendors.fetch("SELECT state FROM sales")
        assert Counter(row["state"] for row in rows) == {"asked": 30, "withdrawn": 10}
        for id in ids[10:]:
            await deliver(id)
        await company.settled()
        assert await audit() == {RECEIVED: 30, CANCELLED: 10}


async def test_the_purchasing_team_is_away_for_long(company: Company) -> None:
    """The others go on with what they know, and it catches up, whatever it reads first."""
    ids = [f"o-{n}" for n in range(20)]
    async with company.run(purchasing):
        await buy(*ids)  # its program takes orders, although nothing of it handles messages
        for id in ids[:15]:
            await deliver(id)
        await when(lambda: answer(ids[15], yes=False, reason="sold out"), TooLate)
    async with company.run():
        await company.settled()
        assert await audit() == {OPEN: 4, RECEIVED: 15, CANCELLED: 1}


async def test_any_number_of_orders_while_stores_fail(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """Orders are answered, shipped, received, cancelled and told again at random; whoever works outside tries again."""
    chance = random.Random(seed())
    monkeypatch.setattr(buying, "patience", 1.0)
    names = [one.name for one in SERVICES]
    app = FlakyApp(*SERVICES, store=store_url, settings=QUICK, chance=chance, flaky=names)
    company = Company(store_url, app)
    await app.migrate()
    async with company.run():
        app.fail(0.03)
        await asyncio.gather(*(one_order(f"o-{n}", chance) for n in range(40)))
        print(f"{app.failures} planted failures")
        app.fail(0.0)
        for service in SERVICES:
            await again(service)

        await eventually(lambda: no_timeout_is_left(company))
        await company.settled()
        found = await audit()
        print(dict(found))
        assert app.failures > 0
        assert sum(found.values()) == 40


async def no_timeout_is_left(company: Company) -> bool:
    await company.settled()
    return not await deliveries(purchasing)


async def one_order(id: str, chance: random.Random) -> None:
    """Its buyer, vendor and lorry, each of whom tries again until it is done or the order is over."""
    yes, cancels = chance.random() < 0.8, chance.random() < 0.3
    script: list[tuple[Callable[[], Awaitable[None]], Callable[[Sight], bool]]] = [
        (lambda: answer(id, yes), lambda seen: seen[1] not in (None, "asked")),
        (lambda: ship(id), lambda seen: seen[1] not in (None, "asked", "acknowledged")),
        (lambda: arrive(id), lambda seen: seen[2] not in (None, "expected")),
    ]
    await surely(lambda: buy(id))
    for act, is_done in script[: chance.randint(0, 3)]:

        async def done(act: Any = act, is_done: Any = is_done) -> bool:
            with suppress(StoreUnavailable):
                with suppress(TooLate, NotExpected):
                    await act()
                found = await seen(id)
                return is_done(found) or found[0] == CANCELLED
            return False

        await eventually(done)
    if cancels:
        await surely(lambda: cancel(id, "changed my mind"))


async def surely(act: Callable[[], Awaitable[None]]) -> None:
    """Again when the store has failed: what was written may have been."""

    async def done() -> bool:
        with suppress(StoreUnavailable):
            await act()
            return True
        return False

    await eventually(done)
