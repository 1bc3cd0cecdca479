"""The stock is reserved first, and the card is charged after that."""

from __future__ import annotations

from examples.shop.orchestration.saga import fulfil_stock_first
from examples.shop.orchestration.services import application

app = application(fulfil_stock_first)
