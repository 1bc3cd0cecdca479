"""A group that is soon written is written on the event loop; a larger one goes to a thread, and the loop turns."""

from __future__ import annotations

from pathlib import Path

import pytest

from skald.stores.sqlite import SqliteStore
from skald.unit import EntryKind, JournalEntry, Unit, WorkflowEnd, WorkflowStart, WorkflowState, WorkflowWrites


def writes(entries: int = 0, starts: int = 0, ends: int = 0, payload: bytes = b"null") -> Unit:
    return Unit(
        workflows=WorkflowWrites(
            journal=tuple(
                JournalEntry(f"run-{n}", 1, EntryKind.STEP_DONE, "take", b"12345678", 1, 0, payload)
                for n in range(entries)
            ),
            starts=tuple(
                WorkflowStart(f"run-{n}", f"id-{n}", "fulfil", None, 0, None, None, b"{}", 0) for n in range(starts)
            ),
            ends=tuple(WorkflowEnd(f"run-{n}", WorkflowState.COMPLETED, b"null", 0) for n in range(ends)),
        )
    )


@pytest.mark.parametrize(
    ("group", "at_once"),
    [
        (writes(entries=200, ends=100), True),  # a hundred sagas that end, each with its last result and its status
        (writes(entries=600), False),
        (writes(starts=100), True),
        (writes(starts=200), False),  # each stands in several indexes
        (writes(entries=10, payload=b'"' + 40_000 * b"x" + b'"'), True),
        (writes(entries=10, payload=b'"' + 400_000 * b"x" + b'"'), False),
    ],
)
async def test_only_what_keeps_the_loop_for_long_goes_to_the_thread(tmp_path: Path, group: Unit, at_once: bool) -> None:
    store = SqliteStore(tmp_path / "orders.db", "orders")
    await store.migrate()
    await store.open()
    try:
        await store.commit([Unit()])  # the first one looks how long the WAL is
        assert (store.commit_at_once([group]) is not None) == at_once
    finally:
        await store.close()
