"""The order of the workflows' benchmark as a saga: the same four functions, and what undoes the first three of them."""

from __future__ import annotations

from benchmarks.workflows import order as plain
from benchmarks.workflows.order import Order, place_order
from skald import NEVER, App, Service, compensation, saga, step


class Refused(Exception):
    pass


@compensation
async def release_stock(stock: str | None, order: Order) -> None:
    return None


@compensation
async def refund_card(payment: str | None, order: Order) -> None:
    return None


@compensation
async def cancel_shipment(shipment: str | None, order: Order) -> None:
    return None


reserve_stock = step(compensate=release_stock)(plain.reserve_stock.function)
charge_card = step(compensate=refund_card)(plain.charge_card.function)
create_shipment = step(compensate=cancel_shipment)(plain.create_shipment.function)


@step(retry=NEVER, compensate=cancel_shipment)
async def refuse_shipment(order: Order, payment: str) -> str:
    raise Refused(order.id)


@saga
async def fulfil(order: Order) -> str:
    stock = await reserve_stock(order)
    payment = await charge_card(order, stock)
    shipment = await create_shipment(order, payment)
    return await plain.send_email(order, shipment)


@saga
async def fulfil_in_vain(order: Order) -> str:
    """Fails at the third step, so that two are undone."""
    stock = await reserve_stock(order)
    payment = await charge_card(order, stock)
    shipment = await refuse_shipment(order, payment)
    return await plain.send_email(order, shipment)


service = Service("orders", workflows=[place_order, fulfil, fulfil_in_vain])


def application(url: str) -> App:
    return App(service, store=url)
