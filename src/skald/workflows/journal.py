"""What the executor reads: workflows without an owner, their histories, and how one has ended."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from skald import failpoints
from skald.sql import blocks
from skald.store import Row, Store
from skald.unit import EntryKind, JournalEntry, Unit, WorkflowState
from skald.workflows.replay import End

_SQL = blocks("skald.workflows", "workflows")


class Open(msgspec.Struct, frozen=True):
    """A workflow that has not ended."""

    run: str
    id: str
    workflow: str
    input: bytes
    started_at: int
    history: tuple[JournalEntry, ...] = ()


class Known(msgspec.Struct, frozen=True):
    """A workflow that was started, by its id."""

    run: str
    workflow: str
    owner: str | None
    input: bytes
    end: End | None


async def by_id(store: Store, id: str) -> Known | None:
    rows = await store.fetch(_SQL["by_id"], id=id)
    if not rows:
        return None
    row = rows[0]
    state = WorkflowState(row["state"])
    end = None if state == WorkflowState.RUNNING else End(state, row["outcome"])
    return Known(str(row["run"]), row["workflow"], row["owner"], row["input"], end)


async def claim(store: Store, owner: str, most: int) -> list[Open]:
    """Takes workflows that nobody owns, with their histories. Raises ``Fenced`` if this process has lost its own."""
    async with store.transaction() as tx:
        await tx.apply(Unit(fence=owner))
        rows = await tx.fetch(_SQL["claim"], owner=owner, most=most)
        failpoints.hit("workflows.claiming")
    failpoints.hit("workflows.claimed")
    return await _with_histories(store, owner, rows)


async def mine(store: Store, owner: str, runs: Iterable[str]) -> list[Open]:
    """Those of the runs that this process owns and that have not ended."""
    rows = [row for run in runs for row in await store.fetch(_SQL["mine"], run=run, owner=owner)]
    return await _with_histories(store, owner, rows)


async def _with_histories(store: Store, owner: str, rows: list[Row]) -> list[Open]:
    if not rows:
        return []
    histories: dict[str, list[JournalEntry]] = {str(row["run"]): [] for row in rows}
    found = await store.fetch(_SQL["journal"], owner=owner, first=min(histories), last=max(histories))
    for row in found:
        if (history := histories.get(str(row["run"]))) is not None:
            history.append(JournalEntry(**{**row, "run": str(row["run"]), "kind": EntryKind(row["kind"])}))
    return [Open(**{**row, "run": str(row["run"])}, history=tuple(histories[str(row["run"])])) for row in rows]
