"""The order workflow of four steps, each of which returns at once, and one of as many steps as asked for."""

from __future__ import annotations

import asyncio

import msgspec

from skald import App, Service, step, workflow


class Order(msgspec.Struct, frozen=True):
    id: str
    customer: str
    total: int


held: asyncio.Event | None = None
"""While it is set, the last step waits: for workflows that a crash finds in the middle."""
waiting = 0


@step
async def reserve_stock(order: Order) -> str:
    return f"stock-{order.id}"


@step
async def charge_card(order: Order, stock: str) -> str:
    return f"payment-{order.id}"


@step
async def create_shipment(order: Order, payment: str) -> str:
    return f"shipment-{order.id}"


@step
async def send_email(order: Order, shipment: str) -> str:
    global waiting
    if held is not None:
        waiting += 1
        await held.wait()
    return f"email-{order.id}"


@workflow
async def place_order(order: Order) -> str:
    stock = await reserve_stock(order)
    payment = await charge_card(order, stock)
    shipment = await create_shipment(order, payment)
    return await send_email(order, shipment)


@step
async def count_one(order: Order, number: int) -> int:
    return number + 1


@workflow
async def count_up(order: Order, most: int) -> int:
    number = 0
    while number < most:
        number = await count_one(order, number)
    return number


service = Service("orders", workflows=[place_order, count_up])


def application(url: str) -> App:
    return App(service, store=url)


def order(number: int) -> Order:
    return Order(f"{number:08}", "somebody@example.com", 4200 + number)
