"""What the teams tell each other. Nothing else is shared: not a table, not a call, not a plan of who comes next.

Every fact about an order has the order as its key, so that whoever reads them gets those of one team in order. Those of
different teams come in any order.
"""

from __future__ import annotations

from skald import Command, Event


class PurchaseOrderCreated(Event, key="order_id"):
    order_id: str
    vendor: str
    goods: str
    amount: int
    """In cents."""


class PurchaseOrderCancelled(Event, key="order_id"):
    order_id: str
    reason: str


class CancelPurchaseOrder(Command, key="order_id"):
    """The buyer's, to his own team."""

    order_id: str
    reason: str


class VendorAcknowledged(Event, key="order_id"):
    order_id: str
    vendor: str


class VendorDeclined(Event, key="order_id"):
    order_id: str
    vendor: str
    reason: str


class GoodsShipped(Event, key="order_id"):
    order_id: str
    vendor: str
    goods: str


class GoodsReceived(Event, key="order_id"):
    order_id: str
    vendor: str


class GoodsReturned(Event, key="order_id"):
    """They had been received, and the order was cancelled."""

    order_id: str
    vendor: str
    reason: str
