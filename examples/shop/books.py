"""Reads everything that the audit is about: each service's tables and log, and the providers' ledgers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from skald import App, Service

Row = dict[str, Any]

TABLES = {
    "orders": ("orders", "prices"),
    "payments": ("payments", "tasks"),
    "inventory": ("items", "reservations", "reserved_items", "pick_lists"),
    "shipping": ("shipments", "pickups"),
    "notifications": ("sent",),
    "analytics": ("orders_per_minute", "revenue_per_day", "outcomes_per_day"),
}
PAGE = 1_000


class Fact(msgspec.Struct, frozen=True):
    """A message as it stands in a service's log."""

    position: int
    id: str
    type: str
    key: str
    time: int
    correlation: str
    cause: str | None
    body: Row

    @property
    def order_id(self) -> str:
        return str(self.body["order_id"])


class Books(msgspec.Struct, frozen=True):
    tables: dict[str, list[Row]]
    logs: dict[str, list[Fact]]
    """By service, each in its order."""
    keyed: list[Row]
    keyless: list[Row]
    """The ledgers of the two providers."""

    def facts(self, service: str, *types: str) -> list[Fact]:
        return [fact for fact in self.logs[service] if not types or fact.type in types]


async def collect(application: App, ledgers: Path) -> Books:
    """Best when nothing is moving; what moves meanwhile shows up as a difference, and is gone at the next
    reading.
    """
    tables: dict[str, list[Row]] = {}
    logs: dict[str, list[Fact]] = {}
    async with application.connect(*TABLES):
        for name, names in TABLES.items():
            service = application.service(name)
            for table in names:
                tables[table] = await service.fetch(f"SELECT * FROM {table}")
            logs[name] = await _log(service)
        # Not their steps: those go on for a moment when the order is at rest.
        sagas = "SELECT saga_id AS order_id, status FROM saga_state"
        tables["sagas"] = await application.service("orders").fetch(sagas)
    return Books(tables, logs, ledger(ledgers / "keyed.jsonl"), ledger(ledgers / "keyless.jsonl"))


async def _log(service: Service) -> list[Fact]:
    facts: list[Fact] = []
    position = 0
    while records := await service.store.log.read(position + 1, PAGE):
        position = records[-1].position
        facts += [
            Fact(
                r.position,
                r.id,
                r.type,
                r.key,
                r.time,
                r.correlation_id,
                r.causation_id,
                json.loads(r.payload or b"{}"),
            )
            for r in records
        ]
    return facts


def ledger(path: Path) -> list[Row]:
    """Whole lines only: the last one may be in the writing."""
    if not path.exists():
        return []
    text = path.read_bytes()
    return [json.loads(line) for line in text[: text.rfind(b"\n") + 1].splitlines()]
