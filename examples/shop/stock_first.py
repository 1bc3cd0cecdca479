"""The same business in another order of steps: the stock is reserved first, and the card is charged after
that.

The functions are those of the shop; what differs is who listens to what. A payment that fails now has to give
the stock back, and the inventory service does so by itself, because it hears of it.
"""

from __future__ import annotations

from examples.shop import inventory as stock
from examples.shop import orders as desk
from examples.shop import payments as till
from examples.shop import shipping as dispatch
from examples.shop.analytics import analytics
from examples.shop.messages import (
    CancelOrder,
    CancelShipment,
    CatalogueItemChanged,
    InventoryRejected,
    InventoryReleased,
    InventoryReserved,
    OrderPlaced,
    PaymentFailed,
    PaymentProcessed,
    PaymentRefunded,
    PriceChanged,
    ShipmentCancelled,
    ShipmentDelivered,
    ShipmentFailed,
    ShipmentHandedOver,
    ShipmentScheduled,
)
from examples.shop.notifications import notifications
from skald import App, CompensationFailed, Service

orders = Service("orders", publishes=[OrderPlaced, CancelOrder], migrations=desk.MIGRATIONS)
orders.on(*desk.STEPS)(desk.follow)
orders.on(ShipmentScheduled)(desk.confirm)
orders.on(PaymentFailed, PaymentRefunded, InventoryRejected)(desk.close)
orders.on(CancelOrder)(desk.cancel)
orders.on(CompensationFailed)(desk.needs_attention)
orders.on(ShipmentHandedOver)(desk.hand_over)
orders.on(ShipmentDelivered)(desk.complete)
orders.on(CatalogueItemChanged)(desk.fetch_price)
orders.on(PriceChanged)(desk.note_price)
orders.provide(desk.catalogue)

inventory = Service("inventory", publishes=[CatalogueItemChanged], migrations=stock.MIGRATIONS)
inventory.on(OrderPlaced)(stock.reserve)
inventory.on(PaymentFailed, ShipmentFailed, ShipmentCancelled, compensates=stock.reserve)(stock.release)
inventory.on(ShipmentHandedOver)(stock.ship)

payments = Service("payments", migrations=till.MIGRATIONS)
payments.on(InventoryReserved, retry=till.CHARGE, exhausted=till.unreachable)(till.charge)
payments.on(InventoryReleased, PaymentFailed, compensates=till.charge, retry=till.UNDO)(till.refund)
payments.on(PaymentProcessed, PaymentFailed, PaymentRefunded, once_by="order_id")(till.keep_books)
payments.on(CompensationFailed, PaymentFailed, PaymentRefunded)(till.keep_tasks)
payments.provide(till.card_gateway)

shipping = Service("shipping", publishes=dispatch.PUBLISHES, migrations=dispatch.MIGRATIONS)
shipping.on(PaymentProcessed, retry=dispatch.LABEL, exhausted=dispatch.no_label)(dispatch.schedule)
shipping.on(CancelShipment, ShipmentFailed, compensates=dispatch.schedule, retry=dispatch.UNDO)(dispatch.withdraw)
shipping.on(
    ShipmentScheduled,
    ShipmentFailed,
    ShipmentCancelled,
    ShipmentHandedOver,
    ShipmentDelivered,
    once_by="order_id",
)(dispatch.keep_books)
shipping.provide(dispatch.carrier)

app = App(orders, payments, inventory, shipping, notifications, analytics)
