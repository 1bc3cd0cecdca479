"""PURE. What a workflow is sent: signals that wait for it, queries and updates that its code has handlers for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import Context
from functools import partial
from typing import TypeVar

import msgspec

from skald.errors import WorkflowError
from skald.unit import Reply, WorkflowState
from skald.workflows.failure import Failure, encode, failure_of
from skald.workflows.loop import WorkflowLoop, explained

T = TypeVar("T")


class Answer(msgspec.Struct, frozen=True):
    """To an update: the failure, or else its result as JSON."""

    failure: Failure | None = None
    result: msgspec.Raw = msgspec.Raw(b"null")


class Handler(msgspec.Struct):
    """Of an update."""

    run: Callable[[bytes], Awaitable[bytes]]
    validate: Callable[[bytes], None]


class Inbox:
    """Of one workflow in memory. ``replies`` are answers to updates that nobody has taken yet."""

    def __init__(self, loop: WorkflowLoop, id: str) -> None:
        self._loop, self._id = loop, id
        self.replies: list[Reply] = []
        self.looking_at: int | None = None
        """A query or a validator runs, at this time: nothing may be changed."""
        self._mail: dict[str, asyncio.Queue[bytes]] = {}
        self._queries: dict[str, Callable[[], bytes]] = {}
        self._handlers: dict[str, Handler] = {}
        self._early: dict[str, list[tuple[str, bytes]]] = {}
        """Updates for which there is no handler yet."""
        self._open: dict[str, asyncio.Task[None]] = {}
        """Updates that are being handled."""

    # --- from outside -------------------------------------------------------------------------------------------------

    def signal(self, name: str, body: bytes) -> None:
        self._box(name).put_nowait(body)

    def update(self, letter: str, name: str, body: bytes) -> None:
        if name in self._handlers:
            self._open[letter] = self._loop.create_task(self._handle(letter, name, body), context=Context())
        else:
            self._early.setdefault(name, []).append((letter, body))

    def ask(self, query: str, now: int) -> bytes:
        """The answer to a query; its handler may look and do nothing."""
        handler = self._queries.get(query)
        if handler is None:
            known = ", ".join(sorted(self._queries)) or "none"
            raise WorkflowError(f"workflow {self._id!r} answers no query {query!r}; it answers: {known}")
        return self._look(handler, now)

    def refuses(self, update: str, body: bytes, now: int) -> Failure | None:
        """Why the validator of an update refuses it; ``None`` if it does not, or is not there yet."""
        handler = self._handlers.get(update)
        if handler is None:
            return None
        try:
            self._look(partial(handler.validate, body), now)
        except (Exception, asyncio.CancelledError) as error:
            return failure_of(error)
        return None

    def unheard(self) -> list[tuple[str, bytes]]:
        """Takes the signals that nobody has received, by name, in order."""
        return [(name, box.get_nowait()) for name, box in self._mail.items() for _ in range(box.qsize())]

    def close(self, state: WorkflowState) -> None:
        """The workflow has ended: what was not answered is answered so."""
        if not (self._early or self._open):
            return
        letters = [letter for early in self._early.values() for letter, _ in early]
        failure = Failure("WorkflowEnded", f"workflow {self._id!r} has ended: {state.value}")
        self.replies += [Reply(letter, encode(Answer(failure))) for letter in (*letters, *self._open)]
        self._early.clear()
        self._open.clear()

    def forget(self) -> None:
        """Nothing is asked any more: lets go of the workflow's own functions."""
        self._queries.clear()
        self._handlers.clear()
        self._open.clear()

    # --- from inside --------------------------------------------------------------------------------------------------

    async def receive(self, name: str) -> bytes:
        self._refuse_to_look(f"{name}.receive()")
        return await self._box(name).get()

    def received(self, name: str) -> int:
        return self._box(name).qsize()

    def answer(self, name: str, handler: Callable[[], bytes]) -> None:
        self._queries[name] = handler

    def handle(
        self, name: str, handler: Callable[[bytes], Awaitable[bytes]], validate: Callable[[bytes], None]
    ) -> None:
        self._handlers[name] = Handler(handler, validate)
        for letter, body in self._early.pop(name, ()):
            refusal = self.refuses(name, body, round(self._loop.time() * 1e6))
            if refusal is None:
                self.update(letter, name, body)
            else:
                self.replies.append(Reply(letter, encode(Answer(refusal))))

    async def _handle(self, letter: str, name: str, body: bytes) -> None:
        try:
            answer = Answer(result=msgspec.Raw(await self._handlers[name].run(body)))
        except (Exception, asyncio.CancelledError) as error:
            answer = Answer(failure_of(explained(error)))
        if self._open.pop(letter, None) is not None:
            self.replies.append(Reply(letter, encode(answer)))

    def _box(self, name: str) -> asyncio.Queue[bytes]:
        found = self._mail.get(name)
        if found is None:
            found = self._mail[name] = asyncio.Queue()
        return found

    def _look(self, function: Callable[[], T], now: int) -> T:
        self.looking_at = now
        try:
            return self._loop.look(function)
        finally:
            self.looking_at = None

    def _refuse_to_look(self, what: str) -> None:
        if self.looking_at is not None:
            raise WorkflowError(f"{what} cannot be called by a query or a validator: they may only look")
