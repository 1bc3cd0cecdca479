"""The order workflow on DBOS: a library in the process of the callers, with its defaults, on PostgreSQL."""
# mypy: ignore-errors
# What it imports is installed on the Python of the peers alone.

from __future__ import annotations

import asyncio

import psycopg
import uvloop
from dbos import DBOS, SetWorkflowID

from benchmarks.harness.child import Channel
from benchmarks.workflows.peers.callers import Order, serve

asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())


@DBOS.step()
async def reserve_stock(order: Order) -> str:
    return f"stock-{order['id']}"


@DBOS.step()
async def charge_card(order: Order, stock: str) -> str:
    return f"payment-{order['id']}"


@DBOS.step()
async def create_shipment(order: Order, payment: str) -> str:
    return f"shipment-{order['id']}"


@DBOS.step()
async def send_email(order: Order, shipment: str) -> str:
    return f"email-{order['id']}"


@DBOS.workflow()
async def place_order(order: Order) -> str:
    stock = await reserve_stock(order)
    payment = await charge_card(order, stock)
    shipment = await create_shipment(order, payment)
    return await send_email(order, shipment)


async def run(channel: Channel, url: str) -> None:
    DBOS(config={"name": "orders", "system_database_url": url, "log_level": "WARNING"})
    DBOS.launch()

    async def place(order: Order) -> str:
        with SetWorkflowID(f"order-{order['id']}"):
            return await place_order(order)

    async def stored() -> dict[str, int]:
        async with await psycopg.AsyncConnection.connect(url) as connection:
            found = await connection.execute(
                "SELECT (SELECT count(*) FROM dbos.workflow_status WHERE status = 'SUCCESS'),"
                " (SELECT count(*) FROM dbos.operation_outputs WHERE output IS NOT NULL)"
            )
            [(workflows, steps)] = await found.fetchall()
            return {"workflows": workflows, "steps": steps}

    await serve(channel, place, stored)
