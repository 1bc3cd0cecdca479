"""Kills processes of the demo at random, with ``kill -9``, while orders flow."""

from __future__ import annotations

import asyncio
import random

from examples.shop.supervisor import Supervisor

BETWEEN = (0.2, 0.9)
"""Seconds from one kill to the next."""


class Havoc:
    def __init__(self, supervisor: Supervisor, seed: int) -> None:
        self._supervisor, self._draw = supervisor, random.Random(seed)
        self.kills = 0

    async def run(self) -> None:
        """Until cancelled. The supervisor starts again whatever falls."""
        while True:
            await asyncio.sleep(self._draw.uniform(*BETWEEN))
            self.kills += self._supervisor.kill(self._draw.choice(sorted(self._supervisor.children)))
