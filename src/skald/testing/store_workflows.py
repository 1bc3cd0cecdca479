"""What a store keeps of workflows: runs, journals and letters, under the same guards as everything else."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import pytest
from msgspec.structs import replace

from skald.errors import Conflict, Fenced, Rejection, WorkflowExists, WorkflowKeyTaken
from skald.message import new_id
from skald.store import Store
from skald.testing.samples import START, commit, is_kind, place_fence, plain, records
from skald.unit import (
    NEW,
    AddressKind,
    Append,
    Committed,
    EntryKind,
    JournalEntry,
    Letter,
    LetterKind,
    Reply,
    Unit,
    WorkflowEnd,
    WorkflowRest,
    WorkflowStart,
    WorkflowState,
    WorkflowWrites,
)

NewStore = Callable[[], Awaitable[Store]]
Write = Callable[[Store, Unit], Awaitable[None]]
ODD = 'a "key",\x1f{NULL}\\'


def begun(id: str, *, key: str | None = None, again: bool = False) -> WorkflowStart:
    return WorkflowStart(new_id(), id, "fulfil", "p", None, None, key, b'{"n":1}', START, again)


def ended(start: WorkflowStart, state: WorkflowState = WorkflowState.COMPLETED) -> WorkflowEnd:
    return WorkflowEnd(start.run, state, b'"shipped"', START + 9)


def entry(run: str, position: int, name: str = "charge", payload: bytes | None = b'"paid"') -> JournalEntry:
    return JournalEntry(run, position, EntryKind.STEP_DONE, name, b"\0\xff345678", 1, START + position, payload)


def letter(id: str, kind: LetterKind = LetterKind.SIGNAL, payload: bytes = b"1", time: int = START) -> Letter:
    return Letter(id, kind, AddressKind.ID, "a", "approve", payload, time)


def starting(*starts: WorkflowStart) -> Unit:
    return Unit(workflows=WorkflowWrites(starts=starts))


def ending(*starts: WorkflowStart) -> Unit:
    return Unit(workflows=WorkflowWrites(ends=tuple(map(ended, starts))))


def stream(name: str) -> Unit:
    return Unit(appends=(Append(name, records(1), NEW),))


def sending(*letters: Letter) -> Unit:
    return Unit(workflows=WorkflowWrites(letters=letters))


async def in_a_group(store: Store, unit: Unit) -> None:
    await commit(store, unit)


async def in_a_transaction(store: Store, unit: Unit) -> None:
    async with store.transaction() as tx:
        await tx.apply(unit)


both_ways = pytest.mark.parametrize("write", [in_a_group, in_a_transaction])


async def runs(store: Store) -> list[tuple[object, ...]]:
    rows = await store.fetch("SELECT id, latest, state FROM skald_workflows ORDER BY id, run")
    return [tuple(row.values()) for row in rows]


async def letters_for(store: Store, column: str, value: str) -> list[object]:
    """As the owner of a workflow reads them."""
    sql = f"SELECT id FROM skald_letters WHERE {column} = :value AND taken = 0 ORDER BY id"
    return [row["id"] for row in await store.fetch(sql, value=value)]


class WorkflowConformance:
    """``Unit.workflows``."""

    @both_ways
    async def test_a_workflow_from_start_to_end(self, store: Store, write: Write) -> None:
        start = replace(begun("a", key="order-1"), parent=new_id(), correlation="c-1")
        await write(store, starting(start))
        [row] = await store.fetch("SELECT * FROM skald_workflows")
        assert row == {
            "run": start.run, "id": "a", "latest": 1, "workflow": "fulfil", "style": None, "state": "running",
            "owner": "p", "wake_at": None, "parent": start.parent, "key": "order-1", "input": b'{"n":1}',
            "outcome": None, "started_at": START, "ended_at": None, "deaths": 0, "correlation": "c-1",
        }  # fmt: skip
        entries = (entry(start.run, 1), entry(start.run, 2, "ship", None))
        await write(store, Unit(workflows=WorkflowWrites(journal=entries)))
        await write(store, ending(start))
        [after] = await store.fetch("SELECT * FROM skald_workflows")
        end = {"state": "completed", "owner": None, "outcome": b'"shipped"', "ended_at": START + 9}
        assert after == row | end
        journal = await store.fetch("SELECT * FROM skald_journal ORDER BY run, position")
        assert journal[0] == {
            "run": start.run, "position": 1, "kind": 0, "name": "charge", "digest": b"\0\xff345678", "occurrence": 1,
            "time": START + 1, "payload": b'"paid"',
        }  # fmt: skip
        assert [(row["name"], row["payload"]) for row in journal[1:]] == [("ship", None)]

    async def test_an_id_that_exists_rejects_its_unit_alone_and_whole(self, store: Store) -> None:
        start, old = begun("a"), begun("z")
        await commit(store, starting(start, old), sending(letter("told"), letter("asked", LetterKind.UPDATE)))
        await commit(store, ending(old))
        before = await store.fetch("SELECT * FROM skald_letters ORDER BY id")
        writes = WorkflowWrites(
            ends=(ended(start),),
            starts=(begun("b"), begun("z", again=True), begun("a")),
            journal=(entry(start.run, 1),),
            rests=(WorkflowRest(start.run, WorkflowState.PAUSED, None),),
            letters=(letter("new"),),
            taken=("told", "asked"),
            replies=(Reply("asked", b"1"),),
        )
        again = Unit(workflows=writes, events=plain().events)
        first, failed, last = await store.commit([plain(), again, starting(begun("c"))])
        assert len(is_kind([first, last], Committed)) == 2
        assert isinstance(failed, WorkflowExists)
        assert failed.id == "a"
        assert await runs(store) == [("a", 1, "running"), ("c", 1, "running"), ("z", 1, "completed")]
        assert await store.fetch("SELECT * FROM skald_journal") == []
        assert await store.fetch("SELECT * FROM skald_letters ORDER BY id") == before
        assert len(await store.log.read(0, 10)) == 1
        assert set(again.keys()) == {"workflow:a", "workflow:b", "workflow:z"}, "a group holds one unit per id"

    @both_ways
    async def test_an_id_may_be_used_again_after_its_end(self, store: Store, write: Write) -> None:
        first, second = begun("a"), begun("a", again=True)
        await write(store, starting(first))
        with pytest.raises(WorkflowExists):
            await write(store, starting(second))
        await write(store, ending(first))
        with pytest.raises(WorkflowExists):
            await write(store, starting(begun("a")))
        await write(store, starting(second, begun("never started before", again=True)))
        with pytest.raises(WorkflowExists):
            await write(store, starting(begun("a", again=True)))
        assert await runs(store) == [
            ("a", 0, "completed"),
            ("a", 1, "running"),
            ("never started before", 1, "running"),
        ]

    @both_ways
    async def test_a_workflow_goes_on_as_another_run_of_its_id_and_key(self, store: Store, write: Write) -> None:
        first, second = begun("a", key="k"), begun("a", key="k", again=True)
        await write(store, starting(first))
        end = ended(first, WorkflowState.CONTINUED)
        await write(store, Unit(workflows=WorkflowWrites(ends=(end,), starts=(second,))))
        assert await runs(store) == [("a", 0, "continued"), ("a", 1, "running")]
        [row] = await store.fetch("SELECT run FROM skald_workflows WHERE latest = 1")
        assert row["run"] == second.run

    @both_ways
    async def test_what_was_told_to_a_run_that_has_ended_does_not_reach_the_next_one(
        self, store: Store, write: Write
    ) -> None:
        kinds = (LetterKind.SIGNAL, LetterKind.UPDATE, LetterKind.CANCEL, LetterKind.TERMINATE, LetterKind.PAUSE)
        await write(store, sending(*(letter(kind.name, kind) for kind in kinds)))
        everything = sorted(kind.name for kind in kinds)
        # It may be cancelled before it is started,
        first, second, third = begun("a"), begun("a", again=True), begun("a", again=True)
        await write(store, starting(first))
        assert await letters_for(store, "to_id", "a") == everything
        # and what continues it is the same to whoever tells it something.
        end = ended(first, WorkflowState.CONTINUED)
        await write(store, Unit(workflows=WorkflowWrites(ends=(end,), starts=(second,))))
        assert await letters_for(store, "to_id", "a") == everything
        await write(store, ending(second))
        await write(store, starting(third))
        assert await letters_for(store, "to_id", "a") == ["SIGNAL"]

    @both_ways
    async def test_a_workflow_may_end_in_the_unit_that_starts_it(self, store: Store, write: Write) -> None:
        first, second, third = begun("a", key="k"), begun("a", key="k", again=True), begun("a", key="k", again=True)
        await write(store, Unit(workflows=WorkflowWrites(starts=(first,), ends=(ended(first),))))
        [row] = await store.fetch("SELECT state, owner, outcome, ended_at FROM skald_workflows")
        assert row == {"state": "completed", "owner": None, "outcome": b'"shipped"', "ended_at": START + 9}
        end = ended(second, WorkflowState.CONTINUED)
        await write(store, Unit(workflows=WorkflowWrites(starts=(second, third), ends=(end,))))
        assert await runs(store) == [("a", 0, "completed"), ("a", 0, "continued"), ("a", 1, "running")]

    async def test_an_end_counts_in_its_own_group_unless_it_is_rejected(self, store: Store) -> None:
        one, other = begun("a", key="k"), begun("b", key="m")
        await commit(store, starting(one, other))
        late = replace(ending(other), fence="replaced")
        units = [ending(one), late, starting(begun("a", key="k", again=True)), starting(begun("b", again=True))]
        outcomes = await store.commit([*units, starting(begun("c", key="m"))])
        assert [type(outcome) for outcome in outcomes] == [
            Committed, Fenced, Committed, WorkflowExists, WorkflowKeyTaken,
        ]  # fmt: skip
        assert await runs(store) == [("a", 0, "completed"), ("a", 1, "running"), ("b", 1, "running")]

    @both_ways
    @pytest.mark.parametrize("key", ["k", ODD])
    async def test_a_key_belongs_to_one_open_workflow(self, store: Store, write: Write, key: str) -> None:
        start = begun("the \x1f first", key=key)
        await write(store, starting(start, begun("without a key"), begun("neither")))
        unit = starting(begun("b", key=key))
        with pytest.raises(WorkflowKeyTaken) as caught:
            await write(store, unit)
        assert (caught.value.key, caught.value.id) == (key, "the \x1f first")
        assert set(unit.keys()) == {"workflow:b", f"workflow key:{key}"}, "a group holds one unit per key"
        await write(store, ending(start))
        await write(store, unit)
        assert ("b", 1, "running") in await runs(store)

    async def test_a_place_in_a_journal_is_written_once(self, store: Store) -> None:
        start = begun("a")
        await commit(store, starting(start), Unit(workflows=WorkflowWrites(journal=(entry(start.run, 1),))))
        entries = (entry(start.run, 2), entry(start.run, 1, "other"))
        double = Unit(workflows=WorkflowWrites(journal=entries, ends=(ended(start),), letters=(letter("l"),)))
        before, failed, after = await store.commit([plain(), double, starting(begun("b"))])
        assert len(is_kind([before, after], Committed)) == 2
        assert isinstance(failed, Rejection)
        with pytest.raises(Rejection):
            await in_a_transaction(store, double)
        assert await store.fetch("SELECT name FROM skald_journal") == [{"name": "charge"}]
        assert await runs(store) == [("a", 1, "running"), ("b", 1, "running")]
        assert await letters_for(store, "to_id", "a") == []

    async def test_a_process_that_was_replaced_writes_nothing_of_a_workflow(self, store: Store) -> None:
        await place_fence(store, "p")
        start = begun("a")
        await commit(store, replace(starting(start), fence="p"))
        async with store.transaction() as tx:
            await tx.execute("DELETE FROM skald_fences WHERE process = 'p'")
        rest = WorkflowRest(start.run, WorkflowState.RUNNING, 5)
        late = [
            ending(start),
            starting(begun("b")),
            sending(letter("l")),
            Unit(workflows=WorkflowWrites(journal=(entry(start.run, 1),))),
            Unit(workflows=WorkflowWrites(rests=(rest,))),
        ]
        outcomes = await store.commit([replace(unit, fence="p") for unit in late])
        assert len(is_kind(outcomes, Fenced)) == len(late)
        assert await store.fetch("SELECT name FROM skald_journal") == []
        assert await store.fetch("SELECT id FROM skald_letters") == []
        assert await store.fetch("SELECT id, owner FROM skald_workflows") == [{"id": "a", "owner": "p"}]

    async def test_a_workflow_starts_in_a_transaction_of_the_user_or_not_at_all(self, store: Store) -> None:
        async with store.transaction() as tx:
            await tx.apply(starting(begun("a")))
            with pytest.raises(WorkflowExists):
                await tx.apply(starting(begun("b"), begun("a")))

        async def fail() -> None:
            async with store.transaction() as tx:
                await tx.apply(starting(begun("b")))
                raise LookupError

        with pytest.raises(LookupError):
            await fail()
        assert await runs(store) == [("a", 1, "running")]

    @both_ways
    async def test_a_workflow_rests_until_a_time_or_until_it_is_resumed(self, store: Store, write: Write) -> None:
        start = begun("a")
        waiting = replace(begun("b"), owner=None, wake_at=START)
        await write(store, starting(start, waiting))
        sql = "SELECT id, state, owner, wake_at, outcome, ended_at FROM skald_workflows ORDER BY id"
        due = {"id": "b", "state": "scheduled", "owner": None, "wake_at": START, "outcome": None, "ended_at": None}
        assert (await store.fetch(sql))[1] == due
        await write(store, Unit(workflows=WorkflowWrites(rests=(WorkflowRest(start.run, WorkflowState.RUNNING, 7),))))
        assert await store.fetch(sql) == [due | {"id": "a", "state": "running", "wake_at": 7}, due]
        rest = WorkflowRest(start.run, WorkflowState.PAUSED, None, b"diverged")
        await write(store, Unit(workflows=WorkflowWrites(rests=(rest,))))
        paused = {"id": "a", "state": "paused", "wake_at": None, "outcome": b"diverged"}
        assert await store.fetch(sql) == [due | paused, due]
        await write(store, ending(waiting))
        assert (await store.fetch(sql))[1]["wake_at"] is None

    @both_ways
    async def test_letters_wait_for_an_id_a_key_or_a_run_until_they_are_taken(self, store: Store, write: Write) -> None:
        run = new_id()
        kinds = (LetterKind.SIGNAL, LetterKind.CANCEL, LetterKind.CHILD)
        addresses = ("order", ODD, run)
        letters = [
            Letter(f"l{by}", kind, by, address, "approve", b'"x"', START)
            for by, kind, address in zip(AddressKind, kinds, addresses, strict=True)
        ]
        await write(store, sending(*letters))
        [row] = await store.fetch("SELECT * FROM skald_letters WHERE id = 'l2'")
        assert row == {
            "id": "l2", "kind": 5, "to_id": None, "to_key": None, "to_run": run, "name": "approve", "payload": b'"x"',
            "time": START, "taken": 0, "outcome": None,
        }  # fmt: skip
        for number, (column, address) in enumerate(zip(("to_id", "to_key", "to_run"), addresses, strict=True)):
            assert await letters_for(store, column, address) == [f"l{number}"]
            await write(store, Unit(workflows=WorkflowWrites(taken=(f"l{number}", "no such letter"))))
            assert await letters_for(store, column, address) == []
        assert await store.fetch("SELECT id FROM skald_letters") == []

    @both_ways
    async def test_an_update_stays_with_its_reply(self, store: Store, write: Write) -> None:
        await write(store, sending(letter("u", LetterKind.UPDATE), letter("v", LetterKind.UPDATE)))
        await write(store, Unit(workflows=WorkflowWrites(taken=("u",))))
        assert await letters_for(store, "to_id", "a") == ["v"]
        sql = "SELECT id, taken, outcome FROM skald_letters ORDER BY id"
        taken = {"id": "u", "taken": 1, "outcome": None}
        assert await store.fetch(sql) == [taken, {"id": "v", "taken": 0, "outcome": None}]
        replies = (Reply("u", b'"done"'), Reply("v", b'"at once"'))
        await write(store, Unit(workflows=WorkflowWrites(replies=replies)))
        assert await store.fetch(sql) == [
            taken | {"outcome": b'"done"'},
            {"id": "v", "taken": 1, "outcome": b'"at once"'},
        ]

    @both_ways
    async def test_a_call_can_be_read_with_its_first_answer(self, store: Store, write: Write) -> None:
        run, later, sql = new_id(), START + 9, "SELECT id, kind, taken, payload, outcome FROM skald_letters ORDER BY id"
        calls = [Letter(id, LetterKind.CALL, AddressKind.RUN, run, f"Pay:{id}:1", b"", START) for id in ("c", "d", "e")]
        await write(store, sending(*calls))
        assert await letters_for(store, "to_run", run) == []
        open_calls = await store.fetch("SELECT id FROM skald_letters WHERE to_run = :run AND taken = 2", run=run)
        assert [row["id"] for row in open_calls] == ["c", "d", "e"]
        answers = Reply("c", b'"first"'), Reply("nobody's", b"1"), Reply("c", b'"second"')
        await write(store, Unit(workflows=WorkflowWrites(replies=answers, taken=("d",))))
        await write(store, Unit(workflows=WorkflowWrites(replies=(Reply("c", b'"third"'), Reply("d", b'"late"')))))
        answered = {"id": "c", "kind": 9, "taken": 0, "payload": b'"first"', "outcome": None}
        still_open = {"id": "e", "kind": 8, "taken": 2, "payload": b"", "outcome": None}
        assert await store.fetch(sql) == [answered, still_open]
        assert await letters_for(store, "to_run", run) == ["c"]
        await write(store, sending(replace(calls[0], time=later)))
        assert await store.fetch(sql) == [answered, still_open]
        await write(store, Unit(workflows=WorkflowWrites(taken=("c", "e"), replies=(Reply("c", b'"too late"'),))))
        assert await store.fetch(sql) == []

    @both_ways
    async def test_only_progress_is_replaced(self, store: Store, write: Write) -> None:
        progress = [letter("p", LetterKind.PROGRESS, b"%d" % n, START + n) for n in range(4)]
        signals = [letter("s", LetterKind.SIGNAL, b"%d" % n, START + n) for n in range(4)]
        await write(store, sending(*progress[:2], *signals[:2]))
        sql = "SELECT id, payload, time FROM skald_letters ORDER BY id"
        signal = {"id": "s", "payload": b"0", "time": START}
        assert await store.fetch(sql) == [{"id": "p", "payload": b"1", "time": START + 1}, signal]
        await write(store, sending(progress[2], signals[2]))
        assert await store.fetch(sql) == [{"id": "p", "payload": b"2", "time": START + 2}, signal]
        await commit(store, sending(progress[2]), sending(progress[3]), sending(signals[3]))
        assert await store.fetch(sql) == [{"id": "p", "payload": b"3", "time": START + 3}, signal]

    async def test_a_unit_is_written_in_the_order_of_its_parts(self, store: Store) -> None:
        start = begun("a")
        rest = WorkflowRest(start.run, WorkflowState.RUNNING, 7)
        writes = WorkflowWrites(starts=(start,), rests=(rest,), letters=(letter("l"), letter("m")), taken=("l",))
        await commit(store, Unit(workflows=writes))
        assert await store.fetch("SELECT owner, wake_at FROM skald_workflows") == [{"owner": None, "wake_at": 7}]
        assert await letters_for(store, "to_id", "a") == ["m"]

    async def test_of_two_processes_that_start_the_same_id_or_key_one_wins(self, new_store: NewStore) -> None:
        handles = [await new_store(), await new_store()]
        count = 20
        olds = [begun(f"i{n}") for n in range(count)]
        await commit(handles[0], starting(*olds))
        await commit(handles[0], ending(*olds))
        for n in range(count):
            groups = [
                [
                    plain(),
                    starting(begun(f"i{n}", again=True)),
                    starting(begun(f"j{n}")),
                    starting(begun(f"k{n}{process}", key=f"k{n}")),
                ]
                for process in "pq"
            ]
            pairs = zip(handles, groups, strict=True)
            outcomes = await asyncio.gather(*(handle.commit(group, patient=True) for handle, group in pairs))
            by_unit = [{type(outcome) for outcome in both} for both in zip(*outcomes, strict=True)]
            taken = [{Committed, kind} for kind in (WorkflowExists, WorkflowExists, WorkflowKeyTaken)]
            assert by_unit == [{Committed}, *taken]
        assert len(await handles[0].log.read(0, 200)) == 2 * count
        [row] = await handles[0].fetch("SELECT count(*) AS n FROM skald_workflows WHERE ended_at IS NULL")
        assert row["n"] == 3 * count

    @pytest.mark.parametrize(
        ("theirs", "mine", "rejection"),
        [
            (begun("a"), begun("a"), WorkflowExists),
            (begun("a"), begun("a", again=True), WorkflowExists),
            (begun("old", again=True), begun("old", again=True), WorkflowExists),
            (begun("a", key="k"), begun("b", key="k"), WorkflowKeyTaken),
        ],
    )
    @pytest.mark.parametrize("behind_a_stream", [False, True])
    async def test_a_start_that_waits_for_another_process_sees_what_it_did(
        self,
        new_store: NewStore,
        theirs: WorkflowStart,
        mine: WorkflowStart,
        rejection: type[Rejection],
        behind_a_stream: bool,
    ) -> None:
        here, there = await new_store(), await new_store()
        old = begun("old")
        await commit(here, starting(old), stream("warm"))
        await commit(here, ending(old))
        applied = asyncio.Event()

        async def start() -> Sequence[Committed | Rejection]:
            await applied.wait()
            return await here.commit([stream("s"), starting(mine)][not behind_a_stream :], patient=True)

        # Made outside of the transaction, which it may have to wait for.
        task = asyncio.create_task(start())
        async with there.transaction() as tx:
            await tx.apply(stream("s"))
            await tx.apply(starting(theirs))
            applied.set()
            for _ in range(30):
                await tx.now()
        outcomes = [type(outcome) for outcome in await task]
        assert outcomes == [Conflict, rejection][not behind_a_stream :]
        [row] = await here.fetch("SELECT run FROM skald_workflows WHERE ended_at IS NULL")
        assert row["run"] == theirs.run
