"""Commands that are run in this process, and how they end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec


class Ended(msgspec.Struct, frozen=True):
    status: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """There is exactly one."""
        return msgspec.json.decode(self.out)


Run = Callable[..., Ended]
