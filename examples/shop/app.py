"""The six services of the shop, each to be run on its own: ``python -m skald run examples.shop.app:app
--service …``.
"""

from __future__ import annotations

from examples.shop.analytics import analytics
from examples.shop.inventory import inventory
from examples.shop.notifications import notifications
from examples.shop.orders import orders
from examples.shop.payments import payments
from examples.shop.shipping import shipping
from skald import App

app = App(orders, payments, inventory, shipping, notifications, analytics)
