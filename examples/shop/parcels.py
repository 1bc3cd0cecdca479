"""The parcel's way, told by a person: ``python -m examples.shop.parcels picked-up|delivered ORDER_ID …``.

In life the carrier would call. It is asked first, because it decides; what it says is published from ordinary
code.
"""

from __future__ import annotations

import asyncio
import sys

from examples.shop.app import app
from examples.shop.messages import ShipmentDelivered, ShipmentHandedOver
from examples.shop.providers.clients import Carrier
from examples.shop.settings import settings
from skald import Service


async def picked_up(carrier: Carrier, order_id: str, service: Service) -> bool:
    """The carrier has the parcel; false if there is none to be had."""
    answer = await carrier.pick_up(order_id, key=f"pick-up:{order_id}")
    if answer.status == "done":
        await service.publish(ShipmentHandedOver(order_id, answer.original))
    return answer.status == "done"


async def delivered(carrier: Carrier, order_id: str, service: Service) -> bool:
    """The customer has the parcel; it is picked up before, if it was not."""
    if not await picked_up(carrier, order_id, service):
        return False
    answer = await carrier.deliver(order_id, key=f"delivery:{order_id}")
    await service.publish(ShipmentDelivered(order_id, answer.original))
    return True


async def main(what: str, order_ids: list[str]) -> int:
    tell = {"picked-up": picked_up, "delivered": delivered}[what]
    carrier = Carrier(settings.keyed_url, settings.patience)
    async with app.connect("shipping"):
        told = {order_id: await tell(carrier, order_id, app.service("shipping")) for order_id in order_ids}
    await carrier.close()
    for order_id, done in told.items():
        print(f"{order_id} {what if done else 'has no label that the carrier could act on'}")
    return 0 if all(told.values()) else 1


if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[1] not in ("picked-up", "delivered"):
        sys.exit("usage: python -m examples.shop.parcels picked-up|delivered ORDER_ID …")
    sys.exit(asyncio.run(main(sys.argv[1], sys.argv[2:])))
