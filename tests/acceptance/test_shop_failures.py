"""The failure table of the shop, row by row: processes on a real store, the failure injected, stored data asserted.

Whatever a test broke, the audit at its end must balance: money, stock, labels, read models.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
import msgspec
import psycopg
import pytest
import pytest_asyncio

from examples.shop import messages
from examples.shop.audit import Audit
from examples.shop.books import Fact, ledger
from examples.shop.house import House
from examples.shop.parcels import delivered, picked_up
from examples.shop.payments import refund
from examples.shop.providers.clients import Answer, CardGateway, Carrier
from skald import Attempt, Done, Service
from skald.message import message_type
from skald.operations import Selection, list_parked, redrive
from skald.operations.sagas import resolve_saga
from skald.sagas.question import Choice
from tests.simulation.stage import caught_up, deliveries, seed

pytestmark = pytest.mark.asyncio(loop_scope="module")

PACE = {
    "SHOP_PATIENCE": "0.4",
    "SHOP_CHARGE_DELAYS": "0.1,0.8",
    "SHOP_LABEL_DELAYS": "0.1,0.1,0.2",
    "SHOP_UNDO_DELAYS": "0.1,0.2,0.5,1,2",
    "SHOP_NOTIFY_DELAYS": "0.05,0.1",
}
WITHIN = 30.0
TEA = {"TEA-EARL": 2}
TEA_COSTS = 2 * 5_90


@pytest.fixture(
    scope="module",
    params=[
        "choreography-sqlite",
        pytest.param("choreography-postgres", marks=pytest.mark.postgres),
        "orchestration-sqlite",
        pytest.param("orchestration-postgres", marks=[pytest.mark.postgres, pytest.mark.sweep]),
        "hybrid-sqlite",
        pytest.param("hybrid-postgres", marks=[pytest.mark.postgres, pytest.mark.sweep]),
    ],
)
def kind(request: pytest.FixtureRequest) -> str:
    """Style and store; what is peculiar to a style has tests of its own, on both stores."""
    return str(request.param)


@pytest.fixture(scope="module")
def style(kind: str) -> str:
    return kind.partition("-")[0]


@pytest.fixture(scope="module")
def store(request: pytest.FixtureRequest, kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if kind.endswith("sqlite"):
        yield f"sqlite:{tmp_path_factory.mktemp('shop')}"
        return
    server = request.getfixturevalue("postgres_server")
    name = f"shop_{uuid4().hex[:12]}"
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
        yield urlsplit(server)._replace(path=f"/{name}").geturl()
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house(store: str, style: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    async with House(tmp_path_factory.mktemp("house"), store, style=style, settings=PACE) as opened:
        yield opened


@pytest_asyncio.fixture(loop_scope="module")
async def shop(house: House) -> AsyncIterator[Shop]:
    async with httpx.AsyncClient(base_url=house.url, timeout=10) as http:
        shop = Shop(house, http)
        yield shop
        await shop.switch("keyed")
        await shop.switch("keyless")


class Shop:
    """A customer, and somebody who breaks things."""

    def __init__(self, house: House, http: httpx.AsyncClient) -> None:
        self.house, self.http = house, http

    async def place(self, items: dict[str, int] = TEA, card: str = "card-ok") -> str:
        lines = [{"sku": sku, "quantity": quantity} for sku, quantity in items.items()]
        body = {"customer": "ada@example.com", "items": lines, "card": card}
        headers = {"Idempotency-Key": uuid4().hex}

        async def answered() -> httpx.Response | None:
            with suppress(httpx.TransportError):
                return await self.http.post("/orders", json=body, headers=headers)
            return None

        answer = await self.until(answered)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["order_id"])

    async def order(self, order_id: str) -> dict[str, Any]:
        answer = await self.http.get(f"/orders/{order_id}")
        return answer.json()  # type: ignore[no-any-return]

    async def settled(self, order_id: str) -> dict[str, Any]:
        """The order once it is settled, as its events tell it; a stream that breaks is opened again."""

        async def told() -> dict[str, Any] | None:
            with suppress(httpx.TransportError):
                async with self.http.stream("GET", f"/orders/{order_id}/events", timeout=WITHIN) as events:
                    event = ""
                    async for line in events.aiter_lines():
                        event = line[7:] if line.startswith("event: ") else event
                        if line.startswith("data: ") and event == "settled":
                            return json.loads(line[6:])  # type: ignore[no-any-return]
            return None

        return await self.until(told)  # type: ignore[no-any-return]

    async def placed_and_settled(self, items: dict[str, int] = TEA, card: str = "card-ok") -> dict[str, Any]:
        return await self.settled(await self.place(items, card))

    async def switch(self, provider: str, **modes: list[str]) -> None:
        answer = await self.http.post(f"{self.house.urls[provider]}/admin", json=modes)
        assert answer.status_code == 200

    async def until(self, holds: Callable[[], Awaitable[Any]]) -> Any:
        """What ``holds`` returns, as soon as that is true."""
        async with asyncio.timeout(WITHIN):
            while not (found := await holds()):
                await self.house.supervisor.tick()
        return found

    async def facts(self, order_id: str) -> dict[str, Fact]:
        """The first of each type."""
        books = await self.house.books()
        found = [f for log in books.logs.values() for f in log if f.body.get("order_id") == order_id]
        return {fact.type: fact for fact in reversed(found)}

    async def effects(self, order_id: str) -> list[tuple[str, str]]:
        entries = ledger(self.house.ledgers / "keyed.jsonl")
        return [(entry["kind"], entry["status"]) for entry in entries if entry["reference"] == order_id]

    async def told(self, order_id: str) -> list[str]:
        entries = ledger(self.house.ledgers / "keyless.jsonl")
        return [entry["text"] for entry in entries if entry["order"] == order_id]

    async def attention(self, order_id: str) -> Fact:
        logs = (await self.house.books()).logs.values()
        [found] = [fact for log in logs for fact in log if fact.type == "CompensationFailed" and fact.key == order_id]
        return found

    async def tasks(self, order_id: str) -> list[str]:
        rows = (await self.house.books()).tables["tasks"]
        return [row["status"] for row in rows if row["order_id"] == order_id]

    async def quiet(self) -> None:
        """Everybody has read everything, and nothing waits."""
        app = self.house.app
        reads = [(name, sub.origin) for name, subs in app.topology.subscriptions.items() for sub in subs]

        async def at_rest() -> bool:
            async with app.connect():
                heard = [await caught_up(app.service(name), app.service(origin)) for name, origin in reads]
                left = [row["state"] for name in app.services for row in await deliveries(app.service(name))]
                return all(heard) and set(left) <= {"parked"}

        await self.until(at_rest)

    async def cancel(self, order_id: str) -> None:
        answer = await self.http.post(f"/orders/{order_id}/cancel", json={"reason": "second thoughts"})
        assert answer.status_code == 202, answer.text

    async def balanced(self) -> Audit:
        """Waits until the consumers have caught up and every rule of the audit holds."""
        found = await self.house.audit()
        with suppress(TimeoutError):
            async with asyncio.timeout(WITHIN):
                while not found.balanced:
                    await self.house.supervisor.tick()
                    found = await self.house.audit()
        assert [finding for finding in found.findings if not finding.holds] == []
        return found


STUCK = {
    "payments": {"payment": "pending", "inventory": "pending", "shipping": "pending"},
    "inventory": {"payment": "done", "inventory": "pending", "shipping": "pending"},
    "shipping": {"payment": "done", "inventory": "done", "shipping": "pending"},
}
"""How far an order comes while a service is away."""


def message_of(house: House, fact: Fact) -> Any:
    [cls] = [cls for cls in house.app.topology.topics if message_type(cls).name == fact.type]
    return msgspec.convert(fact.body, cls)


def steps(order: dict[str, Any]) -> dict[str, str]:
    return {step["name"]: step["state"] for step in order["steps"]}


COMMANDS = {
    "PaymentProcessed": "ChargePayment",
    "PaymentFailed": "ChargePayment",
    "InventoryReserved": "ReserveInventory",
    "ShipmentScheduled": "ScheduleShipment",
    "ShipmentFailed": "ScheduleShipment",
    "ShipmentCancelled": "CancelShipment",
    "InventoryReleased": "ReleaseInventory",
    "PaymentRefunded": "RefundPayment",
}
"""What a conductor says for it to happen."""


def follows(style: str, facts: dict[str, Fact], *types: str) -> None:
    """Each of these messages follows from the one before it, and all belong to one correlation."""
    if style == "orchestration":
        conducted(facts, *types)
        return
    by_sagas = BY_SAGAS if style == "hybrid" else ()
    for earlier, later in pairwise(types):
        # What a saga tells has its run as the cause.
        follows = facts[later].cause == facts[earlier].id
        assert follows is (later not in by_sagas), f"{later} comes from {facts[later].cause}, {earlier} before it"
    assert len({facts[type].correlation for type in types}) == 1


BY_SAGAS = ("PaymentProcessed", "PaymentFailed", "InventoryReserved", "ShipmentScheduled")
"""What the saga of a domain ends with."""


def conducted(facts: dict[str, Fact], *types: str) -> None:
    """What the others have done answers a command of the saga, and the saga has said all that in this order."""
    said = [facts[COMMANDS.get(type, type)] for type in types]
    assert [fact.position for fact in said] == sorted(fact.position for fact in said)
    for type in types:
        if type in COMMANDS:
            assert facts[type].cause == facts[COMMANDS[type]].id, f"{type} does not answer {COMMANDS[type]}"
    own = {facts[type].correlation for type in types if type != "CancelOrder"}
    assert own == {facts["OrderPlaced"].correlation}


async def test_an_order_goes_through_and_everybody_knows(shop: Shop) -> None:
    order = await shop.placed_and_settled()

    assert (order["status"], order["total"], order["reason"]) == ("CONFIRMED", TEA_COSTS, None)
    assert steps(order) == {"payment": "done", "inventory": "done", "shipping": "done"}
    assert await shop.effects(order["order_id"]) == [("charge", "done"), ("label", "done")]
    facts = await shop.facts(order["order_id"])
    chain = ("OrderPlaced", "PaymentProcessed", "InventoryReserved", "ShipmentScheduled", "OrderConfirmed")
    follows(shop.house.style, facts, *chain)
    await shop.balanced()


async def test_out_of_stock_after_payment(shop: Shop) -> None:
    order = await shop.placed_and_settled({"POT-GOLD": 1, "TEA-EARL": 1})

    assert (order["status"], order["reason"]) == ("CANCELLED", "POT-GOLD is out of stock")
    assert steps(order) == {"payment": "undone", "inventory": "failed", "shipping": "pending"}
    assert await shop.effects(order["order_id"]) == [("charge", "done"), ("refund", "done")]

    async def with_the_refund() -> bool:
        texts = await shop.told(order["order_id"])
        return any("€1004.90 are on the way back" in text for text in texts)

    await shop.until(with_the_refund)
    await shop.balanced()


async def test_card_declined(shop: Shop) -> None:
    order = await shop.placed_and_settled(card="card-declined")

    assert (order["status"], order["reason"]) == ("CANCELLED", "card declined: insufficient funds")
    assert steps(order) == {"payment": "failed", "inventory": "pending", "shipping": "pending"}
    assert await shop.effects(order["order_id"]) == [("charge", "declined")]
    assert "InventoryReserved" not in await shop.facts(order["order_id"])
    await shop.balanced()


async def test_the_card_gateway_is_down(shop: Shop) -> None:
    await shop.switch("keyed", down=["charges"])
    order = await shop.placed_and_settled()

    assert order["status"] == "CANCELLED"
    assert "does not answer" in order["reason"]
    assert retries(shop.house, "payments", order["order_id"], await shop.facts(order["order_id"])) == [1, 2]
    await shop.balanced()


async def test_the_card_gateway_comes_back_meanwhile(shop: Shop) -> None:
    await shop.switch("keyed", down=["charges"])
    order_id = await shop.place()

    async def tried() -> bool:
        return bool(retries(shop.house, "payments", order_id, await shop.facts(order_id)))

    await shop.until(tried)
    await shop.switch("keyed")

    assert (await shop.settled(order_id))["status"] == "CONFIRMED"
    assert await shop.effects(order_id) == [("charge", "done"), ("label", "done")]
    await shop.balanced()


async def test_a_charge_without_an_answer_is_asked_for_again_with_the_same_key(shop: Shop) -> None:
    order = await shop.placed_and_settled(card="card-slow")

    assert order["status"] == "CONFIRMED"
    assert await shop.effects(order["order_id"]) == [("charge", "done"), ("label", "done")]
    await shop.balanced()


async def test_a_charge_that_is_never_answered_is_looked_up_and_given_back(shop: Shop) -> None:
    order = await shop.placed_and_settled(card="card-lost")

    assert order["status"] == "CANCELLED"
    assert await shop.effects(order["order_id"]) == [("charge", "done"), ("refund", "done")]
    facts = await shop.facts(order["order_id"])
    follows(shop.house.style, facts, "OrderPlaced", "PaymentFailed", "PaymentRefunded", "OrderCancelled")
    assert facts["OrderCancelled"].body["refunded"] == TEA_COSTS
    await shop.balanced()


async def test_a_charge_that_arrives_after_it_was_given_up_is_refused(shop: Shop) -> None:
    await shop.switch("keyed", late=["charges"])
    order = await shop.placed_and_settled()

    assert order["status"] == "CANCELLED"
    assert await shop.effects(order["order_id"]) == [("refund", "nothing")]
    await shop.switch("keyed")

    async def refused() -> bool:
        return await shop.effects(order["order_id"]) == [("refund", "nothing"), ("charge", "refused")]

    await shop.until(refused)
    await shop.balanced()


async def test_a_cancellation_overtakes_a_charge_that_is_on_its_way(shop: Shop) -> None:
    """Nothing was charged when the cancellation came to payments, and so the order is told; then the charge is made."""
    await shop.switch("keyed", late=["charges"])
    order_id = await shop.place()
    await shop.cancel(order_id)

    async def asked() -> bool:
        return bool((await shop.facts(order_id)).keys() & {"InventoryReleased", "PaymentFailed"})

    await shop.until(asked)
    await shop.switch("keyed")
    assert (await shop.settled(order_id))["status"] == "CANCELLED"
    await shop.balanced()


async def test_what_was_charged_is_given_back_whoever_asks_for_it() -> None:
    """Also the PaymentFailed with which the order was told of its end, before the charge turned out to be made."""

    class Gateway(CardGateway):
        async def refund(self, order_id: str, reason: str, *, key: str) -> Answer:
            return Answer("re_1", "done", reason, TEA_COSTS, "ch_1")

    gateway = Gateway("http://nowhere", 1)
    order = messages.Order("ada", "card-ok", (), TEA_COSTS)
    charged = messages.PaymentProcessed("o-1", order, "ch_1")
    told = messages.PaymentFailed("o-1", "second thoughts")
    attempt = Attempt(1, "payments:refund:o-1")
    back = await refund(told, gateway, attempt, Done(charged, "id", (charged,), "key"))
    assert back == messages.PaymentRefunded("o-1", "second thoughts", "ch_1", "re_1", TEA_COSTS)
    assert await refund(told, gateway, attempt, None) is None
    await gateway.close()


async def test_the_refund_keeps_failing_until_somebody_sees_to_it(shop: Shop) -> None:
    await shop.switch("keyed", down=["refunds"])
    order = await shop.placed_and_settled({"POT-GOLD": 1})
    order_id = order["order_id"]

    assert order["status"] == "NEEDS_ATTENTION"
    failed = (await shop.attention(order_id)).body
    assert (failed["service"], failed["handler"], failed["error"]) == ("payments", "refund", "Unavailable")
    assert order["reason"] == f"refund of {failed['compensates']} has failed in payments"
    assert await shop.effects(order_id) == [("charge", "done")]
    [letter] = (await list_parked(shop.house.app, Selection(key=order_id))).parked
    asked_by = "RefundPayment" if shop.house.style == "orchestration" else "InventoryRejected"
    assert (letter.service, letter.handler, letter.type) == ("payments", "refund", asked_by)
    assert letter.id == failed["message_id"]
    assert "503" in str(letter.error)
    assert await shop.tasks(order_id) == ["OPEN"]
    assert order_id in (await shop.balanced()).attention

    await shop.switch("keyed")
    await redrive(shop.house.app, Selection(ids=(letter.id,)))
    if shop.house.style == "orchestration":
        # The conductor was told that it has failed, and waits for a person, too.
        seen_to = {"by": "ann", "reason": "the gateway is back"}
        await resolve_saga(shop.house.app, order_id, Choice.RETRY, "ChargePayment", **seen_to)

    async def resumed() -> bool:
        return bool((await shop.order(order_id))["status"] == "CANCELLED")

    await shop.until(resumed)
    assert await shop.effects(order_id) == [("charge", "done"), ("refund", "done")]
    assert order_id not in (await shop.balanced()).attention
    assert await shop.tasks(order_id) == ["DONE"]


@pytest.mark.parametrize(
    ("article", "at_the_carrier"),
    [("ANVIL", [("withdrawal", "nothing")]), ("BALLOON", [("label", "done"), ("withdrawal", "done")])],
)
async def test_the_shipping_label_times_out(shop: Shop, article: str, at_the_carrier: list[tuple[str, str]]) -> None:
    order = await shop.placed_and_settled({article: 1})

    assert order["status"] == "CANCELLED"
    # A conductor has it cancelled like all else.
    label = "undone" if shop.house.style == "orchestration" else "failed"
    assert steps(order) == {"payment": "undone", "inventory": "undone", "shipping": label}
    facts = await shop.facts(order["order_id"])
    follows(shop.house.style, facts, "ShipmentFailed", "InventoryReleased", "PaymentRefunded", "OrderCancelled")
    assert retries(shop.house, "shipping", order["order_id"], facts) == [1, 2, 3]
    effects = await shop.effects(order["order_id"])
    assert [effect for effect in effects if effect[0] in ("label", "withdrawal")] == at_the_carrier
    await shop.balanced()


async def test_the_customer_cancels_before_pick_up(shop: Shop) -> None:
    order = await shop.placed_and_settled()
    answer = await shop.http.post(f"/orders/{order['order_id']}/cancel", json={"reason": "too much tea"})

    assert answer.status_code == 202
    cancelled = await shop.settled(order["order_id"])
    assert (cancelled["status"], cancelled["reason"]) == ("CANCELLED", "too much tea")
    assert steps(cancelled) == {"payment": "undone", "inventory": "undone", "shipping": "undone"}
    chain: tuple[str, ...] = (
        "CancelOrder",
        "ShipmentCancelled",
        "InventoryReleased",
        "PaymentRefunded",
        "OrderCancelled",
    )
    facts = await shop.facts(order["order_id"])
    if shop.house.style != "orchestration":
        chain = ("CancelOrder", "CancelShipment", *chain[1:])
    follows(shop.house.style, facts, *chain)
    kinds = [kind for kind, _ in await shop.effects(order["order_id"])]
    assert kinds == ["charge", "label", "withdrawal", "refund"]

    async def corrected() -> bool:
        return any("We said that your order was confirmed" in text for text in await shop.told(order["order_id"]))

    await shop.until(corrected)
    await shop.balanced()


@pytest.mark.parametrize("away", ["payments", "inventory", "shipping", "orders"])
async def test_a_cancellation_meets_the_order_at_each_point_of_its_way(shop: Shop, away: str) -> None:
    """Who is away finds both when back: what it is to do, and that nobody wants it any more, in no particular order."""
    async with shop.house.supervisor.down(away):
        order_ids = [await shop.place() for _ in range(6)]

        async def stuck() -> bool:
            at = [steps(await shop.order(order_id)) for order_id in order_ids]
            return away == "orders" or all(each == STUCK[away] for each in at)

        await shop.until(stuck)
        for order_id in order_ids:
            await shop.cancel(order_id)

    for order_id in order_ids:
        assert (await shop.settled(order_id))["status"] == "CANCELLED"
    await shop.balanced()


async def test_cancellations_race_with_the_steps(shop: Shop) -> None:
    draw, attention = random.Random(seed()), (await shop.balanced()).attention

    async def one(card: str, items: dict[str, int], looks: int) -> str:
        order_id = await shop.place(items, card)
        for _ in range(looks):
            await shop.order(order_id)
        answer = await shop.http.post(f"/orders/{order_id}/cancel")
        order = await shop.settled(order_id)
        assert answer.status_code == 202 or order["status"] == "CANCELLED", answer.text
        assert order["status"] == "CANCELLED", order
        return order_id

    kinds = [("card-ok", TEA)] * 6 + [("card-slow", TEA), ("card-lost", TEA), ("card-declined", TEA)]
    kinds += [("card-ok", {"ANVIL": 1}), ("card-ok", {"BALLOON": 1}), ("card-ok", {"POT-GOLD": 1})]
    order_ids = await asyncio.gather(*(one(*draw.choice(kinds), draw.randrange(40)) for _ in range(30)))
    found = await shop.balanced()
    assert found.attention == attention
    for order_id in order_ids:
        effects = Counter(await shop.effects(order_id))
        assert effects["charge", "done"] == effects["refund", "done"] <= 1, effects
        assert effects["label", "done"] == effects["withdrawal", "done"] <= 1, effects


async def test_the_same_facts_once_more_as_other_messages_change_nothing(shop: Shop) -> None:
    """Every event about three orders, told again by the service that told it first."""
    kept, failed, cancelled = [await shop.place(items) for items in (TEA, {"ANVIL": 1}, TEA)]
    for order_id in (kept, failed, cancelled):
        await shop.settled(order_id)
    await shop.cancel(cancelled)
    await shop.settled(cancelled)
    await shop.balanced()
    await shop.quiet()
    before = await shop.house.books()
    told = 0
    async with shop.house.app.connect():
        for name, log in before.logs.items():
            again = [fact for fact in log if fact.body.get("order_id") in (kept, failed, cancelled)]
            told += len(again)
            await shop.house.app.service(name).publish(*(message_of(shop.house, fact) for fact in again))
    await shop.quiet()
    after = await shop.house.books()

    assert told > 20
    assert sum(map(len, after.logs.values())) == sum(map(len, before.logs.values())) + told
    assert after.tables == before.tables
    assert (after.keyed, after.keyless) == (before.keyed, before.keyless)
    await shop.balanced()


async def test_after_the_hand_over_nothing_is_cancelled(shop: Shop) -> None:
    order = await shop.placed_and_settled()
    await carry(shop.house, picked_up, order["order_id"])

    async def refused() -> httpx.Response | None:
        answer = await shop.http.post(f"/orders/{order['order_id']}/cancel")
        return answer if answer.status_code == 409 else None

    answer = await shop.until(refused)
    assert answer.json()["detail"] == "the parcel is already with the carrier"
    assert answer.headers["content-type"] == "application/problem+json"
    await shop.balanced()


async def test_a_cancellation_that_comes_too_late_is_refused_by_the_carrier(shop: Shop) -> None:
    """The parcel was picked up, and nobody in the shop has heard of it when the customer cancels."""
    order = await shop.placed_and_settled()
    carrier = Carrier(shop.house.urls["keyed"], 2)
    await carrier.pick_up(order["order_id"], key="unheard-of")
    await carrier.close()
    answer = await shop.http.post(f"/orders/{order['order_id']}/cancel")

    assert answer.status_code == 202
    kept = await shop.settled(order["order_id"])
    assert kept["status"] == "CONFIRMED"
    assert kept["reason"] == "not cancelled: the parcel is already with the carrier"
    assert ("refund", "done") not in await shop.effects(order["order_id"])
    await shop.balanced()


async def test_a_delivered_order_is_completed(shop: Shop) -> None:
    order = await shop.placed_and_settled()
    await carry(shop.house, delivered, order["order_id"])

    async def completed() -> bool:
        found = await shop.order(order["order_id"])
        return bool(found["status"] == "COMPLETED")

    await shop.until(completed)
    await shop.balanced()


async def test_the_email_provider_is_down(shop: Shop) -> None:
    await shop.switch("keyless", down=["email"])
    order = await shop.placed_and_settled()

    assert order["status"] == "CONFIRMED"
    notifications = shop.house.app.service("notifications")

    async def parked() -> list[dict[str, Any]]:
        async with shop.house.app.connect("notifications"):
            return await notifications.fetch(
                "SELECT handler, error FROM skald_deliveries WHERE aggregateid = :id AND state = 'parked'",
                id=order["order_id"],
            )

    rows = await shop.until(parked)
    assert {row["handler"] for row in rows} == {"email"}
    assert "Unavailable" in rows[0]["error"]
    await shop.balanced()


@pytest.mark.parametrize("service", ["payments", "inventory", "shipping", "orders"])
async def test_a_service_is_down_for_long(shop: Shop, service: str) -> None:
    async with shop.house.supervisor.down(service):
        order_ids = [await shop.place() for _ in range(20)]
        assert {(await shop.order(order_id))["status"] for order_id in order_ids} == {"PENDING"}

    for order_id in order_ids:
        assert (await shop.settled(order_id))["status"] == "CONFIRMED"
    await shop.balanced()


@pytest.mark.parametrize("name", ["orders", "payments", "inventory", "shipping", "gateway", "keyed"])
async def test_a_process_is_killed_in_the_middle(shop: Shop, name: str) -> None:
    order_ids = []
    for number in range(15):
        order_ids.append(await shop.place())
        if number in (4, 9):
            shop.house.supervisor.kill(name)

    assert {(await shop.settled(order_id))["status"] for order_id in order_ids} == {"CONFIRMED"}
    await shop.balanced()


def retries(house: House, service: str, order_id: str, facts: dict[str, Fact]) -> list[int]:
    """The attempts after which the service's log says that it will try again, for one order."""
    correlations = {fact.correlation for fact in facts.values()}
    lines = (house.folder / "log" / f"{service}.log").read_text().splitlines()
    found = [json.loads(line[line.index("{") :]) for line in lines if re.search(r'"type":"(Step)?Retried"', line)]
    return [one["attempts"] for one in found if one["id"] == order_id or one.get("correlation_id") in correlations]


async def carry(house: House, how: Callable[[Carrier, str, Service], Awaitable[bool]], order_id: str) -> None:
    carrier = Carrier(house.urls["keyed"], 2)
    async with house.app.connect("shipping"):
        assert await how(carrier, order_id, house.app.service("shipping"))
    await carrier.close()


# --- the other order of steps -------------------------------------------------------------------------------


@pytest_asyncio.fixture(loop_scope="module")
async def stock_first(tmp_path: Path) -> AsyncIterator[Shop]:
    async with (
        House(tmp_path, f"sqlite:{tmp_path}", style="stock-first", settings=PACE) as opened,
        httpx.AsyncClient(base_url=opened.url, timeout=10) as http,
    ):
        yield Shop(opened, http)


async def test_payment_fails_where_stock_was_reserved_first(stock_first: Shop) -> None:
    declined = await stock_first.placed_and_settled(card="card-declined")
    lost = await stock_first.placed_and_settled(card="card-lost")
    sold_out = await stock_first.placed_and_settled({"POT-GOLD": 1})
    good = await stock_first.placed_and_settled()
    labelled = await stock_first.placed_and_settled({"ANVIL": 1})

    assert [o["status"] for o in (declined, lost, sold_out, good, labelled)] == [
        "CANCELLED",
        "CANCELLED",
        "CANCELLED",
        "CONFIRMED",
        "CANCELLED",
    ]
    await stock_first.balanced()
    facts = await stock_first.facts(declined["order_id"])
    follows("choreography", facts, "OrderPlaced", "InventoryReserved", "PaymentFailed", "InventoryReleased")
    assert steps(await stock_first.order(declined["order_id"])) == {
        "payment": "failed",
        "inventory": "undone",
        "shipping": "pending",
    }
    assert await stock_first.effects(sold_out["order_id"]) == []
