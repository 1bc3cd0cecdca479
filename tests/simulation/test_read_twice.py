"""Every message read twice, and the keys mixed in another order each time: the end is always the same.

Two owners at once, who handle the same messages, are in ``test_ownership``.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from skald import RuntimeSettings
from skald.errors import CursorMoved
from skald.messaging.batch import Stretch
from skald.messaging.consumer import ConsumerSettings
from skald.messaging.outcome import Item, LaneState
from tests.simulation.stage import Placed, playing
from tests.simulation.test_ownership import KEYS, Players, check

ROUNDS = 6


def mixed(seed: int) -> list[Placed]:
    """Every key's messages in their order, and the keys in any."""
    rng = random.Random(seed)
    keys = [key for key in KEYS for _ in range(ROUNDS)]
    rng.shuffle(keys)
    seen: Counter[str] = Counter()
    messages = []
    for key in keys:
        messages.append(Placed(key, seen[key]))
        seen[key] += 1
    return messages


@pytest.mark.parametrize("seed", range(4))
async def test_every_message_is_read_twice_in_any_order_of_keys(
    seed: int, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each transaction fails once when all of its handlers have run, and the cursors are read again."""
    apply = Stretch._apply
    failed: set[Any] = set()

    async def fails_once(
        self: Stretch, lanes: dict[int, LaneState], inner: Any, items: Sequence[Item], last: Any
    ) -> list[LaneState]:
        touched = await apply(self, lanes, inner, items, last)
        place = (self._origin, tuple(sorted(lanes)), last.position)
        if place not in failed:
            failed.add(place)
            raise CursorMoved(items[0].handler.name, self._origin, items[0].lane)
        return touched

    monkeypatch.setattr(Stretch, "_apply", fails_once)
    run = random.Random(seed).choice([1, 7, 50])
    settings = RuntimeSettings(consumer=ConsumerSettings(patience=30.0, poll=0.05, checkpoint=0.05, run=run))
    players = Players(store_url, settings)
    app = players.app("only")
    async with playing(app):
        for message in mixed(seed):
            await app.service("source").publish(message)
        await check(app, ROUNDS)
    handled = Counter(players.handled.items)
    assert len(handled) == len(KEYS) * ROUNDS
    assert min(handled.values()) >= 2, "a message was read once"
