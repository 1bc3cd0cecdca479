"""Processes as an operator sees them: the state of one, its timeouts, and what handlers did for its key."""

from __future__ import annotations

from typing import Any

import msgspec

from skald.clock import to_rfc3339
from skald.messaging.definition import Handler
from skald.messaging.processes import Kept, TimeoutDue
from skald.operations.events import readable
from skald.sql import blocks
from skald.store import Store

_SQL = blocks("skald.operations", "sagas")


class TimeoutView(msgspec.Struct, frozen=True):
    """One that is ``queued`` has yet to come; one that is ``parked`` has failed for good."""

    name: str
    due: str
    state: str


class EffectView(msgspec.Struct, frozen=True):
    """What a handler that can be compensated did for the key; ``refused`` are messages that came after its undoing."""

    handler: str
    state: str
    refused: list[str]
    created_at: str
    updated_at: str


class ProcessView(msgspec.Struct, frozen=True):
    """What is known of a process besides its row in ``saga_state``."""

    state: Any
    timeouts: list[TimeoutView]
    effects: list[EffectView]


def has_role(handler: Handler) -> bool:
    """Whether it is a function of a process."""
    return handler.keeps is not None and handler.keeps.role is not None


async def process_view(store: Store, name: str, key: str) -> ProcessView:
    rows = await store.fetch(_SQL["process"], name=name, key=key)
    kept = msgspec.json.decode(rows[0]["payload"], type=Kept) if rows else None
    timeouts = await store.fetch(_SQL["timeouts"], service=store.service, origin=f"{name}:{key}")
    effects = await store.fetch(_SQL["effects"], key=key)
    return ProcessView(
        state=None if kept is None else readable(bytes(kept.state)),
        timeouts=[_timeout(row) for row in timeouts],
        effects=[_effect(row) for row in effects],
    )


def _timeout(row: dict[str, Any]) -> TimeoutView:
    return TimeoutView(msgspec.json.decode(row["payload"], type=TimeoutDue).name, to_rfc3339(row["due"]), row["state"])


def _effect(row: dict[str, Any]) -> EffectView:
    refused = msgspec.json.decode(row["refused"], type=list[str]) if row["refused"] else []
    created, updated = to_rfc3339(row["created_at"]), to_rfc3339(row["updated_at"])
    return EffectView(row["handler"], row["state"], refused, created, updated)
