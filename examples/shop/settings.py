"""What may differ from run to run, from the environment (``SHOP_…``), so that a test need not wait."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TypeVar

import msgspec

from examples.shop.styles import DEFAULT

T = TypeVar("T", bound=msgspec.Struct)


class Settings(msgspec.Struct, frozen=True):
    style: str = DEFAULT
    """One of ``STYLES``."""
    keyed_url: str = "http://127.0.0.1:8081"
    """The provider that honours idempotency keys: card gateway and carrier."""
    keyless_url: str = "http://127.0.0.1:8082"
    """The provider that does not: e-mail, SMS and push."""
    catalogue_url: str = "http://127.0.0.1:8083"
    """Inventory's read API."""
    patience: float = 2.0
    """Seconds after which an unanswered call to a provider is given up."""
    charge_delays: tuple[float, ...] = (1.0, 3.0)
    label_delays: tuple[float, ...] = (1.0, 5.0, 30.0)
    undo_delays: tuple[float, ...] = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
    """Refunds, and the withdrawal of labels: these must succeed, so they are tried for long."""
    notify_delays: tuple[float, ...] = (1.0, 5.0, 30.0)


class Limits(msgspec.Struct, frozen=True):
    """What the gateway accepts before it says no."""

    max_body: int = 65_536
    """Bytes of a request."""
    body_within: float = 5.0
    """Seconds for a request to arrive in whole: who sends slowly would hold one of the places below for ever."""
    max_in_flight: int = 256
    """Requests at the same time, open event streams not counted."""
    max_streams: int = 1_000
    max_pending: int = 100
    """Orders of one customer that are still being processed."""
    look_every: float = 0.03
    """Seconds between two looks at the orders that somebody watches."""


def load(cls: type[T], environment: Mapping[str, str] = os.environ) -> T:
    """``SHOP_LABEL_DELAYS=0,0.1`` sets ``label_delays``; a value that does not fit is an error that names it."""
    values: dict[str, str | list[str]] = {}
    for name in cls.__struct_fields__:
        text = environment.get(f"SHOP_{name.upper()}")
        if text is not None:
            values[name] = text.split(",") if name.endswith("_delays") else text
    return msgspec.convert(values, cls, strict=False)


settings = load(Settings)
