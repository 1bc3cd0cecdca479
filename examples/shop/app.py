"""The six services of the shop in the style that ``SHOP_STYLE`` names, each to be run on its own: ``python -m skald run
examples.shop.app:app --service …``.
"""

from __future__ import annotations

from examples.shop.settings import settings
from examples.shop.styles import application

app = application(settings.style)
