"""The same business in several styles: on the same events and tables, with the same functions, behind the same
gateway. They differ in who tells whom what to do.
"""

from __future__ import annotations

import importlib

from skald import App

STYLES = {
    "choreography": "examples.shop.choreography",
    "stock-first": "examples.shop.stock_first",
    "orchestration": "examples.shop.orchestration.app",
    "hybrid": "examples.shop.hybrid.app",
    "orchestration-stock-first": "examples.shop.orchestration.stock_first",
}
"""Style to the module that makes its six services: their application is its ``app``."""
DEFAULT = "choreography"


class UnknownStyle(Exception):
    def __init__(self, style: str) -> None:
        super().__init__(f"there is no style {style!r} (SHOP_STYLE); there are: {', '.join(STYLES)}")


def application(style: str) -> App:
    if style not in STYLES:
        raise UnknownStyle(style)
    found = importlib.import_module(STYLES[style]).app
    assert isinstance(found, App)
    return found
