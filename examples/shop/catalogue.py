"""Inventory's read API, a process on its database: ``GET /items`` and ``GET /items/{sku}``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from examples.shop.app import app as shop
from skald import App

COLUMNS = "sku, name, price, note, version, available"


def create(application: App = shop) -> Starlette:
    service = application.service("inventory")

    @asynccontextmanager
    async def connected(_: Starlette) -> AsyncIterator[None]:
        async with application.connect(service.name):
            yield

    async def items(request: Request) -> JSONResponse:
        return JSONResponse(await service.fetch(f"SELECT {COLUMNS} FROM items ORDER BY sku"))

    async def item(request: Request) -> JSONResponse:
        sku = request.path_params["sku"]
        rows = await service.fetch(f"SELECT {COLUMNS} FROM items WHERE sku = :sku", sku=sku)
        return JSONResponse(rows[0]) if rows else JSONResponse({"error": f"no article {sku!r}"}, 404)

    async def health(request: Request) -> JSONResponse:
        return JSONResponse({"status": "ok"})

    routes = [Route("/health", health), Route("/items", items), Route("/items/{sku}", item)]
    return Starlette(routes=routes, lifespan=connected)
