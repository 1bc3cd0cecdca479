"""The hybrid shop: what the sagas inside its domains undo by themselves.

The failures of all styles are in ``test_shop_failures``, with this one among them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from examples.shop.house import House
from tests.acceptance.test_shop_failures import PACE, Shop

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module")
async def shop(tmp_path: Path) -> AsyncIterator[Shop]:
    async with (
        House(tmp_path, f"sqlite:{tmp_path}", style="hybrid", settings=PACE) as opened,
        httpx.AsyncClient(base_url=opened.url, timeout=10) as http,
    ):
        yield Shop(opened, http)


async def sagas(shop: Shop, service: str, order_id: str) -> list[str]:
    async with shop.house.app.connect(service):
        rows = await shop.house.app.service(service).fetch(
            "SELECT status FROM saga_state WHERE saga_id = :id", id=order_id
        )
    return [row["status"] for row in rows]


async def test_a_domain_undoes_its_own_part_by_itself(shop: Shop) -> None:
    """Lines that were reserved are put back where a later one is sold out; no stolen card is charged."""
    kept = await shop.placed_and_settled({"TEA-MINT": 2, "KETTLE": 1})
    stolen = await shop.placed_and_settled(card="card-stolen")
    sold_out = await shop.placed_and_settled({"TEA-EARL": 1, "MUG-BLUE": 3, "POT-GOLD": 1})

    assert (stolen["status"], stolen["reason"]) == ("CANCELLED", "card declined: reported as stolen")
    assert await shop.effects(stolen["order_id"]) == []
    assert (sold_out["status"], sold_out["reason"]) == ("CANCELLED", "POT-GOLD is out of stock")
    assert (await shop.facts(sold_out["order_id"]))["InventoryRejected"].body["sku"] == "POT-GOLD"
    await shop.balanced()
    tables = (await shop.house.books()).tables
    held = Counter(row["order_id"] for row in tables["reserved_items"])
    assert (held[kept["order_id"]], held[sold_out["order_id"]]) == (2, 0)
    assert [r["lines"] for r in tables["pick_lists"] if r["order_id"] == kept["order_id"]] == [
        "1 x KETTLE, 2 x TEA-MINT"
    ]
    assert [r["carrier"] for r in tables["pickups"] if r["order_id"] == kept["order_id"]] == ["van"]
    ended = {name: await sagas(shop, name, sold_out["order_id"]) for name in ("payments", "inventory", "shipping")}
    assert ended == {"payments": ["COMPLETED"], "inventory": ["COMPENSATED"], "shipping": []}
