"""The order workflow on Restate: a service that its server calls, and callers that call the server.

A plain service, which is the fastest of Restate's kinds; with its sdk's own choice of a web server, and uvloop.
"""
# mypy: ignore-errors
# What it imports is installed on the Python of the peers alone.

from __future__ import annotations

import asyncio
import socket

import aiohttp
import restate
import uvloop
from hypercorn.asyncio import serve as serve_http
from hypercorn.config import Config

from benchmarks.harness.child import Channel
from benchmarks.workflows.peers.callers import Order, serve

asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())

orders = restate.Service("Orders")


async def reserve_stock(order: Order) -> str:
    return f"stock-{order['id']}"


async def charge_card(order: Order, stock: str) -> str:
    return f"payment-{order['id']}"


async def create_shipment(order: Order, payment: str) -> str:
    return f"shipment-{order['id']}"


async def send_email(order: Order, shipment: str) -> str:
    return f"email-{order['id']}"


@orders.handler()
async def place_order(context: restate.Context, order: Order) -> str:
    stock = await context.run_typed("reserve_stock", reserve_stock, order=order)
    payment = await context.run_typed("charge_card", charge_card, order=order, stock=stock)
    shipment = await context.run_typed("create_shipment", create_shipment, order=order, payment=payment)
    return await context.run_typed("send_email", send_email, order=order, shipment=shipment)


async def run(channel: Channel) -> None:
    """Serves the handler on a free port, and says where."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = Config()
        config.bind = [f"fd://{listener.fileno()}"]
        config.loglevel = "ERROR"
        channel.say(url=f"http://127.0.0.1:{listener.getsockname()[1]}")
        await serve_http(restate.app([orders]), config)


async def call(channel: Channel, ingress: str, admin: str) -> None:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def place(order: Order) -> str:
            async with session.post(f"{ingress}/Orders/place_order", json=order) as answer:
                answer.raise_for_status()
                result: str = await answer.json()
                return result

        async def counted(sql: str) -> int:
            accepted = {"Accept": "application/json"}
            async with session.post(f"{admin}/query", json={"query": sql}, headers=accepted) as answer:
                answer.raise_for_status()
                rows = (await answer.json())["rows"]
                return int(rows[0]["n"])

        async def stored() -> dict[str, int]:
            """Of those that the server keeps for a day, which is its default."""
            workflows = "SELECT count(*) AS n FROM sys_invocation WHERE status = 'completed'"
            steps = "SELECT count(*) AS n FROM sys_journal WHERE entry_type = 'Notification: Run'"
            return {"workflows": await counted(workflows), "steps": await counted(steps)}

        await serve(channel, place, stored)
