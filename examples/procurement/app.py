"""The three services, each with its own database: ``skald run examples.procurement.app:app --service vendors``."""

from __future__ import annotations

from examples.procurement.purchasing import purchasing
from examples.procurement.vendors import vendors
from examples.procurement.warehouse import warehouse
from skald import App

app = App(purchasing, vendors, warehouse)
