"""Orders, notifications and analytics are those of the choreographed shop: what they hear is the same."""

from __future__ import annotations

from examples.shop.analytics import analytics
from examples.shop.hybrid.inventory import inventory
from examples.shop.hybrid.payments import payments
from examples.shop.hybrid.shipping import shipping
from examples.shop.notifications import notifications
from examples.shop.orders import orders
from skald import App

app = App(orders, payments, inventory, shipping, notifications, analytics)
