"""The rows that the bare code writes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from benchmarks.spine.messages import OrderPlaced, order, payment
from skald.message import child_traceparent, new_id, slot_of

Row = tuple[Any, ...]

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(OrderPlaced).decode


def order_rows(count: int) -> Iterator[Row]:
    """Id, type, key and payload of orders, each made and encoded when it is asked for."""
    for number in range(count):
        message = order(number)
        yield f"{number:032x}", "OrderPlaced", message.order_id, _encode(message)


def answer_to(id: str, payload: bytes) -> tuple[Row, int]:
    """The row of the answer to an order, and when the order was sent."""
    placed = _decode(payload)
    answer = payment(placed)
    return (id, "PaymentTaken", answer.order_id, _encode(answer)), placed.sent


def event_rows(count: int, streams: bool) -> list[Row]:
    """Prepared rows of ``skald_events``, without the position; with ``streams`` each begins a stream."""
    return [_event_row(number, streams) for number in range(count)]


def _event_row(number: int, streams: bool) -> Row:
    id, message = new_id(), order(number)
    key, trace = message.order_id, child_traceparent(None, id, id)
    stream, version = (f"order-{id}", 1) if streams else (None, None)
    head = (id, "orders", key, slot_of(key), "OrderPlaced", 1, message.sent, id, None, trace)
    return (*head, _encode(message), stream, version)
