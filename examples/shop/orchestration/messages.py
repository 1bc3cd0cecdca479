"""The commands of the saga. What answers them, and what cancels a shipment, stands with the messages of all styles.

A charge and a label come back also when they have failed, because they may have been made all the same: then the saga
goes on to undo them. A reservation is rows of inventory's own. It was made or it was not, so a failure is a rejection.
"""

from __future__ import annotations

from examples.shop.messages import (
    InventoryReleased,
    InventoryReserved,
    Order,
    PaymentFailed,
    PaymentProcessed,
    PaymentRefunded,
    ShipmentFailed,
    ShipmentScheduled,
)
from skald import Command


class ChargePayment(Command[PaymentProcessed | PaymentFailed], key="order_id"):
    order_id: str
    order: Order


class RefundPayment(Command[PaymentRefunded | PaymentFailed], key="order_id"):
    """Answered by PaymentFailed where nothing was charged."""

    order_id: str
    reason: str


class ReserveInventory(Command[InventoryReserved], key="order_id"):
    order_id: str
    order: Order


class ReleaseInventory(Command[InventoryReleased], key="order_id"):
    order_id: str
    reason: str


class ScheduleShipment(Command[ShipmentScheduled | ShipmentFailed], key="order_id"):
    order_id: str
    order: Order
