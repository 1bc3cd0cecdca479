"""The four business services of the shop over messages, in three styles; what they would ask of the world outside is
answered at once, in their own process. Inventory reserves and orders confirms in a row of its own tables.

    choreography   each service listens to what the one before it tells
    orchestration  a saga in the orders service calls four commands, and each is answered
    hybrid         choreography between the services, a saga of two steps inside of each of the three others
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from skald import App, Command, Event, Service, Transaction, call, compensation, saga, step, workflows
from skald.workflows.definition import Workflow

TABLES = Path(__file__).parent / "tables"
STYLES = ("choreography", "orchestration", "hybrid")
NAMES = ("orders", "payments", "inventory", "shipping")
_INSERT = "INSERT INTO done (order_id, quantity) VALUES (:order_id, :quantity)"


class OrderPlaced(Event, key="order_id"):
    order_id: str
    customer: str
    sku: str
    quantity: int
    total: int


class PaymentProcessed(Event, key="order_id"):
    order_id: str
    sku: str
    quantity: int
    charge_id: str


class InventoryReserved(Event, key="order_id"):
    order_id: str


class ShipmentScheduled(Event, key="order_id"):
    order_id: str
    label_id: str


class OrderConfirmed(Event, key="order_id"):
    order_id: str


class ChargePayment(Command[PaymentProcessed], key="order_id"):
    order_id: str
    sku: str
    quantity: int
    total: int


class RefundPayment(Command[None], key="order_id"):
    order_id: str


class ReserveInventory(Command[InventoryReserved], key="order_id"):
    order_id: str
    sku: str
    quantity: int


class ReleaseInventory(Command[None], key="order_id"):
    order_id: str


class ScheduleShipment(Command[ShipmentScheduled], key="order_id"):
    order_id: str


class CancelShipment(Command[None], key="order_id"):
    order_id: str


class ConfirmOrder(Command[OrderConfirmed], key="order_id"):
    order_id: str


def placed(number: int) -> OrderPlaced:
    return OrderPlaced(f"order-{number:08}", "customer-4711", "KETTLE", 1, 4900)


# --- what each of them does -----------------------------------------------------------------------------------------


async def charge(message: OrderPlaced | ChargePayment) -> PaymentProcessed:
    return PaymentProcessed(message.order_id, message.sku, message.quantity, f"charge-{message.order_id}")


async def reserve(message: PaymentProcessed | ReserveInventory, tx: Transaction) -> InventoryReserved:
    await tx.execute(_INSERT, order_id=message.order_id, quantity=message.quantity)
    return InventoryReserved(message.order_id)


async def schedule(message: InventoryReserved | ScheduleShipment) -> ShipmentScheduled:
    return ShipmentScheduled(message.order_id, f"label-{message.order_id}")


async def confirm(message: ShipmentScheduled | ConfirmOrder, tx: Transaction) -> OrderConfirmed:
    await tx.execute(_INSERT, order_id=message.order_id, quantity=0)
    return OrderConfirmed(message.order_id)


async def nothing_to_undo(message: RefundPayment | ReleaseInventory | CancelShipment) -> None:
    """No order fails here."""


# --- the styles -----------------------------------------------------------------------------------------------------


def application(url: str, style: str) -> App:
    made = {"choreography": _choreography, "orchestration": _orchestration, "hybrid": _hybrid}[style]
    return App(*made(), store=url)


def _service(name: str, **options: Any) -> Service:
    return Service(name, migrations=TABLES, **options)


def _choreography() -> list[Service]:
    orders, payments, inventory, shipping = (
        _service(name, publishes=[OrderPlaced] if name == "orders" else []) for name in NAMES
    )
    payments.on(OrderPlaced)(charge)
    inventory.on(PaymentProcessed)(reserve)
    shipping.on(InventoryReserved)(schedule)
    orders.on(ShipmentScheduled)(confirm)
    return [orders, payments, inventory, shipping]


@saga
async def fulfil(order: OrderPlaced) -> None:
    id = order.order_id
    await call(ChargePayment(id, order.sku, order.quantity, order.total), compensate=RefundPayment(id))
    await call(ReserveInventory(id, order.sku, order.quantity), compensate=ReleaseInventory(id))
    await call(ScheduleShipment(id), compensate=CancelShipment(id))
    await call(ConfirmOrder(id))


async def begin_fulfilment(event: OrderPlaced, tx: Transaction) -> None:
    await tx.start(fulfil, event, id=event.order_id)


def _orchestration() -> list[Service]:
    forward = [ChargePayment, ReserveInventory, ScheduleShipment, ConfirmOrder]
    back = [RefundPayment, ReleaseInventory, CancelShipment]
    orders = _service("orders", publishes=[OrderPlaced], workflows=[fulfil], calls=forward + back)
    payments, inventory, shipping = (_service(name) for name in NAMES[1:])
    orders.on(OrderPlaced)(begin_fulfilment)
    orders.on(ConfirmOrder)(confirm)
    payments.on(ChargePayment)(charge)
    payments.on(RefundPayment)(nothing_to_undo)
    inventory.on(ReserveInventory)(reserve)
    inventory.on(ReleaseInventory)(nothing_to_undo)
    shipping.on(ScheduleShipment)(schedule)
    shipping.on(CancelShipment)(nothing_to_undo)
    return [orders, payments, inventory, shipping]


@compensation
async def give_back(order: OrderPlaced) -> None:
    return None


@step(compensate=give_back)
async def take_money(order: OrderPlaced) -> str:
    return f"charge-{order.order_id}"


@step(transactional=True)
async def tell_charged(order: OrderPlaced, charge_id: str) -> None:
    event = PaymentProcessed(order.order_id, order.sku, order.quantity, charge_id)
    workflows.transaction().publish(event)


@saga
async def pay(order: OrderPlaced) -> None:
    await tell_charged(order, await take_money(order))


@compensation
async def put_back(paid: PaymentProcessed) -> None:
    return None


@step(compensate=put_back)
async def pick(paid: PaymentProcessed) -> None:
    return None


@step(transactional=True)
async def tell_reserved(paid: PaymentProcessed) -> None:
    tx = workflows.transaction()
    tx.publish(await reserve(paid, tx))


@saga
async def take_from_stock(paid: PaymentProcessed) -> None:
    await pick(paid)
    await tell_reserved(paid)


@compensation
async def withdraw(reserved: InventoryReserved) -> None:
    return None


@step(compensate=withdraw)
async def label(reserved: InventoryReserved) -> str:
    return f"label-{reserved.order_id}"


@step(transactional=True)
async def tell_scheduled(reserved: InventoryReserved, label_id: str) -> None:
    workflows.transaction().publish(ShipmentScheduled(reserved.order_id, label_id))


@saga
async def dispatch(reserved: InventoryReserved) -> None:
    await tell_scheduled(reserved, await label(reserved))


async def begin_payment(event: OrderPlaced, tx: Transaction) -> None:
    await tx.start(pay, event, id=event.order_id)


async def begin_picking(event: PaymentProcessed, tx: Transaction) -> None:
    await tx.start(take_from_stock, event, id=event.order_id)


async def begin_dispatch(event: InventoryReserved, tx: Transaction) -> None:
    await tx.start(dispatch, event, id=event.order_id)


def _hybrid() -> list[Service]:
    def domain(name: str, publishes: type, saga: Workflow[Any, None]) -> Service:
        return _service(name, publishes=[publishes], workflows=[saga])

    orders = _service("orders", publishes=[OrderPlaced])
    payments = domain("payments", PaymentProcessed, pay)
    inventory = domain("inventory", InventoryReserved, take_from_stock)
    shipping = domain("shipping", ShipmentScheduled, dispatch)
    payments.on(OrderPlaced)(begin_payment)
    inventory.on(PaymentProcessed)(begin_picking)
    shipping.on(InventoryReserved)(begin_dispatch)
    orders.on(ShipmentScheduled)(confirm)
    return [orders, payments, inventory, shipping]
