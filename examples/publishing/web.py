"""The asynchronous way: a FastAPI application publishes in the transaction that writes its row.

uvicorn examples.publishing.web:web
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

from fastapi import FastAPI, HTTPException

from examples.publishing.baskets import BasketOpened, app, baskets


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    async with app.connect("baskets"):
        yield


web = FastAPI(lifespan=lifespan)


@web.post("/baskets", status_code=201)
async def open_basket(customer: str) -> dict[str, Any]:
    basket_id = uuid4().hex
    async with baskets.transaction() as tx:
        await tx.execute("INSERT INTO baskets (id, customer) VALUES (:id, :customer)", id=basket_id, customer=customer)
        tx.publish(BasketOpened(basket_id, customer))
    return {"basket_id": basket_id}


@web.get("/baskets/{basket_id}")
async def read_basket(basket_id: str) -> dict[str, Any]:
    rows = await baskets.fetch("SELECT id, customer, greeting FROM baskets WHERE id = :id", id=basket_id)
    if not rows:
        raise HTTPException(404)
    return rows[0]
