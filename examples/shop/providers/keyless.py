"""A provider that knows no idempotency keys, but can be asked what happened: e-mail, SMS and push.

Whoever sends twice has sent twice. ``GET /messages?reference=…`` tells what was sent under a reference, and
is to be asked before anything is repeated. ``POST /admin`` (from this machine only) switches channels off:
``{"down": ["email"]}`` answers 503, ``{"silent": ["sms"]}`` sends and never answers.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from examples.shop.providers.ledger import Ledger

CHANNELS = ("email", "sms", "push")
HANG = 60.0


def create(path: Path) -> Starlette:
    ledger = Ledger(path)
    sent: dict[str, list[str]] = {}
    for entry in ledger.entries:
        sent.setdefault(entry["reference"], []).append(entry["id"])
    switched: dict[str, list[str]] = {"down": [], "silent": []}

    async def send(request: Request) -> JSONResponse:
        channel, body = request.path_params["channel"], await request.json()
        if channel not in CHANNELS:
            return JSONResponse({"error": f"no channel {channel!r}"}, 404)
        if channel in switched["down"]:
            return JSONResponse({"error": "down"}, 503)
        entry = ledger.append(
            id=f"me_{uuid.uuid4().hex[:16]}",
            channel=channel,
            reference=body["reference"],
            order=body["order"],
            to=body["to"],
            text=body["text"],
        )
        sent.setdefault(entry["reference"], []).append(entry["id"])
        if channel in switched["silent"]:
            await asyncio.sleep(HANG)
        return JSONResponse({"id": entry["id"]})

    async def look_up(request: Request) -> JSONResponse:
        return JSONResponse(sent.get(request.query_params.get("reference", ""), []))

    async def admin(request: Request) -> JSONResponse:
        if request.client is not None and request.client.host not in ("127.0.0.1", "::1", "testclient"):
            return JSONResponse({"error": "only from this machine"}, 403)
        body = await request.json()
        switched.update({mode: list(body.get(mode, [])) for mode in switched})
        return JSONResponse(switched)

    async def health(request: Request) -> JSONResponse:
        return JSONResponse({"status": "ok"})

    return Starlette(
        routes=[
            Route("/health", health),
            Route("/admin", admin, methods=["POST"]),
            Route("/messages", look_up),
            Route("/{channel}", send, methods=["POST"]),
        ]
    )


def app() -> Starlette:
    """For the command line: the ledger stands in ``SHOP_LEDGERS``."""
    return create(Path(os.environ.get("SHOP_LEDGERS", ".skald/providers")) / "keyless.jsonl")
