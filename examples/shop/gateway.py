"""The gateway: the HTTP face of the orders service, a process on its database, and the customer's page.

An order is answered with 202 when it is durable: its row, OrderPlaced and the record of the
``Idempotency-Key`` are one commit. What becomes of it is told by ``GET /orders/{id}`` and, live, by ``GET
/orders/{id}/events``.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import json
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from examples.shop import openapi
from examples.shop.app import app as shop
from examples.shop.door import HANDLERS, Door, Problem
from examples.shop.live import Watch
from examples.shop.orders import UnknownArticle, ask_to_cancel, place
from examples.shop.settings import Limits, load
from skald import App, Service
from skald.clock import to_rfc3339
from skald.http import IdempotencyMiddleware, request_transaction

PAGE = Path(__file__).with_name("page.html")
STEPS = ("payment", "inventory", "shipping")
PING = 15.0
NO_STORE = {"Cache-Control": "no-store"}
LAST = "z"
"""After every order id, in any collation."""
PAGE_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "default-src 'none'; connect-src 'self'; script-src 'unsafe-inline'; "
    "style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
}

T = TypeVar("T")
PRINTABLE = r"^[^\x00-\x1f\x7f]+$"
Name = Annotated[str, msgspec.Meta(max_length=200, pattern=PRINTABLE)]
Token = Annotated[str, msgspec.Meta(max_length=40, pattern=PRINTABLE)]


class NewItem(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    sku: Token
    quantity: Annotated[int, msgspec.Meta(ge=1, le=99)]


class NewOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    customer: Name
    items: Annotated[tuple[NewItem, ...], msgspec.Meta(min_length=1, max_length=50)]
    card: Token


class Cancellation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    reason: Name = "cancelled by the customer"


class Gateway:
    def __init__(self, service: Service, limits: Limits) -> None:
        self._orders, self._limits = service, limits
        self._watch = Watch(service, limits.look_every)
        self._streams = 0

    def routes(self) -> list[Route]:
        return [
            Route("/", self.page),
            Route("/orders", self.place, methods=["POST"]),
            Route("/orders", self.list, methods=["GET"]),
            Route("/orders/{order_id}", self.show),
            Route("/orders/{order_id}/cancel", self.cancel, methods=["POST"]),
            Route("/orders/{order_id}/events", self.events),
            Route("/prices", self.prices),
            Route("/health", self.health),
            Route("/ready", self.ready),
            Route("/openapi.json", self.openapi),
        ]

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self._watch.run())
        try:
            yield
        finally:
            task.cancel()

    # --- orders ---------------------------------------------------------------------------------------------

    async def place(self, request: Request) -> Response:
        order = decode(await request.body(), NewOrder)
        quantities = {item.sku: item.quantity for item in order.items}
        if len(quantities) < len(order.items):
            raise Problem(422, "an article stands in the list twice; add up the quantities")
        async with request_transaction(self._orders) as tx:
            rows = await tx.fetch(
                "SELECT COUNT(*) AS pending FROM orders WHERE customer = :customer AND status = 'PENDING'",
                customer=order.customer,
            )
            if rows[0]["pending"] >= self._limits.max_pending:
                raise Problem(429, "this customer has too many orders in process", retry_after=1)
            try:
                placed = await place(tx, order.customer, order.card, quantities)
            except UnknownArticle as error:
                raise Problem(422, str(error), errors=[{"field": "items", "detail": str(error)}]) from error
        body = {"order_id": placed.order_id, "status": "PENDING"}
        return JSONResponse(body, 202, {"Location": f"/orders/{placed.order_id}"})

    async def show(self, request: Request) -> Response:
        return JSONResponse(view(await self._order(request.path_params["order_id"])), headers=NO_STORE)

    async def list(self, request: Request) -> Response:
        """Newest first. The cursor is the last order of the page before, in a form that nobody should read."""
        query = request.query_params
        customer, limit = query.get("customer"), number(query.get("limit", "20"), "limit", 1, 100)
        if not customer:
            raise Problem(400, "say whose orders: ?customer=…")
        before = uncover(query["cursor"]) if "cursor" in query else LAST
        rows = await self._orders.fetch(
            "SELECT * FROM orders WHERE customer = :customer AND order_id < :before"
            " ORDER BY order_id DESC LIMIT :limit",
            customer=customer,
            before=before,
            limit=limit + 1,
        )
        more = len(rows) > limit
        page = {
            "orders": [view(row) for row in rows[:limit]],
            "next": cover(rows[limit - 1]) if more else None,
        }
        return JSONResponse(page, headers=NO_STORE)

    async def cancel(self, request: Request) -> Response:
        order_id, body = request.path_params["order_id"], await request.body()
        wish = decode(body, Cancellation) if body else Cancellation()
        async with request_transaction(self._orders) as tx:
            order = await tx.fetch_one("SELECT * FROM orders WHERE order_id = :id", id=order_id)
            if order is None:
                raise Problem(404, f"there is no order {order_id!r}")
            if refusal := await ask_to_cancel(tx, order, wish.reason):
                raise Problem(409, refusal)
        return JSONResponse({"order_id": order_id, "status": order["status"]}, 202, {"Location": f"/orders/{order_id}"})

    async def _order(self, order_id: str) -> dict[str, Any]:
        rows = await self._orders.fetch("SELECT * FROM orders WHERE order_id = :id", id=order_id)
        if not rows:
            raise Problem(404, f"there is no order {order_id!r}")
        return rows[0]

    # --- live -----------------------------------------------------------------------------------------------

    async def events(self, request: Request) -> Response:
        order = await self._order(request.path_params["order_id"])
        if self._streams >= self._limits.max_streams:
            raise Problem(503, "too many open event streams", retry_after=5)
        return StreamingResponse(self._stream(order), media_type="text/event-stream", headers=NO_STORE)

    async def _stream(self, order: dict[str, Any]) -> AsyncIterator[str]:
        """The order as it is now, then after each change, until it is settled."""
        self._streams += 1
        try:
            while not settled(order):
                yield frame("order", order)
                while not await self._watch.changed(order["order_id"], order["revision"], PING):
                    yield ": still here\n\n"
                order = await self._order(order["order_id"])
            yield frame("settled", order)
        finally:
            self._streams -= 1

    # --- the rest -------------------------------------------------------------------------------------------

    async def page(self, request: Request) -> Response:
        return FileResponse(PAGE, media_type="text/html; charset=utf-8", headers=PAGE_HEADERS)

    async def prices(self, request: Request) -> Response:
        return JSONResponse(await self._orders.fetch("SELECT sku, name, price, note FROM prices ORDER BY note, sku"))

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"}, headers=NO_STORE)

    async def ready(self, request: Request) -> Response:
        if not await self._orders.fetch("SELECT 1 AS one FROM prices LIMIT 1"):
            raise Problem(503, "no prices yet: is the orders service running?", retry_after=1)
        return JSONResponse({"status": "ready"}, headers=NO_STORE)

    async def openapi(self, request: Request) -> Response:
        return JSONResponse(openapi.document(NewOrder, Cancellation))


# --- in and out ---------------------------------------------------------------------------------------------


def decode(body: bytes, cls: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=cls)
    except msgspec.ValidationError as error:
        detail, _, field = str(error).partition(" - at `$")
        raise Problem(422, detail, errors=[{"field": field.strip("`.") or "$", "detail": detail}]) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Problem(400, f"the body is no JSON: {error}") from error


def number(text: str, name: str, least: int, most: int) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 9 or not least <= int(text) <= most:
        raise Problem(400, f"{name} is a number from {least} to {most}")
    return int(text)


def cover(row: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(row["order_id"].encode()).decode().rstrip("=")


def uncover(cursor: str) -> str:
    try:
        order_id = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode("ascii")
        return str(uuid.UUID(order_id))
    except (binascii.Error, ValueError) as error:
        raise Problem(400, "this cursor is none of ours") from error


def view(row: dict[str, Any]) -> dict[str, Any]:
    steps = [
        {
            "name": name,
            "state": row[name],
            "time": to_rfc3339(row[f"{name}_at"]) if row[f"{name}_at"] else None,
        }
        for name in STEPS
    ]
    return {key: row[key] for key in ("order_id", "status", "total", "reason")} | {"steps": steps}


def settled(row: dict[str, Any]) -> bool:
    return row["status"] != "PENDING" and not row["cancelling"]


def frame(event: str, row: dict[str, Any]) -> str:
    return f"id: {row['revision']}\nevent: {event}\ndata: {json.dumps(view(row))}\n\n"


def create(application: App = shop, limits: Limits | None = None) -> ASGIApp:
    service, limits = application.service("orders"), limits or load(Limits)
    gateway = Gateway(service, limits)

    @contextlib.asynccontextmanager
    async def connected(_: Starlette) -> AsyncIterator[None]:
        async with application.connect(service.name), gateway.watching():
            yield

    inner = Starlette(routes=gateway.routes(), lifespan=connected, exception_handlers=HANDLERS)
    return Door(IdempotencyMiddleware(inner, service), limits)
