"""What a store shows of sagas: the view ``saga_state``, by their rows and their journals."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from skald.message import new_id
from skald.sagas.question import Change, Choice, Question, encode
from skald.store import Store
from skald.testing.samples import START, commit
from skald.unit import (
    NEW,
    EntryKind,
    JournalEntry,
    Mark,
    MarkKind,
    Unit,
    WorkflowEnd,
    WorkflowRest,
    WorkflowStart,
    WorkflowState,
    WorkflowWrites,
)
from skald.workflows.failure import Failure

_SECOND = 1_000_000


def begun(id: str, *, style: str | None = "orchestration", key: str | None = None) -> WorkflowStart:
    return WorkflowStart(new_id(), id, "launch", "p", None, None, key, b"{}", START, style=style)


def stepped(run: str, position: int, name: str, kind: EntryKind = EntryKind.STEP_DONE) -> JournalEntry:
    return JournalEntry(run, position, kind, name, b"12345678", 1, START + position * _SECOND, b"{}")


def entered(run: str, position: int, status: str, step: str | None = None, *, asking: bool = False) -> JournalEntry:
    question = Question(1, step or "", (Choice.SKIP,), Failure("E", "\0"), "launch", "a") if asking else None
    body = encode(Change(step, Failure("ValueError", '"\0"'), question))
    return JournalEntry(run, position, EntryKind.STATUS, status, b"", 0, START + position * _SECOND, body)


async def states(store: Store) -> list[dict[str, Any]]:
    return await store.fetch("SELECT * FROM saga_state ORDER BY saga_id")


async def journalled(store: Store, *entries: JournalEntry) -> None:
    await commit(store, Unit(workflows=WorkflowWrites(journal=entries)))


class SagaConformance:
    """Part of ``StoreConformance``."""

    async def test_the_view_lists_sagas_and_no_other_workflow(self, store: Store) -> None:
        saga = begun("a", key="basket")
        await commit(store, Unit(workflows=WorkflowWrites(starts=(saga, begun("b", style=None)))))
        [row] = await states(store)
        assert row.pop("age_seconds") > 0
        assert row == {
            "saga_id": "a", "name": "launch", "style": "orchestration", "current_step": None, "status": "IN_PROGRESS",
            "created_at": row["updated_at"], "updated_at": row["created_at"], "correlation_id": "a", "key": "basket",
            "run": saga.run,
        }  # fmt: skip

    async def test_the_view_lists_processes_and_no_other_mark(self, store: Store) -> None:
        first = Mark(MarkKind.PROCESS, "Checkout", "o-1", NEW, "running", START, b"{}", "paid", "c-1")
        later = replace(first, expected=1, state="ended", step="shipped", time=START + 90 * _SECOND)
        other = replace(first, name="Returns", step=None, correlation_id=None)
        await commit(store, Unit(marks=(first, other, replace(first, kind=MarkKind.EFFECT))))
        saga = begun("o-1")
        await commit(store, Unit(workflows=WorkflowWrites(starts=(saga,))))
        await commit(store, Unit(marks=(later,)))
        rows = await store.fetch("SELECT * FROM saga_state WHERE style = 'process' ORDER BY name")
        assert rows[1].pop("age_seconds") > 90
        assert rows == [
            {
                "saga_id": "o-1", "name": "Checkout", "style": "process", "current_step": "shipped",
                "status": "COMPLETED", "created_at": "2023-11-14T22:13:20.000Z",
                "updated_at": "2023-11-14T22:14:50.000Z", "age_seconds": 90.0, "correlation_id": "c-1", "key": "o-1",
                "run": None,
            },
            {
                "saga_id": "o-1", "name": "Returns", "style": "process", "current_step": None,
                "status": "IN_PROGRESS", "created_at": "2023-11-14T22:13:20.000Z",
                "updated_at": "2023-11-14T22:13:20.000Z", "correlation_id": None, "key": "o-1", "run": None,
            },
        ]  # fmt: skip
        assert [row["run"] for row in await store.fetch("SELECT run FROM saga_state WHERE style <> 'process'")] == [
            saga.run
        ]

    async def test_the_step_is_the_last_that_was_journalled_or_the_one_that_asks(self, store: Store) -> None:
        saga = begun("a")
        await commit(store, Unit(workflows=WorkflowWrites(starts=(saga,))))
        seen = []
        for entry in (
            stepped(saga.run, 1, "allocate"),
            stepped(saga.run, 2, "boot", EntryKind.STEP_FAILED),
            entered(saga.run, 3, "COMPENSATING", "boot"),
            stepped(saga.run, 4, "release", EntryKind.STEP_FAILED),
            entered(saga.run, 5, "COMPENSATION_FAILED", "allocate", asking=True),
            replace(stepped(saga.run, 6, "skald.sagas.answer"), kind=EntryKind.SIGNAL),
            entered(saga.run, 7, "COMPENSATING"),
        ):
            await journalled(store, entry)
            [row] = await states(store)
            seen.append((row["status"], row["current_step"]))
        assert seen == [
            ("IN_PROGRESS", "allocate"), ("IN_PROGRESS", "boot"), ("COMPENSATING", "boot"), ("COMPENSATING", "release"),
            ("COMPENSATION_FAILED", "allocate"), ("COMPENSATION_FAILED", "allocate"), ("COMPENSATING", "release"),
        ]  # fmt: skip

    @pytest.mark.parametrize(
        ("state", "entries", "status"),
        [
            (WorkflowState.COMPLETED, (), "COMPLETED"),
            (WorkflowState.COMPLETED, ("NEEDS_ATTENTION", "IN_PROGRESS"), "COMPLETED"),
            (WorkflowState.FAILED, ("COMPENSATING", "COMPENSATED"), "COMPENSATED"),
            (WorkflowState.FAILED, ("COMPENSATING",), "NEEDS_ATTENTION"),
            (WorkflowState.FAILED, (), "NEEDS_ATTENTION"),
            (WorkflowState.CANCELLED, ("COMPENSATING", "CANCELLED"), "CANCELLED"),
            (WorkflowState.CANCELLED, (), "CANCELLED"),
            (WorkflowState.TERMINATED, ("COMPENSATING", "COMPENSATION_FAILED"), "TERMINATED"),
        ],
    )
    async def test_the_status_of_an_ended_one_is_its_end(
        self, store: Store, state: WorkflowState, entries: tuple[str, ...], status: str
    ) -> None:
        saga = begun("a")
        await commit(store, Unit(workflows=WorkflowWrites(starts=(saga,))))
        journal = tuple(entered(saga.run, n, name, "boot") for n, name in enumerate(entries, start=1))
        end = WorkflowEnd(saga.run, state, b"{}", START + 90 * _SECOND)
        await commit(store, Unit(workflows=WorkflowWrites(journal=journal, ends=(end,))))
        [row] = await states(store)
        assert (row["status"], row["age_seconds"]) == (status, 90.0)

    async def test_one_that_is_paused_needs_a_person(self, store: Store) -> None:
        saga = begun("a")
        await commit(store, Unit(workflows=WorkflowWrites(starts=(saga,))))
        rest = WorkflowRest(saga.run, WorkflowState.PAUSED, None, b"{}")
        await commit(store, Unit(workflows=WorkflowWrites(rests=(rest,))))
        assert [row["status"] for row in await states(store)] == ["NEEDS_ATTENTION"]

    async def test_its_times_are_texts_in_utc(self, store: Store) -> None:
        saga = begun("a")
        await commit(store, Unit(workflows=WorkflowWrites(starts=(replace(saga, time=1_700_000_000_123_000),))))
        await journalled(store, replace(stepped(saga.run, 1, "allocate"), time=1_700_000_002_500_000))
        [row] = await states(store)
        assert (row["created_at"], row["updated_at"]) == ("2023-11-14T22:13:20.123Z", "2023-11-14T22:13:22.500Z")
