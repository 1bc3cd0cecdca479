"""A workflow as a machine: entries in, steps to run out; the same again from any prefix of its journal."""

from __future__ import annotations

import asyncio
import random
import re
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from skald import step, workflow
from skald.errors import ConfigurationError, Diverged, InvalidMessage, StepFailed
from skald.message import new_id
from skald.unit import EntryKind, JournalEntry, WorkflowState
from skald.workflows import context
from skald.workflows.definition import Call, Workflow
from skald.workflows.replay import Evicted, Machine, decode_failure, encode_failure

START = 1_700_000_000_000_000
SEEDS = range(60)
_encode = msgspec.json.encode


@step
async def plus(n: int, by: int = 1, *, times: int = 1) -> int:
    raise AssertionError("machines run no steps")


@step
async def shaky(n: int) -> int:
    raise AssertionError


@workflow
async def tangled(width: int) -> list[Any]:
    """Branches, timers, a race, failures, equal calls, random numbers."""
    seen: list[Any] = [context.random().randrange(1000), context.now().timestamp()]

    async def branch(n: int) -> int:
        total = 0
        for turn in range(2):
            total += await plus(n, by=turn)
            if n % 2:
                await asyncio.sleep(n)  # sleep: a durable timer
        try:
            total += await shaky(n)
        except StepFailed as error:
            seen.append(error.message)
        return total

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(branch(n)) for n in range(width)]
    seen += [task.result() for task in tasks]
    seen += await asyncio.gather(*(plus(7) for _ in range(3)))
    try:
        seen.append(await asyncio.wait_for(plus(100), 5))
    except TimeoutError:
        seen.append("late")
    done, pending = await asyncio.wait(
        [asyncio.create_task(plus(n, times=9)) for n in range(3)], return_when=asyncio.FIRST_COMPLETED
    )
    for task in pending:
        task.cancel()
    seen += sorted([task.result() for task in done])
    seen += [str(context.uuid()), context.now().timestamp()]
    return seen


def start(definition: Workflow[..., Any], *args: Any, run: str | None = None) -> Machine:
    return Machine(definition, run or new_id(), definition.signature.encode(args, {}), START)


def entry(machine: Machine, call: Call, value: Any, time: int) -> JournalEntry:
    if isinstance(value, Exception):
        kind, body = EntryKind.STEP_FAILED, encode_failure(value)
    else:
        kind, body = EntryKind.STEP_DONE, _encode(value)
    return JournalEntry(machine.run, machine.position + 1, kind, *call.identity, time, body)


def timer(machine: Machine) -> JournalEntry:
    due = machine.wake_at()
    assert due is not None
    return JournalEntry(machine.run, machine.position + 1, EntryKind.TIMER, "", b"", 0, due, None)


Told = tuple[list[JournalEntry], list[set[tuple[str, bytes, int]]]]


def play(machine: Machine, chance: random.Random) -> Told:
    """To the end, in an order that ``chance`` picks; the journal, and what was waited for after each entry."""
    machine.begin()
    return go_on(machine, chance)


def go_on(machine: Machine, chance: random.Random) -> Told:
    journal: list[JournalEntry] = []
    waiting: dict[tuple[str, bytes, int], Call] = {}
    states = []
    while True:
        waiting.update((call.identity, call) for call in machine.called)
        waiting = {identity: call for identity, call in waiting.items() if machine.awaits(call)}
        machine.called, machine.dropped = [], []
        states.append(set(waiting))
        if machine.end is not None:
            return journal, states
        possible: list[Call | None] = sorted(waiting.values(), key=str)  # type: ignore[assignment]
        if machine.wake_at() is not None:
            possible.append(None)
        call = chance.choice(possible)
        if call is None:
            told = timer(machine)
        else:
            value = ValueError(f"no {call}") if call.step is shaky and chance.random() < 0.5 else chance.randrange(50)
            told = entry(machine, call, value, machine.time + chance.randrange(2_000_000))
        journal.append(told)
        machine.deliver(told)


def test_without_a_failure_that_was_forgotten_every_replay_agrees_on_what_still_fits() -> None:
    kept = lost = 0
    for seed in SEEDS:
        chance = random.Random(seed)
        machine = start(tangled, 4)
        journal, _ = play(machine, chance)
        for _ in range(2):  # and once more, of what came of the first time
            failed = [told.position for told in journal if told.kind == EntryKind.STEP_FAILED]
            if not failed:
                break
            place = chance.choice(failed)
            last = chance.randint(place, len(journal))
            without = replace(journal[place - 1], kind=EntryKind.FORGOTTEN, digest=last.to_bytes(4, "big"))
            history = [*journal[: place - 1], without, *journal[place:last]]
            again = start(tangled, 4, run=machine.run)
            again.replay(history)
            assert again.position == last
            more, _ = go_on(again, chance)
            journal = [*history, *more]
            final = start(tangled, 4, run=machine.run)
            final.replay(journal)
            assert final.end is not None
            assert final.end == again.end, f"seed {seed}"
            behind, redone = ({(e.name, e.digest, e.occurrence) for e in part} for part in (history[place:], more))
            kept, lost = kept + len(behind - redone), lost + len(behind & redone)
    assert kept > 0
    assert lost > 0


def test_every_prefix_of_a_journal_leads_to_the_same_place() -> None:
    for seed in SEEDS:
        machine = start(tangled, 4)
        journal, states = play(machine, random.Random(seed))
        for length in range(len(journal) + 1):
            again = start(tangled, 4, run=machine.run)
            again.replay(journal[:length])
            assert {call.identity for call in again.called} == states[length], f"seed {seed}, after {length} entries"
            assert again.position == length
            assert (again.end is not None) == (length == len(journal))
            assert again.leave() == []
        final = start(tangled, 4, run=machine.run)
        final.replay(journal)
        assert final.end == machine.end, f"seed {seed}"
        assert final.end is not None
        assert final.end.state == WorkflowState.COMPLETED


def test_a_call_is_known_by_name_arguments_and_occurrence() -> None:
    @workflow
    async def equal() -> list[int]:
        return list(await asyncio.gather(plus(1), plus(1), plus(1, 1), plus(n=1, times=1), plus(2), shaky(1)))

    machine = start(equal)
    machine.begin()
    called = [call.identity for call in machine.called]
    assert [(name, digest == called[0][1], occurrence) for name, digest, occurrence in called] == [
        ("plus", True, 1),
        ("plus", True, 2),
        ("plus", True, 3),
        ("plus", True, 4),
        ("plus", False, 1),
        ("shaky", True, 1),
    ]


def test_a_journal_of_other_code_is_an_error_that_names_both_sides_and_the_position() -> None:
    @workflow(name="flow")
    async def old(n: int) -> int:
        return await shaky(await plus(n))

    @workflow(name="flow")
    async def new(n: int) -> int:
        return await plus(await plus(n), 5)

    @workflow(name="flow")
    async def shorter(n: int) -> int:
        return await plus(n)

    @workflow(name="flow")
    async def sleepy(n: int) -> int:
        await asyncio.sleep(n)  # sleep: a durable timer
        return n

    journal, _ = play(start(old, 1), random.Random(1))
    with pytest.raises(Diverged) as caught:
        start(new, 1).replay(journal)
    assert caught.value.position == 2
    assert "shaky#1" in caught.value.history
    assert "waits for plus#1" in caught.value.code
    with pytest.raises(Diverged, match=r"position 2 .* has ended \(completed\)"):
        start(shorter, 1).replay(journal)
    with pytest.raises(Diverged, match=r"position 1 .* waits for a timer"):
        start(sleepy, 1).replay(journal)
    other, _ = play(start(sleepy, 1), random.Random(1))
    with pytest.raises(Diverged, match=r"position 1 .* a timer that fired, .* waits for plus#1"):
        start(old, 1).replay(other)


def test_a_replay_passes_over_stages() -> None:
    @workflow(name="flow")
    async def staged(n: int) -> int:
        context.stage("BEGUN")
        n = await plus(n)
        context.stage("HALF_WAY")
        return await plus(n, 5)

    @workflow(name="flow")
    async def renamed(n: int) -> int:
        n = await plus(n)
        context.stage("SECOND_HALF")
        return await plus(n, 5)

    machine = start(staged, 1)
    machine.begin()
    [first] = machine.called
    told = entry(machine, first, 2, START)
    machine.deliver(told)
    marks = machine.marks
    assert [(mark.position, mark.kind, mark.name) for mark in marks] == [
        (1, EntryKind.STAGE, "BEGUN"), (3, EntryKind.STAGE, "HALF_WAY"),
    ]  # fmt: skip
    for definition in (staged, renamed):
        again = start(definition, 1, run=machine.run)
        again.replay([marks[0], told, marks[1]])
        assert (again.position, again.marks) == (3, [])
        [second] = again.called
        again.deliver(entry(again, second, 7, START))
        assert again.end is not None


def test_a_stage_without_a_name_is_refused() -> None:
    @workflow
    async def nameless() -> None:
        context.stage("")

    machine = start(nameless)
    machine.begin()
    assert machine.end is not None
    failure = decode_failure(machine.end.body)
    assert re.match(r".*test_workflow_replay.py:\d+: stage\(''\): a name of 1 to ", failure.message)


def test_arguments_that_are_no_data_are_refused_at_the_call() -> None:
    @step
    async def take(order: dict[str, Any]) -> None: ...

    @workflow
    async def careless() -> None:
        await take({"items": [1, {"price": float("nan")}]})

    machine = start(careless)
    machine.begin()
    assert machine.end is not None
    assert machine.end.state == WorkflowState.FAILED
    failure = decode_failure(machine.end.body)
    assert failure.type == InvalidMessage.__name__
    assert "order['items'][1]['price']" in failure.message
    assert machine.called == []


def test_a_result_that_is_no_data_fails_the_workflow() -> None:
    @workflow
    async def careless() -> Any:
        return object()

    machine = start(careless)
    machine.begin()
    assert machine.end is not None
    assert "cannot be written" in decode_failure(machine.end.body).message


def test_a_step_gets_a_copy_of_its_arguments() -> None:
    @step
    async def take(names: list[str]) -> list[str]: ...  # type: ignore[empty-body]

    @workflow
    async def sharing() -> list[str]:
        names = ["a"]
        return names + await take(names)

    machine = start(sharing)
    machine.begin()
    [call] = machine.called
    args, _ = call.step.signature.decode(call.body)
    args[0].append("b")
    machine.deliver(entry(machine, call, ["c"], START))
    assert machine.end is not None
    assert machine.end.body == b'["a","c"]'


def test_one_that_leaves_memory_asks_for_nothing_any_more() -> None:
    seen: list[str] = []

    @workflow
    async def cleaning() -> None:
        try:
            await plus(1)
        except Exception:
            seen.append("caught")
        finally:
            try:
                await plus(2)
            except Evicted:
                seen.append("evicted")

    machine = start(cleaning)
    machine.begin()
    machine.called.clear()
    assert machine.leave() == []
    assert (seen, machine.called, machine.end) == (["evicted"], [], None)


def test_steps_that_are_still_running_at_the_end_are_dropped() -> None:
    @workflow
    async def hasty() -> str:
        task = asyncio.ensure_future(plus(1))
        await plus(2)
        return str(task.done())

    machine = start(hasty)
    machine.begin()
    second = next(call for call in machine.called if call.body != machine.called[0].body)
    calls = {call.body: call for call in machine.called}
    told = calls[plus.signature.encode((2,), {})]
    assert second in calls.values()
    machine.deliver(entry(machine, told, 2, START))
    assert machine.end is not None
    assert [call.body for call in machine.dropped] == [plus.signature.encode((1,), {})]


def test_the_caller_s_context_stays_outside() -> None:
    from contextvars import ContextVar

    who: ContextVar[str] = ContextVar("who", default="nobody")

    @workflow
    async def asking() -> str:
        return who.get()

    who.set("somebody")
    machine = start(asking)
    machine.begin()
    assert machine.end is not None
    assert machine.end.body == b'"nobody"'


def definitions() -> list[Any]:
    def plain() -> None: ...

    async def variadic(*args: int) -> None: ...

    async def unresolved(n: Missing) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    return [(workflow, plain, "async"), (step, variadic, "args"), (workflow, unresolved, "Missing")]


@pytest.mark.parametrize(("decorate", "function", "words"), definitions())
def test_what_cannot_be_a_definition_is_refused_with_its_line(decorate: Any, function: Any, words: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"test_workflow_replay\.py:\d+: {function.__name__}.*{words}"):
        decorate(function)
