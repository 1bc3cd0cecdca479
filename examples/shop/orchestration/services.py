"""The six services around the saga: each handles the commands that are its own. The functions are those of the
choreographed shop: what they do does not depend on who asks for it.
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
    OrderCancelled,
    OrderConfirmed,
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
from examples.shop.orchestration.messages import (
    ChargePayment,
    RefundPayment,
    ReleaseInventory,
    ReserveInventory,
    ScheduleShipment,
)
from examples.shop.orchestration.saga import News, news
from skald import App, CompensationFailed, Service, Transaction
from skald.workflows.definition import Workflow

CALLS = (
    ChargePayment,
    RefundPayment,
    ReserveInventory,
    ReleaseInventory,
    ScheduleShipment,
    CancelShipment,
)


def application(fulfil: Workflow[[OrderPlaced], None]) -> App:
    """The shop whose orders are fulfilled by this saga."""
    return App(_orders(fulfil), _payments(), _inventory(), _shipping(), notifications, analytics)


def _orders(fulfil: Workflow[[OrderPlaced], None]) -> Service:
    publishes = [OrderPlaced, CancelOrder, OrderConfirmed, OrderCancelled]
    orders = Service("orders", publishes=publishes, migrations=desk.MIGRATIONS, workflows=[fulfil], calls=CALLS)

    @orders.on(OrderPlaced)
    async def begin(event: OrderPlaced, tx: Transaction) -> None:
        await tx.start(fulfil, event, id=event.order_id)

    @orders.on(CancelOrder)
    async def cancel(event: CancelOrder, tx: Transaction) -> None:
        await tx.signal(news, News("cancel", event.reason), id=event.order_id)

    @orders.on(ShipmentHandedOver)
    async def parcel_has_left(event: ShipmentHandedOver, tx: Transaction) -> None:
        await tx.signal(news, News("handed over"), id=event.order_id)

    orders.on(ShipmentHandedOver)(desk.hand_over)
    orders.on(*desk.STEPS)(desk.follow)
    orders.on(ShipmentDelivered)(desk.complete)
    orders.on(CompensationFailed)(desk.needs_attention)
    orders.on(CatalogueItemChanged)(desk.fetch_price)
    orders.on(PriceChanged)(desk.note_price)
    orders.provide(desk.catalogue)
    return orders


def _payments() -> Service:
    payments = Service("payments", migrations=till.MIGRATIONS)
    payments.on(ChargePayment, retry=till.CHARGE, exhausted=till.unreachable)(till.charge)
    payments.on(RefundPayment, compensates=till.charge, retry=till.UNDO)(till.refund)
    payments.on(PaymentProcessed, PaymentFailed, PaymentRefunded, once_by="order_id")(till.keep_books)
    payments.on(CompensationFailed, PaymentFailed, PaymentRefunded)(till.keep_tasks)
    payments.provide(till.card_gateway)
    return payments


def _inventory() -> Service:
    inventory = Service("inventory", publishes=[CatalogueItemChanged], migrations=stock.MIGRATIONS)
    inventory.on(ReserveInventory)(stock.reserve)
    inventory.on(ReleaseInventory, compensates=stock.reserve)(stock.release)
    inventory.on(ShipmentHandedOver)(stock.ship)
    return inventory


def _shipping() -> Service:
    shipping = Service("shipping", publishes=dispatch.PUBLISHES, migrations=dispatch.MIGRATIONS)
    shipping.on(ScheduleShipment, retry=dispatch.LABEL, exhausted=dispatch.no_label)(dispatch.schedule)
    shipping.on(CancelShipment, compensates=dispatch.schedule, retry=dispatch.UNDO)(dispatch.withdraw)
    shipping.on(
        ShipmentScheduled,
        ShipmentFailed,
        ShipmentCancelled,
        ShipmentHandedOver,
        ShipmentDelivered,
        once_by="order_id",
    )(dispatch.keep_books)
    shipping.provide(dispatch.carrier)
    return shipping
