"""Declarations that make no sense are refused with the line and the remedy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Literal

import msgspec
import pytest

from skald import NEVER, Backoff, FailedExecution, Retry, compensation, saga, step, workflows
from skald.errors import ConfigurationError
from skald.sagas.compensation import Execution
from skald.sagas.definition import Executed
from skald.sagas.recovery import TO_THE_END
from skald.workflows.definition import Call, Step


class Order(msgspec.Struct, frozen=True):
    id: str


class Payment(msgspec.Struct, frozen=True):
    id: str


@compensation
async def refund(payment: Payment | None, order: Order, failed: FailedExecution, key: str) -> None: ...


@compensation
async def forget(order: Order) -> None: ...


async def charge(order: Order, amount: int) -> Payment:
    raise AssertionError


@compensation
async def _strange(other: int, more: int) -> None: ...


@compensation
async def _another_type(order: str) -> None: ...


@compensation
async def _untyped(order, amount): ...  # type: ignore[no-untyped-def]


@compensation
async def _sure(payment: Payment) -> None: ...


@compensation
async def _another_result(result: int | None) -> None: ...


@compensation
async def _another_key(key: int) -> None: ...


async def _plain(order: Order) -> None: ...


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"pivot": True, "compensate": forget}, "once a pivot is done nothing is undone: leave out pivot= or compensate="),
    ({"critical": False, "pivot": True}, "leave that out, or pivot=True"),
    ({"critical": False, "forward": True}, "leave that out, or forward=True"),
    ({"critical": False, "human": True}, "leave that out, or human=True"),
    ({"forward": True, "retry": Retry()}, "give retry= a Backoff, or rules by class of error"),
    ({"forward": True, "total": 5.0}, "no total="),
    ({"forward": True, "at_most_once": True}, "no at_most_once="),
    ({"forward": True, "human": True}, "no human="),
    ({"human": True, "pause": True}, "leave out human= or pause="),
    ({"compensate": _plain}, "compensate=_plain: make it a compensation with @compensation"),
    ({"compensate": _strange}, r"compensate=_strange has a parameter 'other' that nothing fills: .*\(order, amount\)"),
    (
        {"compensate": _another_type},
        "another type for 'order' than the step: <class 'str'>, not .*Order",
    ),
    (
        {"compensate": _untyped},
        "another type for 'order' than the step: typing.Any, not .*Order",
    ),
    ({"compensate": _sure}, r"compensate=_sure gets the result as 'payment', and None .* with '… \| None'"),
    (
        {"compensate": _another_result},
        "compensate=_another_result has another type for 'result' than the step returns",
    ),
    ({"compensate": _another_key}, "compensate=_another_key gets the key of the step as 'key': annotate it with 'str'"),
]


@pytest.mark.parametrize(("options", "text"), WRONG, ids=[text[:40] for _, text in WRONG])
def test_options_of_steps_that_contradict_each_other(options: dict[str, Any], text: str) -> None:
    line = charge.__code__.co_firstlineno
    with pytest.raises(ConfigurationError, match=rf"test_saga_declarations.py:{line}: charge: .*{text}"):
        step(**options)(charge)


def _exactly_once_by_nothing() -> None:
    @compensation(guarantee="exactly_once")
    async def undo(order: Order) -> None: ...


def _an_unknown_guarantee() -> None:
    @compensation(guarantee="maybe")  # type: ignore[arg-type]
    async def undo(order: Order) -> None: ...


def _a_deadline_of_nothing() -> None:
    @saga(deadline=0)
    async def buy(order: Order) -> None: ...


def _a_synchronous_saga() -> None:
    @saga  # type: ignore[arg-type]
    def buy(order: Order) -> None: ...


@pytest.mark.parametrize(
    ("declare", "text"),
    [
        (_exactly_once_by_nothing, "needs transactional=True, or a key for whom it calls: name workflows.attempt"),
        (_an_unknown_guarantee, "guarantee='maybe': use one of best_effort, at_least_once, exactly_once"),
        (_a_deadline_of_nothing, "deadline=0 must be more than 0 seconds"),
        (_a_synchronous_saga, "a workflow is an async function"),
    ],
)
def test_declarations_that_make_no_sense(declare: Callable[[], None], text: str) -> None:
    with pytest.raises(ConfigurationError, match=f"test_saga_declarations.py:.*{text}"):
        declare()


def test_exactly_once_is_transactional_or_hands_on_its_key() -> None:
    @compensation(guarantee="exactly_once")
    async def by_key(order: Order) -> None:
        async def inner() -> str:
            return workflows.attempt().key

        await inner()

    @compensation(guarantee="exactly_once", transactional=True)
    async def by_transaction(order: Order) -> None: ...

    assert by_key.guarantee == by_transaction.guarantee == "exactly_once"


def called(charged: Step[..., Any], order: Order, amount: int) -> Call:
    body, digest, _ = charged.signature.called((order, amount), {})
    return Call(charged, body, (charged.name, digest, 1), None)


def test_parameters_are_filled_by_what_they_are() -> None:
    charged = step(compensate=refund)(charge)
    order, failed = Order("o-1"), FailedExecution("buy", "s-1", "ship", "ValueError", "no", ())
    call = called(charged, order, 5)
    done = Execution(1, "charge", call, charged.recovery, result=b'{"id":"p-1"}')
    read = msgspec.json.decode(refund.arguments(done, "run", lambda: failed)[0])
    assert (read["payment"], read["order"], read["key"]) == ({"id": "p-1"}, {"id": "o-1"}, call.key("run"))
    assert msgspec.convert(read["failed"], FailedExecution) == failed
    lost = Execution(1, "charge", call, charged.recovery)
    unknown = msgspec.json.decode(refund.arguments(lost, "run", lambda: failed)[0])
    assert unknown["payment"] is None


def test_more_than_a_message_holds_is_told_without_its_data() -> None:
    charged = step(compensate=refund)(charge)
    call = called(charged, Order("o-1"), 5)

    def told(failed: FailedExecution) -> FailedExecution:
        done = Execution(1, "charge", call, charged.recovery, result=b'{"id":"p-1"}')
        body, _ = refund.arguments(done, "run", lambda: failed)
        read = msgspec.json.decode(body)
        assert read["payment"] == {"id": "p-1"}
        return msgspec.convert(read["failed"], FailedExecution)

    def failed(*executions: Executed) -> FailedExecution:
        return FailedExecution("buy", "s-1", "ship", "ValueError", "no", executions)

    assert told(failed(Executed("scan", "done", {}, "x" * 2**20))) == failed(Executed("scan", "done", None))
    assert told(failed(*[Executed("x" * 2**10, "done", {})] * 2**10)) == failed()


def test_types_that_cannot_be_compared_are_left_to_the_codec() -> None:
    @compensation
    async def undo(result: Sequence[Payment] | None, kind: str, at: datetime | None) -> None: ...

    @step(compensate=undo)
    async def do(kind: Literal["a", "b"], at: datetime) -> list[Payment]:
        raise AssertionError

    @compensation
    async def undo_some(result: list[Payment]) -> None: ...

    with pytest.raises(ConfigurationError, match="gets the result as 'result', and None where that is unknown"):
        step(compensate=undo_some)(do.function)


def test_a_forward_step_is_tried_to_the_end_but_for_errors_with_a_rule_of_their_own() -> None:
    assert step(forward=True)(charge).retry == {"*": TO_THE_END}
    assert step(forward=True, retry={ValueError: NEVER})(charge).retry == {"*": TO_THE_END, ValueError: NEVER}
    patient = step(forward=True, retry=Backoff(first=5, longest=60))(charge).retry
    assert patient == Backoff(first=5, longest=60, attempts=TO_THE_END.attempts)
