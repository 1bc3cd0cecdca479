"""What a store keeps of workflows: starts, journal and ends, under the same guards as everything else."""

from __future__ import annotations

import pytest

from skald.errors import Fenced, Rejection, WorkflowExists
from skald.message import new_id
from skald.store import Store
from skald.testing.samples import START, commit, is_kind, place_fence, plain
from skald.unit import Committed, EntryKind, JournalEntry, Unit, WorkflowEnd, WorkflowStart, WorkflowState


def begun(id: str, run: str | None = None) -> WorkflowStart:
    return WorkflowStart(run or new_id(), id, "fulfil", "p", b'{"n":1}', START)


def entry(run: str, position: int, name: str = "charge", payload: bytes | None = b'"paid"') -> JournalEntry:
    return JournalEntry(run, position, EntryKind.STEP_DONE, name, b"\0\xff345678", 1, START + position, payload)


async def stored(store: Store) -> list[dict[str, object]]:
    return await store.fetch(
        "SELECT id, workflow, state, owner, input, outcome, ended_at FROM skald_workflows ORDER BY id"
    )


class WorkflowConformance:
    """``Unit.starts``, ``journal`` and ``ends``."""

    async def test_a_store_without_workflows_says_so(self, store: Store) -> None:
        await place_fence(store, "p")
        outcome = (await store.commit([Unit(fence="p", starts=(begun("a"),), events=plain().events)]))[0]
        assert isinstance(outcome, Committed if store.features.workflows else Rejection)
        assert (len(await store.log.read(0, 10)) == 1) == store.features.workflows

    async def test_a_workflow_from_start_to_end(self, store: Store) -> None:
        if not store.features.workflows:
            return
        await place_fence(store, "p")
        start = begun("a")
        await commit(store, Unit(fence="p", starts=(start,)))
        [row] = await stored(store)
        assert row == {
            "id": "a", "workflow": "fulfil", "state": "running", "owner": "p", "input": b'{"n":1}', "outcome": None,
            "ended_at": None,
        }  # fmt: skip
        end = WorkflowEnd(start.run, WorkflowState.COMPLETED, b'"shipped"', START + 9)
        entries = (entry(start.run, 1), entry(start.run, 2, "ship", None))
        await commit(store, Unit(fence="p", journal=entries, ends=(end,)))
        [row] = await stored(store)
        assert (row["state"], row["owner"], row["outcome"]) == ("completed", None, b'"shipped"')
        assert row["ended_at"] == START + 9
        journal = await store.fetch("SELECT * FROM skald_journal ORDER BY run, position")
        assert [(r["position"], r["name"], r["payload"]) for r in journal] == [
            (1, "charge", b'"paid"'),
            (2, "ship", None),
        ]
        assert journal[0]["digest"] == b"\0\xff345678"

    async def test_an_id_that_exists_rejects_its_unit_alone_and_whole(self, store: Store) -> None:
        if not store.features.workflows:
            return
        await place_fence(store, "p")
        await commit(store, Unit(fence="p", starts=(begun("a"),)))
        again = Unit(fence="p", starts=(begun("b"), begun("a")), events=plain().events)
        first, failed, last = await store.commit([plain(), again, Unit(fence="p", starts=(begun("c"),))])
        assert len(is_kind([first, last], Committed)) == 2
        assert isinstance(failed, WorkflowExists)
        assert failed.id == "a"
        assert [row["id"] for row in await stored(store)] == ["a", "c"]
        assert len(await store.log.read(0, 10)) == 1
        assert set(again.keys()) == {"workflow:a", "workflow:b"}, "a group holds one unit per id"

    async def test_a_place_in_a_journal_is_written_once(self, store: Store) -> None:
        if not store.features.workflows:
            return
        await place_fence(store, "p")
        start = begun("a")
        await commit(store, Unit(fence="p", starts=(start,)), Unit(fence="p", journal=(entry(start.run, 1),)))
        end = WorkflowEnd(start.run, WorkflowState.FAILED, b"{}", START)
        double = Unit(fence="p", journal=(entry(start.run, 2), entry(start.run, 1, "other")), ends=(end,))
        before, failed, after = await store.commit([plain(), double, plain()])
        assert len(is_kind([before, after], Committed)) == 2
        assert isinstance(failed, Rejection)
        assert await store.fetch("SELECT name FROM skald_journal") == [{"name": "charge"}]
        assert [row["state"] for row in await stored(store)] == ["running"]

    async def test_a_process_that_was_replaced_writes_nothing_of_a_workflow(self, store: Store) -> None:
        if not store.features.workflows:
            return
        await place_fence(store, "p")
        start = begun("a")
        await commit(store, Unit(fence="p", starts=(start,)))
        async with store.transaction() as tx:
            await tx.execute("DELETE FROM skald_fences WHERE process = 'p'")
        end = WorkflowEnd(start.run, WorkflowState.COMPLETED, b"1", START)
        late = [Unit(fence="p", journal=(entry(start.run, 1),)), Unit(fence="p", ends=(end,))]
        outcomes = await store.commit([*late, Unit(fence="p", starts=(begun("b"),))])
        assert len(is_kind(outcomes, Fenced)) == 3
        assert await store.fetch("SELECT name FROM skald_journal") == []
        assert [(row["id"], row["state"]) for row in await stored(store)] == [("a", "running")]

    async def test_a_workflow_starts_in_a_transaction_of_the_user_or_not_at_all(self, store: Store) -> None:
        if not store.features.workflows:
            return
        await place_fence(store, "p")
        async with store.transaction() as tx:
            await tx.apply(Unit(starts=(begun("a"),)))
            with pytest.raises(WorkflowExists):
                await tx.apply(Unit(starts=(begun("a"),)))

        async def fail() -> None:
            async with store.transaction() as tx:
                await tx.apply(Unit(starts=(begun("b"),)))
                raise LookupError

        with pytest.raises(LookupError):
            await fail()
        assert [row["id"] for row in await stored(store)] == ["a"]
