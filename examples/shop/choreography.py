"""Nobody coordinates: each service listens to what the one before it tells. The handlers are those of the services'
own files.
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
