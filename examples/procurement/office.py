"""The people outside of the services, as a program: the buyer, the vendor, the gate. It starts no process of a service.

python -m examples.procurement.office order o-1 paper-mill paper 12000
python -m examples.procurement.office acknowledge o-1
python -m examples.procurement.office ship o-1
python -m examples.procurement.office arrive o-1
python -m examples.procurement.office show o-1
"""

from __future__ import annotations

import asyncio
import sys

from examples.procurement.app import app
from examples.procurement.purchasing import NoSuchOrder, OverBudget, cancel, order, purchasing
from examples.procurement.vendors import TooLate, answer, ship, vendors
from examples.procurement.warehouse import NotExpected, arrive, warehouse


async def do(what: str, order_id: str, *more: str) -> str:
    async with app.connect():
        try:
            match what:
                case "order":
                    await order(order_id, "office", more[0], more[1], int(more[2]))
                case "cancel":
                    await cancel(order_id, more[0] if more else "changed my mind")
                case "acknowledge":
                    await answer(order_id, yes=True)
                case "decline":
                    await answer(order_id, yes=False, reason=more[0] if more else "sold out")
                case "ship":
                    await ship(order_id)
                case "arrive":
                    await arrive(order_id)
                case "show":
                    pass
                case _:
                    raise SystemExit(f"{what!r} is not one of order, cancel, acknowledge, decline, ship, arrive, show")
        except (OverBudget, NoSuchOrder, TooLate, NotExpected) as refused:
            return f"refused: {refused}"
        return await shown(order_id)


async def shown(order_id: str) -> str:
    """How the three teams see it now."""
    found = [
        await purchasing.fetch("SELECT state, reason FROM orders WHERE id = :id", id=order_id),
        await vendors.fetch("SELECT state FROM sales WHERE order_id = :id", id=order_id),
        await warehouse.fetch("SELECT state FROM arrivals WHERE order_id = :id", id=order_id),
    ]
    names = ("purchasing", "vendors", "warehouse")
    return "\n".join(f"{name:10} {dict(rows[0]) if rows else '-'}" for name, rows in zip(names, found, strict=True))


if __name__ == "__main__":
    print(asyncio.run(do(*sys.argv[1:])))
