"""Calls keep the types of what they return. Each ``ignore`` must be needed."""

from __future__ import annotations

from typing import Any, assert_type

import httpx

from skald import CallRejected, Command, Event, Service, call, saga, workflow
from skald.http import http_step


class Reserved(Event, key="order"):
    order: str
    shelf: int


class Queued(Event, key="order"):
    order: str


class Reserve(Command[Reserved], key="order"):
    order: str


class Ask(Command[Reserved | Queued], key="order"):
    order: str


class Tell(Command[None], key="order"):
    order: str


class Release(Command, key="order"):
    order: str


def client() -> httpx.AsyncClient:
    return httpx.AsyncClient()


charge = http_step("charge", client, "POST", "/charges/{order}", takes=Reserved, returns=Queued, timeout=5, pivot=True)
http_step("charge", client, "POST", "/charges", takes=Reserved, returns=Queued, timeouts=5)  # type: ignore[call-arg]
http_step("charge", print, "POST", "/charges", takes=Reserved, returns=Queued)  # type: ignore[arg-type]


@saga
async def fulfil(order: str) -> int:
    reserved = await call(Reserve(order), timeout=30, compensate=Release(order))
    assert_type(reserved, Reserved)
    assert_type(await call(Ask(order)), Reserved | Queued)
    assert_type(await call(Tell(order)), None)
    assert_type(await call(Release(order)), Any)
    assert_type(await charge(Reserved(order, 1)), Queued)
    await charge(order)  # type: ignore[arg-type]
    await call(Reserve(1))  # type: ignore[arg-type]
    await call(Reserved(order, 1))  # type: ignore[arg-type]
    await call(Reserve(order), timeout="30")  # type: ignore[arg-type]
    await call(Reserve(order), compensate=reserved)  # type: ignore[arg-type]
    return reserved.shelf


@workflow
async def catching(order: str) -> str:
    try:
        await call(Reserve(order))
    except CallRejected as rejected:
        assert_type(rejected.reply, Any)
        return rejected.type
    return ""


orders = Service("orders", workflows=[fulfil, catching], calls=[Reserve, Ask, Tell, Release])
