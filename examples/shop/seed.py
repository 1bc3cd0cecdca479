"""Fills the warehouse: ``python -m examples.shop.seed`` makes the tables and puts the articles on sale.

Orders hears of them by CatalogueItemChanged and looks up what they cost, so its price table fills by itself.
"""

from __future__ import annotations

import asyncio

from examples.shop.app import app
from examples.shop.inventory import offer
from skald import App, Service

PLENTY = 1_000_000

ARTICLES = (
    ("TEA-EARL", "Earl Grey, 100 g", 5_90, "", PLENTY),
    ("TEA-MINT", "Fresh mint, 50 g", 3_40, "", PLENTY),
    ("MUG-BLUE", "Blue mug", 12_50, "", PLENTY),
    ("KETTLE", "Kettle, one litre", 49_00, "", PLENTY),
    ("CUP-LAST", "Cup, end of line", 19_00, "only five left", 5),
    ("POT-GOLD", "Golden teapot", 999_00, "sold out: cancelled and refunded", 0),
    ("CACTUS", "Cactus", 15_00, "the carrier answers late: confirmed all the same", PLENTY),
    ("ANVIL", "Anvil", 250_00, "the carrier never answers: cancelled and refunded", PLENTY),
    ("BALLOON", "Balloon", 3_00, "labelled, but the carrier never says so: withdrawn, refunded", PLENTY),
)


async def stock_up(service: Service) -> None:
    """Once: an article that is on sale already is left as it is. The service must be connected."""
    known = {row["sku"] for row in await service.fetch("SELECT sku FROM items")}
    async with service.transaction() as tx:
        for sku, name, price, note, received in ARTICLES:
            if sku not in known:
                await offer(tx, sku, name, price, note, received)


async def main(application: App = app) -> None:
    service = application.service("inventory")
    await application.migrate()
    async with application.connect(service.name):
        await stock_up(service)


if __name__ == "__main__":
    asyncio.run(main())
