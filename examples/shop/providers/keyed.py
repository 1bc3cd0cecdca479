"""A provider that honours idempotency keys: a card gateway and a carrier behind one door.

The same key gets the same answer, and there are never two effects per key, whatever happens in between.
Refunding an order's charge, or withdrawing its label, closes the order here: a charge or label that arrives
later (an attempt that was on its way) is refused. Every effect and every decision is a line of the ledger;
what is not there did not happen.

Cards and SKUs with a behaviour of their own are listed in the README of the example. ``POST /admin`` (from
this machine only) switches paths off: ``{"down": ["charges"]}`` answers 503, ``{"silent": ["labels"]}`` never
answers, and ``{"late": ["charges"]}`` keeps requests on their way until it is switched off again.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from examples.shop.providers.ledger import Entry, Ledger

DECLINED = {"card-declined": "insufficient funds", "card-expired": "the card has expired"}
NO_EFFECT = {"card-silent", "ANVIL"}
"""Never answers, and does nothing."""
NO_ANSWER = {"card-lost", "BALLOON"}
"""Does what is asked, and never answers."""
LATE_ANSWER = {"card-slow", "CACTUS"}
"""Does what is asked, and answers only when asked again with the same key."""
HANG = 60.0


class Desk:
    """Decides on every request from what stands in the ledger, and writes the decision there."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._by_key: dict[str, Entry] = {}
        self._by_order: dict[str, dict[str, Entry]] = {}
        for entry in ledger.entries:
            self._remember(entry)

    def answered(self, key: str) -> Entry | None:
        return self._by_key.get(key)

    def charges(self, key: str, order: str, body: dict[str, Any]) -> Entry:
        if body["card"] in DECLINED:
            return self._write("charge", key, order, status="declined", reason=DECLINED[body["card"]])
        if "refund" in self._of(order):
            return self._write("charge", key, order, status="refused", reason="the order is closed")
        return self._write("charge", key, order, status="done", amount=int(body["amount"]))

    def refunds(self, key: str, order: str, body: dict[str, Any]) -> Entry:
        charge = self._of(order).get("charge")
        if charge is None or "refund" in self._of(order):
            return self._write("refund", key, order, status="nothing")
        effect = {"original": charge["id"], "amount": charge["amount"], "reason": body.get("reason")}
        return self._write("refund", key, order, status="done", **effect)

    def labels(self, key: str, order: str, body: dict[str, Any]) -> Entry:
        if "withdrawal" in self._of(order):
            return self._write("label", key, order, status="refused", reason="the order is closed")
        return self._write("label", key, order, status="done")

    def withdrawals(self, key: str, order: str, body: dict[str, Any]) -> Entry:
        label = self._of(order).get("label")
        if "pickup" in self._of(order):
            return self._write("withdrawal", key, order, status="handed over", original=self._of(order)["label"]["id"])
        if label is None or "withdrawal" in self._of(order):
            return self._write("withdrawal", key, order, status="nothing")
        return self._write("withdrawal", key, order, status="done", original=label["id"], reason=body.get("reason"))

    def pickups(self, key: str, order: str, body: dict[str, Any]) -> Entry:
        return self._move("pickup", key, order, after="label")

    def deliveries(self, key: str, order: str, body: dict[str, Any]) -> Entry:
        return self._move("delivery", key, order, after="pickup")

    def _move(self, kind: str, key: str, order: str, after: str) -> Entry:
        known = self._of(order)
        if kind in known:
            return known[kind]
        if after not in known or "withdrawal" in known:
            return self._write(kind, key, order, status="refused", reason=f"no {after} to go on from")
        return self._write(kind, key, order, status="done", original=known["label"]["id"])

    def _write(self, kind: str, key: str, order: str, **rest: Any) -> Entry:
        entry = self.ledger.append(
            id=f"{kind[:2]}_{uuid.uuid4().hex[:16]}", kind=kind, key=key, reference=order, **rest
        )
        self._remember(entry)
        return entry

    def _remember(self, entry: Entry) -> None:
        self._by_key[entry["key"]] = entry
        # A refund or withdrawal that found nothing closes the order as well.
        if entry["status"] in ("done", "nothing"):
            self._by_order.setdefault(entry["reference"], {}).setdefault(entry["kind"], entry)

    def _of(self, order: str) -> dict[str, Entry]:
        return self._by_order.get(order, {})


PATHS = ("charges", "refunds", "labels", "withdrawals", "pickups", "deliveries")


def create(ledger: Path) -> Starlette:
    desk = Desk(Ledger(ledger))
    switched: dict[str, list[str]] = {"down": [], "silent": [], "late": []}
    arrive = asyncio.Event()

    async def effect(request: Request) -> JSONResponse:
        path, key = request.path_params["path"], request.headers.get("idempotency-key")
        body = await request.json()
        if path not in PATHS or key is None:
            return JSONResponse({"error": "unknown path, or no Idempotency-Key"}, 404 if key else 400)
        if path in switched["down"]:
            return JSONResponse({"error": "down"}, 503)
        marks = {body.get("card", ""), *body.get("skus", ())}
        if path in switched["silent"] or (path in ("charges", "labels") and marks & NO_EFFECT):
            await asyncio.sleep(HANG)
            return JSONResponse({"error": "timed out"}, 504)
        if path in switched["late"]:
            await arrive.wait()
        before = desk.answered(key)
        entry = before or getattr(desk, path)(key, body["reference"], body)
        if entry["reference"] != body["reference"]:
            return JSONResponse({"error": "this key belongs to another order"}, 422)
        if path in ("charges", "labels") and (marks & NO_ANSWER or (marks & LATE_ANSWER and before is None)):
            await asyncio.sleep(HANG)
        return JSONResponse(entry)

    async def look_up(request: Request) -> JSONResponse:
        order = request.query_params.get("reference")
        return JSONResponse([entry for entry in desk.ledger.entries if entry["reference"] == order])

    async def admin(request: Request) -> JSONResponse:
        if request.client is not None and request.client.host not in ("127.0.0.1", "::1", "testclient"):
            return JSONResponse({"error": "only from this machine"}, 403)
        body = await request.json()
        switched.update({mode: list(body.get(mode, [])) for mode in switched})
        arrive.clear() if switched["late"] else arrive.set()
        return JSONResponse(switched)

    async def health(request: Request) -> JSONResponse:
        return JSONResponse({"status": "ok"})

    return Starlette(
        routes=[
            Route("/health", health),
            Route("/admin", admin, methods=["POST"]),
            Route("/effects", look_up),
            Route("/{path}", effect, methods=["POST"]),
        ]
    )


def app() -> Starlette:
    """For the command line: the ledger stands in ``SHOP_LEDGERS``."""
    return create(Path(os.environ.get("SHOP_LEDGERS", ".skald/providers")) / "keyed.jsonl")
