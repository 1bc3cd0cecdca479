"""The gateway's contract, over HTTP: what is answered when, and that a second click is no second order."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from examples.shop.door import Door
from examples.shop.house import House
from examples.shop.settings import Limits
from skald.errors import Overloaded, StoreUnavailable

pytestmark = pytest.mark.asyncio(loop_scope="module")

ORDER = {"customer": "ada", "items": [{"sku": "TEA-EARL", "quantity": 1}], "card": "card-ok"}
PENDING_AT_MOST = 5


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    folder = tmp_path_factory.mktemp("house")
    settings = {"SHOP_MAX_PENDING": str(PENDING_AT_MOST), "SHOP_MAX_BODY": "4096"}
    async with House(folder, f"sqlite:{folder}", settings=settings) as opened:
        yield opened


@pytest_asyncio.fixture(loop_scope="module")
async def http(house: House) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=house.url, timeout=10) as client:
        yield client


async def settle(http: httpx.AsyncClient, order_id: str) -> list[dict[str, Any]]:
    """All states of an order, as its events tell them, the settled one last."""
    states = []
    async with asyncio.timeout(20), http.stream("GET", f"/orders/{order_id}/events") as events:
        assert events.headers["content-type"].startswith("text/event-stream")
        async for line in events.aiter_lines():
            if line.startswith("data: "):
                states.append(json.loads(line[6:]))
    return states


def is_problem(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert body["status"] == status
    assert body["detail"]
    return body


async def test_an_order_is_accepted_and_seen_at_once(http: httpx.AsyncClient) -> None:
    answer = await http.post("/orders", json=ORDER)

    assert answer.status_code == 202
    order_id = answer.json()["order_id"]
    assert answer.json() == {"order_id": order_id, "status": "PENDING"}
    assert answer.headers["location"] == f"/orders/{order_id}"
    seen = (await http.get(answer.headers["location"])).json()
    assert seen.keys() == {"order_id", "status", "total", "reason", "steps"}
    assert [step.keys() for step in seen["steps"]] == [{"name", "state", "time"}] * 3
    states = await settle(http, order_id)
    assert states[-1]["status"] == "CONFIRMED"
    assert {state["status"] for state in states[:-1]} <= {"PENDING"}


async def test_the_same_key_places_one_order(http: httpx.AsyncClient) -> None:
    body = {**ORDER, "customer": "twice"}
    answers = await asyncio.gather(
        *(http.post("/orders", json=body, headers={"Idempotency-Key": "click"}) for _ in range(8))
    )
    later = await http.post("/orders", json=body, headers={"Idempotency-Key": "click"})

    assert {answer.status_code for answer in (*answers, later)} == {202}
    assert len({answer.text for answer in (*answers, later)}) == 1
    assert len((await http.get("/orders?customer=twice")).json()["orders"]) == 1
    other = await http.post("/orders", json={**body, "card": "card-slow"}, headers={"Idempotency-Key": "click"})
    is_problem(other, 422)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"items": []}, "items"),
        ({"items": [{"sku": "TEA-EARL", "quantity": 0}]}, "items[0].quantity"),
        ({"items": [{"sku": "TEA-EARL", "quantity": 1.5}]}, "items[0].quantity"),
        ({"items": [{"sku": "TEA-EARL", "quantity": 10**30}]}, "items[0].quantity"),
        ({"items": [{"sku": "NO-SUCH", "quantity": 1}]}, "items"),
        ({"customer": ""}, "customer"),
        ({"customer": "a\u0000b"}, "customer"),
        ({"card": None}, "card"),
        ({"cart": "?"}, "$"),
    ],
)
async def test_what_does_not_fit_is_named(http: httpx.AsyncClient, change: dict[str, Any], field: str) -> None:
    problem = is_problem(await http.post("/orders", json={**ORDER, **change}), 422)
    assert [error["field"] for error in problem["errors"]] == [field]


async def test_refusals(http: httpx.AsyncClient) -> None:
    is_problem(await http.post("/orders", content=b"{"), 400)
    is_problem(await http.post("/orders", content=b'{"customer": "\xff"}'), 400)
    is_problem(await http.get("/orders?customer=ada&limit=00000005099999999999999"), 400)
    unsupported = await http.delete("/orders/x")
    is_problem(unsupported, 405)
    assert "GET" in unsupported.headers["allow"]
    is_problem(await http.post("/orders", content=b'{"customer": "\\ud800"}'), 400)
    is_problem(await http.post("/orders", content=b"x" * 5_000), 413)
    is_problem(await http.post("/orders", json=ORDER, headers={"Idempotency-Key": "x" * 300}), 400)
    is_problem(await http.get("/orders/none"), 404)
    is_problem(await http.get("/orders/none/events"), 404)
    is_problem(await http.post("/orders/none/cancel"), 404)
    is_problem(await http.get("/nothing"), 404)
    is_problem(await http.delete("/orders"), 405)
    is_problem(await http.get("/orders"), 400)
    is_problem(await http.get("/orders?customer=ada&limit=101"), 400)
    is_problem(await http.get("/orders?customer=ada&cursor=!"), 400)


async def test_cancelling(house: House, http: httpx.AsyncClient) -> None:
    order_id = (await http.post("/orders", json=ORDER)).json()["order_id"]
    await settle(http, order_id)
    answers = await asyncio.gather(*(http.post(f"/orders/{order_id}/cancel") for _ in range(3)))

    assert answers[0].headers["location"] == f"/orders/{order_id}"
    assert {answer.status_code for answer in answers} <= {202, 409}
    assert (await settle(http, order_id))[-1]["status"] == "CANCELLED"
    problem = is_problem(await http.post(f"/orders/{order_id}/cancel"), 409)
    assert problem["detail"] == "the order is already cancelled"
    cancellations = [fact for fact in (await house.books()).facts("orders", "CancelOrder") if fact.key == order_id]
    assert len(cancellations) == 1


async def test_a_list_in_pages(http: httpx.AsyncClient) -> None:
    placed = [
        (await http.post("/orders", json={**ORDER, "customer": "lister"})).json()["order_id"]
        for _ in range(PENDING_AT_MOST)
    ]
    found: list[str] = []
    cursor = ""
    while True:
        page = (await http.get(f"/orders?customer=lister&limit=2{cursor}")).json()
        found += [order["order_id"] for order in page["orders"]]
        if page["next"] is None:
            break
        assert placed[0] not in page["next"]
        cursor = f"&cursor={page['next']}"

    assert found == placed[::-1]


async def test_one_customer_cannot_fill_the_shop(house: House, http: httpx.AsyncClient) -> None:
    body = {**ORDER, "customer": "greedy"}
    async with house.supervisor.down("payments"):
        answers = [await http.post("/orders", json=body) for _ in range(PENDING_AT_MOST + 1)]
        other = await http.post("/orders", json=ORDER)

    assert [answer.status_code for answer in answers] == [202] * PENDING_AT_MOST + [429]
    is_problem(answers[-1], 429)
    assert int(answers[-1].headers["retry-after"]) >= 1
    assert other.status_code == 202


async def test_what_is_refused_for_now_is_not_kept_under_its_key(house: House, http: httpx.AsyncClient) -> None:
    body, headers = {**ORDER, "customer": "patient"}, {"Idempotency-Key": "patient"}
    async with house.supervisor.down("payments"):
        placed = [(await http.post("/orders", json=body)).json()["order_id"] for _ in range(PENDING_AT_MOST)]
        is_problem(await http.post("/orders", json=body, headers=headers), 429)
    for order_id in placed:
        await settle(http, order_id)

    assert (await http.post("/orders", json=body, headers=headers)).status_code == 202


async def test_health_readiness_and_contract(http: httpx.AsyncClient) -> None:
    assert (await http.get("/health")).status_code == 200
    assert (await http.get("/ready")).status_code == 200
    document = (await http.get("/openapi.json")).json()
    assert document["openapi"].startswith("3.1")
    wanted = {"/orders", "/orders/{order_id}", "/orders/{order_id}/cancel", "/orders/{order_id}/events"}
    assert wanted | {"/health", "/ready"} <= document["paths"].keys()
    references = [part.partition('"')[0] for part in json.dumps(document).split('"#/components/schemas/')[1:]]
    assert set(references) <= document["components"]["schemas"].keys()


async def test_the_page_needs_nothing_from_elsewhere(http: httpx.AsyncClient) -> None:
    page = await http.get("/")

    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "http://" not in page.text
    assert "https://" not in page.text
    for card in ("card-declined", "card-slow", "card-silent", "card-lost"):
        assert card in page.text


# --- the door by itself -------------------------------------------------------------------------------------


async def knock(door: Door, **more: Any) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(door), base_url="http://shop") as client:
        return await client.post("/orders", content=b"{}", **more)


async def test_a_body_that_does_not_come_is_given_up_and_its_place_is_free_again() -> None:
    async def says_ok(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse("ok")(scope, receive, send)

    async def slowly() -> Any:
        events: list[Any] = []
        chunks = [{"type": "http.request", "body": b"{", "more_body": True}]

        async def receive() -> Any:
            return chunks.pop() if chunks else await asyncio.Event().wait()

        async def send(message: Any) -> None:
            events.append(message)

        scope = {"type": "http", "method": "POST", "path": "/orders", "headers": []}
        await door(scope, receive, send)
        return events[0]["status"]

    door = Door(says_ok, Limits(max_in_flight=1, body_within=0.01))
    async with asyncio.timeout(60):
        assert await slowly() == 408
    async with httpx.AsyncClient(transport=httpx.ASGITransport(door), base_url="http://door") as http:
        assert (await http.get("/orders")).status_code == 200


async def test_too_many_at_once_get_503() -> None:
    inside, leave = asyncio.Event(), asyncio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        inside.set()
        await leave.wait()
        await PlainTextResponse("done")(scope, receive, send)

    door = Door(slow, Limits(max_in_flight=1))
    first = asyncio.create_task(knock(door))
    await inside.wait()
    refused = await knock(door)
    leave.set()

    is_problem(refused, 503)
    assert int(refused.headers["retry-after"]) >= 1
    assert (await first).status_code == 200
    assert (await knock(door)).status_code == 200


@pytest.mark.parametrize("error", [Overloaded("the store", 3.0), StoreUnavailable("the disk is full")])
async def test_what_the_library_refuses_is_503(error: Exception) -> None:
    async def failing(scope: Scope, receive: Receive, send: Send) -> None:
        raise error

    answer = await knock(Door(failing, Limits()))

    is_problem(answer, 503)
    assert answer.headers["retry-after"] == ("3" if isinstance(error, Overloaded) else "1")
