"""A workflow that calls commands as a machine: what it sends, when, and what its history must say."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import msgspec
import pytest

from skald import (
    CallRejected,
    Command,
    Event,
    FailedExecution,
    Service,
    call,
    compensation,
    saga,
    step,
    workflow,
)
from skald.errors import ConfigurationError, Diverged, WorkflowError
from skald.message import new_id
from skald.messaging.calls import Answer, command_id, is_called
from skald.unit import EntryKind, JournalEntry, WorkflowState
from skald.workflows.asking import unsent
from skald.workflows.calling import Ask, Route, Undoing, results
from skald.workflows.client import outside
from skald.workflows.failure import decode_failure
from skald.workflows.forgetting import Forgotten
from skald.workflows.replay import Machine

T = TypeVar("T")
RUN, START = "01890a5d-ac96-774b-bcce-b302099a8057", 1_700_000_000_000_000

UNDOING = Undoing(lambda failed: None, "Bare")


class Reserved(Event, key="order"):
    order: str


class SoldOut(Event, key="order"):
    order: str


class Reserve(Command[Reserved], key="order"):
    order: str


class Restock(Reserve, key="order"):
    pass


class Either(Command[Reserved | SoldOut | None], key="order"):
    order: str


class Anything(Command, key="order"):
    order: str


class Bare(Command[None]):
    order: str


@step
async def do() -> None: ...


@workflow
async def two(order: str) -> list[str]:
    first, second = await asyncio.gather(call(Reserve(order)), call(Reserve(order)))
    return [first.order, second.order]


@workflow
async def hurried(order: str) -> str:
    try:
        return (await call(Reserve(order), timeout=5)).order
    except TimeoutError as late:
        return str(late)


@workflow
async def forgetful(order: str) -> str:
    waiting = asyncio.ensure_future(call(Bare(order)))
    await asyncio.sleep(0)
    waiting.cancel()
    return "done"


@workflow
async def wrong(order: str, what: str) -> Any:
    command: Any = {"event": Reserved(order), "no key": Reserve(""), "not declared": Anything(order)}.get(what)
    if what == "compensate":
        return await call(Reserve(order), compensate=Reserve(order))
    timeout: Any = {"text": "30", "timedelta": timedelta(seconds=30)}.get(what, 0)
    return await call(command or Reserve(order), timeout=timeout if command is None else None)


async def coroutine(failed: FailedExecution) -> Bare: ...


@compensation
async def release() -> None: ...


@saga
async def misled(order: str, what: str) -> None:
    undoes: dict[str, Any] = {"class": Bare, "async": coroutine, "compensation": release, "step": do, "text": "Bare"}
    await call(Reserve(order), compensate=undoes[what])


@saga
async def undone(order: str) -> None:
    await call(Reserve(order), compensate=Bare(order))
    raise ValueError("enough")


ORDERS = Service("orders", workflows=[two, hurried, forgetful, wrong, misled, undone], calls=[Reserve, Bare])
ORDERS.calls.routes = {
    cls: Route("stock", "stock.calls", {"SoldOut": SoldOut, "Reserved": Reserved}) for cls in (Reserve, Bare)
}


async def machine(found: Any, *args: str, check: Callable[[Machine], T]) -> T:
    def run() -> T:
        one = Machine(found, RUN, found.signature.encode(args, {}), START, id="o-1")
        one.begin()
        try:
            return check(one)
        finally:
            one.leave()

    return await outside(run)


def answer(one: Machine, ask: Ask, event: Event, kind: EntryKind = EntryKind.CALL_DONE, later: int = 1) -> JournalEntry:
    body = msgspec.json.encode(Answer(type(event).__name__, msgspec.Raw(msgspec.json.encode(event))))
    return JournalEntry(RUN, one.position + 1, kind, *ask.identity, one.time + later, body)


async def test_a_call_is_a_record_with_the_run_as_its_cause() -> None:
    def check(one: Machine) -> None:
        first, second = one.asked
        assert [str(ask).split(" ")[0] for ask in one.calls.values()] == ["Reserve#1", "Reserve#2"]
        record, place = first.record(START + 5), first.place(START + 5)
        assert (record.topic, record.key, record.type, record.time) == ("stock.calls", "o-1", "Reserve", START + 5)
        assert (record.correlation_id, record.causation_id) == ("o-1", RUN)
        assert record.payload == b'{"order":"o-1"}'
        assert record.id == place.id == first.id != second.id
        assert place.address == RUN
        assert one.called == []

    await machine(two, "o-1", check=check)


async def test_a_replay_sends_nothing_but_what_was_never_written() -> None:
    def check(one: Machine) -> None:
        first, second = one.asked
        history = [answer(one, second, Reserved("b"))]
        again = Machine(two, RUN, two.signature.encode(("o-1",), {}), START, id="o-1")
        again.replay(history)
        assert again.asked == []
        assert [ask.identity for ask in unsent(again, {second.id})] == [first.identity]
        assert unsent(again, {first.id}) == []
        again.deliver(answer(again, first, Reserved("a")))
        assert again.end is not None
        assert again.end.body == b'["a","b"]'
        again.leave()

    await machine(two, "o-1", check=check)


async def test_a_history_of_another_call_diverges() -> None:
    def check(one: Machine) -> None:
        [ask] = one.asked
        entry = answer(one, ask, Reserved("a"))
        as_step = msgspec.structs.replace(entry, kind=EntryKind.STEP_DONE)
        for other in (msgspec.structs.replace(entry, occurrence=2), as_step):
            one.position = 0
            with pytest.raises(Diverged, match=r"waits for Reserve#1 \("):
                one.deliver(other)

    await machine(hurried, "o-1", check=check)


@pytest.mark.parametrize(("later", "expected"), [(1, "o-1"), (6_000_000, "o-1")])
async def test_an_answer_is_no_later_than_a_timeout_that_is_noticed_with_it(later: int, expected: str) -> None:
    def check(one: Machine) -> None:
        one.deliver(answer(one, one.asked[0], Reserved("o-1"), later=later))
        assert one.end is not None
        assert msgspec.json.decode(one.end.body) == expected

    await machine(hurried, "o-1", check=check)


async def test_after_the_timeout_nobody_waits() -> None:
    def check(one: Machine) -> None:
        [ask] = one.asked
        due = one.wake_at()
        assert due is not None
        one.deliver(JournalEntry(RUN, 1, EntryKind.TIMER, "", b"", 0, due, None))
        assert one.dropped == [ask]
        assert one.end is not None
        assert one.end.body == b'"Reserve: TimeoutError: no answer within 5 s"'

    await machine(hurried, "o-1", check=check)


async def test_what_is_given_up_at_once_is_not_awaited() -> None:
    def check(one: Machine) -> None:
        assert one.end is not None
        assert not any(one.awaits(ask) for ask in one.asked)

    await machine(forgetful, "o-1", check=check)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("event", r"test_workflow_calls\.py:\d+: call\(Reserved\(order='o-1'\)\) takes a command"),
        ("no key", "Reserve: order: the key must have 1 to 512 characters"),
        (
            "not declared",
            r"orders does not declare to call Anything: name it in Service\('orders', calls=\[Anything\]\)",
        ),
        ("compensate", r"test_workflow_calls\.py:\d+: compensate= is for sagas"),
        ("timeout", r"test_workflow_calls\.py:\d+: call\(timeout=0\): a number of seconds above 0"),
        ("text", r"test_workflow_calls\.py:\d+: call\(timeout='30'\): a number of seconds above 0"),
        ("timedelta", r"call\(timeout=datetime\.timedelta\(seconds=30\)\): a number of seconds above 0"),
    ],
)
async def test_a_mistake_is_told_at_its_line(what: str, said: str) -> None:
    def check(one: Machine) -> str:
        assert one.end is not None
        assert one.end.state == WorkflowState.FAILED
        assert one.asked == []
        return decode_failure(one.end.body).message

    message = await machine(wrong, "o-1", what, check=check)
    assert re.search(said, message), message


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("class", r"test_workflow_calls\.py:\d+: call\(compensate=Bare\): a command, as in"),
        ("async", r"call\(compensate=coroutine\): .* or a function, no 'async def', that makes one"),
        ("compensation", r"call\(compensate=release\): a command"),
        ("step", r"call\(compensate=do\): a command"),
        ("text", r"call\('Bare'\) takes a command"),
    ],
)
async def test_what_could_not_undo_is_refused_before_there_is_something_to_undo(what: str, said: str) -> None:
    def check(one: Machine) -> str:
        assert one.asked == []
        assert one.end is not None
        return decode_failure(one.end.body).message

    message = await machine(misled, "o-1", what, check=check)
    assert re.search(said, message), message


async def test_what_is_called_after_a_retry_is_another_command() -> None:
    """Those that had been called before, and those that are called now, and the same whenever it is replayed."""

    def check(one: Machine) -> None:
        first, second = one.asked
        noted = Forgotten(2, START).encode()
        history = [
            answer(one, first, Reserved("a")),
            JournalEntry(RUN, 2, EntryKind.FORGOTTEN, "", noted, 0, START, None),
        ]
        ids = []
        for retries in (1, 1, 2):
            again = Machine(two, RUN, two.signature.encode(("o-1",), {}), START, id="o-1")
            again.replay(history + [msgspec.structs.replace(history[1], position=3)] * (retries - 1))
            [ask] = unsent(again, set())
            assert isinstance(ask, Ask)
            assert is_called(ask.id)
            assert unsent(again, {second.id}) == [], "an older version has sent it as it was"
            assert ask.is_answered_by(second.id)
            ids.append(ask.id)
            again.leave()
        assert second.id != ids[0] == ids[1] != ids[2] != second.id

    await machine(two, "o-1", check=check)


async def test_nothing_is_what_a_compensation_may_answer() -> None:
    def check(one: Machine) -> None:
        [ask] = one.asked
        handled = b'{"type":"skald.Handled","body":{"service":"stock","handler":"release","key":"o-1"}}'
        assert ask.verdict(handled) == EntryKind.CALL_REJECTED
        assert msgspec.structs.replace(ask, undoing=UNDOING).verdict(handled) == EntryKind.CALL_DONE
        gave_up = b'{"type":"CompensationFailed","body":{}}'
        assert msgspec.structs.replace(ask, undoing=UNDOING).verdict(gave_up) == EntryKind.CALL_REJECTED
        one.deliver(answer(one, ask, Reserved("o-1")))
        [status] = one.marks
        assert status.name == "COMPENSATING"
        [undoing] = [call for call in one.calls.values() if isinstance(call, Ask)]
        assert (undoing.name, undoing.undoing is not None, undoing.timeout) == ("Bare", True, None)
        assert undoing.key == "o-1"  # of the workflow, where the class names none

    await machine(undone, "o-1", check=check)


async def test_a_rejection_has_the_event() -> None:
    def check(one: Machine) -> None:
        [ask] = one.asked
        rejection = answer(one, ask, SoldOut("o-1"), EntryKind.CALL_REJECTED)
        assert ask.verdict(rejection.payload or b"") == EntryKind.CALL_REJECTED
        ask.settle(EntryKind.CALL_REJECTED, rejection.payload or b"")
        raised = ask.future.exception()
        assert isinstance(raised, CallRejected)
        assert raised.reply == SoldOut("o-1")

    await machine(hurried, "o-1", check=check)


def test_a_class_says_what_a_call_of_it_comes_to() -> None:
    assert results(Reserve) == results(Restock) == (Reserved,)
    assert results(Either) == (Reserved, SoldOut, type(None))
    assert results(Bare) == (type(None),)
    assert results(Anything) is None


def test_a_result_is_a_class_of_event() -> None:
    class Later(Command["Reserved"], key="order"):
        order: str

    class Text(Command[str], key="order"):
        order: str

    for cls in (Later, Text):
        with pytest.raises(ConfigurationError, match="name a class of Event itself"):
            Service("orders", calls=[cls])


def test_only_what_was_called_has_such_an_id() -> None:
    run = new_id()
    assert is_called(command_id(run, "Reserve:00:1:1"))
    assert command_id(run, "Reserve:00:1:1") != command_id(run, "Reserve:00:1:2")
    assert not is_called(run)
    assert not is_called(None)


def test_outside_of_a_workflow_commands_are_published() -> None:
    with pytest.raises(WorkflowError, match=r"test_workflow_calls\.py:\d+: call\(\) is for workflows"):
        call(Reserve("o-1"))
