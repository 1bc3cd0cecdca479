"""What the six services tell each other.

Every event on the way forward carries the whole order (event-carried state transfer), so that no service has
to ask another one, or to wait for a message from a third: messages of different origins arrive in any order.
Messages that undo something carry the reason and the id of the effect that they undo. Money is in cents.
"""

from __future__ import annotations

import msgspec

from skald import Command, Event, Notification


class Line(msgspec.Struct, frozen=True):
    sku: str
    quantity: int
    price: int
    """Of one piece, as it was when the order was placed."""


class Order(msgspec.Struct, frozen=True):
    """The state that travels with the events."""

    customer: str
    card: str
    """A token of the card gateway, never a card number."""
    items: tuple[Line, ...]
    total: int


# --- orders -------------------------------------------------------------------------------------------------


class OrderPlaced(Event, key="order_id"):
    order_id: str
    order: Order


class OrderConfirmed(Event, key="order_id"):
    order_id: str
    customer: str
    total: int


class OrderCancelled(Event, key="order_id"):
    order_id: str
    customer: str
    total: int
    reason: str
    refunded: int
    was_confirmed: bool


class OrderCompleted(Event, key="order_id"):
    order_id: str
    customer: str
    total: int


class PriceChanged(Event, key="sku"):
    """What an article costs from now on, as orders found it in the catalogue."""

    sku: str
    name: str
    price: int
    note: str
    version: int


class CancelOrder(Command, key="order_id"):
    order_id: str
    reason: str


# --- payments -----------------------------------------------------------------------------------------------


class PaymentProcessed(Event, key="order_id"):
    order_id: str
    order: Order
    charge_id: str


class PaymentFailed(Event, key="order_id"):
    order_id: str
    reason: str
    unknown: bool = False
    """The card gateway never answered: it may have charged the card all the same. It is asked, and what it says is told
    by a second PaymentFailed, or by PaymentRefunded.
    """


class PaymentRefunded(Event, key="order_id"):
    order_id: str
    reason: str
    charge_id: str
    refund_id: str
    amount: int


# --- inventory ----------------------------------------------------------------------------------------------


class InventoryReserved(Event, key="order_id"):
    order_id: str
    order: Order


class InventoryRejected(Event, key="order_id"):
    order_id: str
    reason: str
    sku: str


class InventoryReleased(Event, key="order_id"):
    """The reservation of this order (a reservation's id is its order's) was undone."""

    order_id: str
    reason: str


class CatalogueItemChanged(Notification, key="sku"):
    """Bare: whoever cares asks inventory's catalogue for the item as it is by then."""

    sku: str


# --- shipping -----------------------------------------------------------------------------------------------


class ShipmentScheduled(Event, key="order_id"):
    order_id: str
    label_id: str


class ShipmentFailed(Event, key="order_id"):
    """No label could be had. One may exist all the same, when the carrier did its work and never answered."""

    order_id: str
    reason: str


class ShipmentCancelled(Event, key="order_id"):
    order_id: str
    reason: str
    label_id: str
    """Empty where there was no label; there will be none."""


class ShipmentHandedOver(Event, key="order_id"):
    """The carrier has the parcel: from here on nothing can be cancelled."""

    order_id: str
    label_id: str


class ShipmentDelivered(Event, key="order_id"):
    order_id: str
    label_id: str


class CancelShipment(Command[ShipmentCancelled], key="order_id"):
    order_id: str
    label_id: str
    """Empty where none is known of yet."""
    reason: str
