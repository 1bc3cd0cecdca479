"""PURE. How a workflow is talked to: signals come in, queries look, updates do both and answer.

approval = Signal("approval", Approval)
status = Query("status", str)
address = Update("address", Address, str)

@workflow
async def fulfil(order: Order) -> Shipment:
    state = "waits for approval"

    @status.answered_by
    def _() -> str:
        return state

    @address.handled_by
    async def _(new: Address) -> str: ...

    decision = await approval.receive()

await fulfil.handle("order-7").signal(approval, Approval(by="ann"))
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar, cast

from skald.codec import Codec
from skald.errors import WorkflowError
from skald.workflows.inbox import Inbox
from skald.workflows.loop import running

T = TypeVar("T")
A = TypeVar("A")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


def _inside(what: str) -> Inbox:
    loop = running()
    if loop is None:
        raise WorkflowError(f"{what} is for workflows: call it in one, and not in a step or outside")
    inbox: Inbox = loop.host.inbox
    return inbox


def _name(function: Callable[..., object]) -> str:
    return getattr(function, "__name__", repr(function))


class Signal(Generic[T]):
    """A value that anybody may send to a workflow, before or after its start; it is kept until the workflow asks."""

    def __init__(self, name: str, type: type[T]) -> None:
        self.name, self.codec = name, Codec(type, name=f"the signal {name}")

    async def receive(self) -> T:
        """The next one, in the order in which they came; waits for it."""
        return cast("T", self.codec.decode(await _inside(f"{self.name}.receive()").receive(self.name)))

    def received(self) -> int:
        """How many have come and were not received yet."""
        return _inside(f"{self.name}.received()").received(self.name)


class Query(Generic[R_co]):
    """A question about a workflow, which changes nothing."""

    def __init__(self, name: str, type: type[R_co]) -> None:
        self.name, self.codec = name, Codec(type, name=f"the answer to {name}")

    def answered_by(self, function: Callable[[], R_co]) -> Callable[[], R_co]:
        """Decorates a plain function inside the workflow, which may read its variables."""
        where = f"{self.name}.answered_by"
        if inspect.iscoroutinefunction(function):
            raise WorkflowError(f"{where} takes a plain function, and {_name(function)} is async: it may not wait")
        _inside(where).answer(self.name, lambda: self.codec.encode(function()))
        return function


class Update(Generic[A, R]):
    """A request to a workflow that changes it and has an answer."""

    def __init__(self, name: str, argument: type[A], result: type[R]) -> None:
        self.name = name
        self.argument = Codec(argument, name=f"the update {name}")
        self.result = Codec(result, name=f"the answer to {name}")

    def handled_by(
        self, function: Callable[[A], Awaitable[R]] | None = None, *, validator: Callable[[A], object] | None = None
    ) -> Any:
        """Decorates an async function inside the workflow; it may call steps. ``validator`` raises to refuse the
        request, of which nothing is stored then."""

        where = f"{self.name}.handled_by"
        if inspect.iscoroutinefunction(validator):
            raise WorkflowError(f"{where} takes a plain function as its validator: an async one would refuse nothing")

        def register(handler: Callable[[A], Awaitable[R]]) -> Callable[[A], Awaitable[R]]:
            if not inspect.iscoroutinefunction(handler):
                raise WorkflowError(f"{where} takes an async function, and {_name(handler)} is none: write async def")

            async def handle(body: bytes) -> bytes:
                return self.result.encode(await handler(self.argument.decode(body)))

            def validate(body: bytes) -> None:
                if validator is not None:
                    validator(self.argument.decode(body))

            _inside(where).handle(self.name, handle, validate)
            return handler

        return register if function is None else register(function)
