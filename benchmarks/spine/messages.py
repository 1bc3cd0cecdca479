"""The messages of the benchmark: an order of about 300 bytes, and one answer to it."""

from __future__ import annotations

import time

import msgspec

from skald import Event


class Item(msgspec.Struct, frozen=True):
    sku: str
    quantity: int
    price: int


class OrderPlaced(Event, key="order_id"):
    """``sent`` is the moment of the call, in microseconds of the machine's monotonic clock."""

    order_id: str
    customer: str
    email: str
    address: str
    items: list[Item]
    total: int
    currency: str
    sent: int


class PaymentTaken(Event, key="order_id"):
    order_id: str
    payment_id: str
    amount: int
    currency: str
    sent: int


_ITEMS = [Item("chair-oak-natural", 2, 12_900), Item("table-oak-180", 1, 54_900)]


def now() -> int:
    return time.monotonic_ns() // 1000


def order(number: int, name: str = "order") -> OrderPlaced:
    return OrderPlaced(
        f"{name}-{number:08d}",
        "Ada Lovelace",
        "ada.lovelace@example.com",
        "12 St James's Square, London SW1Y 4JH",
        _ITEMS,
        80_700,
        "EUR",
        now(),
    )


def payment(order: OrderPlaced) -> PaymentTaken:
    return PaymentTaken(order.order_id, f"pay-{order.order_id}", order.total, order.currency, order.sent)
