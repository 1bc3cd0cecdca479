"""The orchestrated shop: where its saga stands, and the failures that a conductor sees and choreography does not.

The failures of all styles are in ``test_shop_failures``, with this one among them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import pytest_asyncio

from examples.shop.books import Books
from examples.shop.house import House
from examples.shop.orchestration.messages import ChargePayment
from examples.shop.parcels import picked_up
from examples.shop.providers.clients import CardGateway
from skald.operations.parked import Selection
from skald.operations.redriving import redrive
from skald.operations.sagas import resolve_saga, show_saga
from skald.operations.subscriptions import reset_subscription
from skald.operations.workflows import cancel_workflow
from skald.sagas.question import Choice
from tests.acceptance.test_shop_books import STATE, state
from tests.acceptance.test_shop_failures import (  # noqa: F401
    PACE,
    Shop,
    carry,
    conducted,
    shop,
    steps,
    store,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEYED = ("orders", "payments", "inventory", "shipping")
"""The services that act, and not only tell."""


@pytest.fixture(
    scope="module",
    params=["orchestration-sqlite", pytest.param("orchestration-postgres", marks=pytest.mark.postgres)],
)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house(store: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:  # noqa: F811
    settings = {**PACE, "SHOP_UNDO_DELAYS": "0.1,0.2"}
    async with House(tmp_path_factory.mktemp("house"), store, style="orchestration", settings=settings) as opened:
        yield opened


async def saga(house: House, order_id: str) -> tuple[str, str]:
    orders = house.app.service("orders")
    async with house.app.connect("orders"):
        rows = await orders.fetch("SELECT status, current_step FROM saga_state WHERE saga_id = :id", id=order_id)
    return (rows[0]["status"], rows[0]["current_step"]) if rows else ("", "")


async def publish(house: House, *messages: Any) -> None:
    async with house.app.connect("orders"):
        await house.app.service("orders").publish(*messages)


async def stages(house: House, order_id: str) -> list[str]:
    journal = (await show_saga(house.app, order_id, "orders")).journal
    return [entry.name for entry in journal if entry.kind == "stage" or entry.name == "CREATED"]


def acted(books: Books) -> Any:
    """What the services have done, in their tables and outside; not what they have told."""
    return {table: state(books, table, columns) for table, columns in STATE.items()}, books.keyed


# --- where it stands ----------------------------------------------------------------------------------------


WAITS = {"payments": "PAYMENT_PENDING", "inventory": "INVENTORY_PENDING", "shipping": "SHIPPING_PENDING"}


@pytest.mark.parametrize(("service", "step"), WAITS.items())
async def test_the_saga_says_whom_it_waits_for(shop: Shop, service: str, step: str) -> None:  # noqa: F811
    async with shop.house.supervisor.down(service):
        order_id = await shop.place()

        async def waiting() -> bool:
            return await saga(shop.house, order_id) == ("IN_PROGRESS", step)

        await shop.until(waiting)
    assert (await shop.settled(order_id))["status"] == "CONFIRMED"


async def test_it_is_completed_when_the_parcel_has_left(shop: Shop) -> None:  # noqa: F811
    order = await shop.placed_and_settled()
    way = ["CREATED", "PAYMENT_PENDING", "INVENTORY_PENDING", "SHIPPING_PENDING", "PICKUP_PENDING"]

    async def waits_for_the_carrier() -> bool:
        return await stages(shop.house, order["order_id"]) == way

    await shop.until(waits_for_the_carrier)
    await carry(shop.house, picked_up, order["order_id"])

    async def completed() -> bool:
        return await saga(shop.house, order["order_id"]) == ("COMPLETED", "COMPLETED")

    await shop.until(completed)
    assert await stages(shop.house, order["order_id"]) == [*way, "COMPLETED"]


# --- second thoughts on the way -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("down", "undone"),
    [
        ("payments", {"payment": "undone", "inventory": "pending", "shipping": "pending"}),
        ("inventory", {"payment": "undone", "inventory": "undone", "shipping": "pending"}),
        ("shipping", {"payment": "undone", "inventory": "undone", "shipping": "undone"}),
    ],
)
async def test_an_order_that_is_called_off_on_its_way(shop: Shop, down: str, undone: dict[str, str]) -> None:  # noqa: F811
    """What is being done at this moment is waited for, and undone with the rest."""
    async with shop.house.supervisor.down(down):
        order_id = await shop.place()

        async def waiting() -> bool:
            return await saga(shop.house, order_id) == ("IN_PROGRESS", WAITS[down])

        await shop.until(waiting)
        await shop.cancel(order_id)

    cancelled = await shop.settled(order_id)
    assert (cancelled["status"], cancelled["reason"]) == ("CANCELLED", "second thoughts")
    assert steps(cancelled) == undone
    assert "OrderConfirmed" not in await shop.facts(order_id)
    await shop.balanced()
    assert (await saga(shop.house, order_id))[0] == "COMPENSATED"


async def test_a_saga_that_an_operator_cancels_takes_its_order_along(shop: Shop) -> None:  # noqa: F811
    """While nobody knows yet whether there is a label."""
    async with shop.house.supervisor.down("shipping"):
        order_id = await shop.place()

        async def waiting() -> bool:
            return await saga(shop.house, order_id) == ("IN_PROGRESS", "SHIPPING_PENDING")

        await shop.until(waiting)
        await cancel_workflow(shop.house.app, order_id, reason="recalled", service="orders")

    assert (await shop.settled(order_id))["status"] == "CANCELLED"
    # Shipping may be asked twice: the label may be in the making when its cancellation comes.
    done = [kind for kind, status in await shop.effects(order_id) if status == "done"]
    assert done == ["charge", "label", "withdrawal", "refund"]
    await shop.balanced()
    assert (await saga(shop.house, order_id))[0] == "CANCELLED"


# --- what nobody knows --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("card", "effects"),
    [
        ("card-silent", [("refund", "nothing"), ("charge", "refused")]),
        ("card-lost", [("charge", "done"), ("refund", "done"), ("charge", "refused")]),
    ],
)
async def test_a_charge_that_comes_too_late_is_refused(
    shop: Shop,  # noqa: F811
    card: str,
    effects: list[tuple[str, str]],
) -> None:
    """By payments, whoever asks for it, and by the gateway if an attempt was on its way."""
    order = await shop.placed_and_settled(card=card)
    order_id = order["order_id"]
    facts = await shop.facts(order_id)
    assert (order["status"], facts["PaymentFailed"].body["unknown"]) == ("CANCELLED", True)
    assert facts["RefundPayment"].body["reason"] == facts["PaymentFailed"].body["reason"] == order["reason"]
    gateway = CardGateway(shop.house.urls["keyed"], 2)
    await gateway.charge(order_id, "card-ok", 100, key=f"late:{order_id}")
    await gateway.close()
    late = msgspec.convert(facts["ChargePayment"].body, ChargePayment)
    await publish(shop.house, late)

    async def refused() -> bool:
        query = "SELECT refused FROM skald_effects WHERE handler = 'charge' AND key = :id"
        async with shop.house.app.connect("payments"):
            [row] = await shop.house.app.service("payments").fetch(query, id=order_id)
        return row["refused"] is not None

    await shop.until(refused)
    assert await shop.effects(order_id) == effects
    await shop.balanced()


# --- when undoing fails -------------------------------------------------------------------------------------


async def test_a_refund_that_keeps_failing_is_a_question_of_the_saga(shop: Shop) -> None:  # noqa: F811
    await shop.switch("keyed", down=["refunds"])
    order = await shop.placed_and_settled({"POT-GOLD": 1})
    order_id, app = order["order_id"], shop.house.app

    assert order["status"] == "NEEDS_ATTENTION"
    assert order["reason"] == "refund of charge has failed in payments"
    facts = await shop.facts(order_id)
    assert facts["RefundPayment"].body["reason"] == "POT-GOLD is out of stock"

    async def asked() -> bool:
        return await saga(shop.house, order_id) == ("COMPENSATION_FAILED", "ChargePayment")

    await shop.until(asked)
    [question] = (await show_saga(app, order_id, "orders")).questions
    assert question.compensation == "RefundPayment"
    assert question.arguments["order"]["total"] == 999_00
    assert question.failure.startswith("CompensationFailed")
    await shop.switch("keyed")
    # The dead letter first: it keeps its place before all that comes later for this order.
    [redriven] = await redrive(app, Selection(services=("payments",), handler="refund", key=order_id))
    assert redriven.redriven == 1

    async def refunded() -> bool:
        return await shop.effects(order_id) == [("charge", "done"), ("refund", "done")]

    await shop.until(refunded)
    await resolve_saga(app, order_id, Choice.DONE, "ChargePayment", by="ann", reason="the gateway is back")

    async def cancelled() -> bool:
        return (await shop.order(order_id))["status"] == "CANCELLED"

    await shop.until(cancelled)
    assert await refunded()

    async def compensated() -> bool:
        return (await saga(shop.house, order_id))[0] == "COMPENSATED"

    await shop.until(compensated)
    await shop.balanced()


# --- twice -------------------------------------------------------------------------------------------------


async def test_every_message_twice_changes_nothing(shop: Shop) -> None:  # noqa: F811
    await some_orders(shop)
    before = acted(await shop.house.books())
    for name in KEYED:
        for subscription in shop.house.app.topology.subscriptions[name]:
            await reset_subscription(shop.house.app, name, subscription.origin, "start")

    await shop.quiet()
    assert acted(await shop.house.books()) == before
    await shop.balanced()


async def some_orders(shop: Shop) -> None:  # noqa: F811
    """Of every kind, all at rest."""
    for card, items in (
        ("card-ok", {"TEA-EARL": 1}),
        ("card-declined", {"TEA-EARL": 1}),
        ("card-ok", {"POT-GOLD": 1}),
        ("card-lost", {"MUG-BLUE": 1}),
        ("card-ok", {"BALLOON": 1}),
    ):
        await shop.placed_and_settled(items, card)
    called_off = await shop.placed_and_settled()
    await shop.http.post(f"/orders/{called_off['order_id']}/cancel")
    await shop.settled(called_off["order_id"])
    gone = await shop.placed_and_settled()
    await carry(shop.house, picked_up, gone["order_id"])
    await shop.balanced()


# --- the other order of steps -------------------------------------------------------------------------------


async def test_payment_fails_where_stock_was_reserved_first(tmp_path: Path) -> None:
    async with (
        House(tmp_path, f"sqlite:{tmp_path}", style="orchestration-stock-first", settings=PACE) as opened,
        httpx.AsyncClient(base_url=opened.url, timeout=10) as http,
    ):
        shop = Shop(opened, http)
        declined = await shop.placed_and_settled(card="card-declined")
        labelled = await shop.placed_and_settled({"ANVIL": 1})
        sold_out = await shop.placed_and_settled({"POT-GOLD": 1})

        assert [order["status"] for order in (declined, labelled, sold_out)] == ["CANCELLED"] * 3
        assert steps(declined) == {"payment": "failed", "inventory": "undone", "shipping": "pending"}
        conducted(await shop.facts(labelled["order_id"]), "ShipmentFailed", "PaymentRefunded", "InventoryReleased")
        assert await shop.effects(sold_out["order_id"]) == []
        await shop.balanced()
