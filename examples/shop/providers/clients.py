"""The clients of the two providers. No answer in time, or an answer of 5xx, is ``Unavailable``: the outcome
is open.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import httpx
import msgspec


class Unavailable(Exception):
    """The provider did not answer, or said that it cannot: what was asked may have happened all the same."""


class Answer(msgspec.Struct, frozen=True):
    """What the keyed provider says about one request, whenever and however often it is asked."""

    id: str
    status: str
    """``done``, or why nothing was done: ``declined``, ``refused``, ``nothing``, ``handed over``."""
    reason: str | None = None
    amount: int = 0
    original: str = ""
    """The id of the effect that this one undoes or continues."""


class _Client:
    def __init__(self, url: str, patience: float) -> None:
        self._http = httpx.AsyncClient(base_url=url, timeout=patience)

    async def close(self) -> None:
        await self._http.aclose()

    async def _call(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            response = await self._http.request(method, path, **options)
        except httpx.TransportError as error:
            raise Unavailable(f"{method} {path}: {type(error).__name__}") from error
        if response.status_code >= 500:
            raise Unavailable(f"{method} {path}: {response.status_code}")
        response.raise_for_status()
        return response

    async def _effect(self, path: str, key: str, **body: Any) -> Answer:
        response = await self._call("POST", path, json=body, headers={"Idempotency-Key": key})
        return msgspec.json.decode(response.content, type=Answer)


class CardGateway(_Client):
    async def charge(self, order_id: str, card: str, amount: int, *, key: str) -> Answer:
        return await self._effect("/charges", key, reference=order_id, card=card, amount=amount)

    async def refund(self, order_id: str, reason: str, *, key: str) -> Answer:
        """Gives back what was charged for the order, if anything was, and refuses any later charge for it."""
        return await self._effect("/refunds", key, reference=order_id, reason=reason)


class Carrier(_Client):
    async def label(self, order_id: str, skus: Iterable[str], *, key: str) -> Answer:
        return await self._effect("/labels", key, reference=order_id, skus=list(skus))

    async def withdraw(self, order_id: str, reason: str, *, key: str) -> Answer:
        """Cancels the order's label, if there is one, unless the parcel was picked up; refuses any later
        label.
        """
        return await self._effect("/withdrawals", key, reference=order_id, reason=reason)

    async def pick_up(self, order_id: str, *, key: str) -> Answer:
        return await self._effect("/pickups", key, reference=order_id)

    async def deliver(self, order_id: str, *, key: str) -> Answer:
        return await self._effect("/deliveries", key, reference=order_id)


class Messenger(_Client):
    """E-mail, SMS and push. It honours no keys: look up before anything is sent again."""

    async def sent(self, reference: str) -> bool:
        return bool((await self._call("GET", "/messages", params={"reference": reference})).json())

    async def send(self, channel: str, order_id: str, to: str, text: str, *, reference: str) -> None:
        body = {"order": order_id, "to": to, "text": text, "reference": reference}
        await self._call("POST", f"/{channel}", json=body)


class Item(msgspec.Struct, frozen=True):
    """An article as inventory's catalogue shows it. ``version`` grows with every change."""

    sku: str
    name: str
    price: int
    note: str
    version: int


class Catalogue(_Client):
    """Inventory's read API."""

    async def item(self, sku: str) -> Item:
        return msgspec.json.decode((await self._call("GET", f"/items/{sku}")).content, type=Item)
