"""A workflow that was started, as its caller sees it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol, TypeVar
from uuid import uuid4

import msgspec

from skald.errors import UpdateFailed, WorkflowEnded, WorkflowUnknown
from skald.store import Store
from skald.unit import AddressKind, LetterKind, WorkflowState
from skald.workflows import journal
from skald.workflows.channels import Query, Signal, Update
from skald.workflows.definition import Workflow
from skald.workflows.failure import End, decode_failure, failed
from skald.workflows.inbox import Answer
from skald.workflows.instance import Instance, unharmed

A = TypeVar("A")
Q = TypeVar("Q")
T = TypeVar("T")

FIRST_LOOK, LAST_LOOK = 0.02, 1.0
"""Seconds between looks at a workflow that runs in another process."""
_answer = msgspec.json.Decoder(Answer).decode


class Post(Protocol):
    """What a handle needs of the service's client."""

    store: Store

    def live(self, id: str) -> Instance | None: ...

    async def send(
        self, kind: LetterKind, by: AddressKind, address: str, name: str, payload: bytes, letter: str | None = None
    ) -> None: ...

    async def ask(self, workflow: Workflow[..., Any], id: str, query: str) -> bytes: ...

    def listen(self, heard: Callable[[], None]) -> Callable[[], None]: ...


class WorkflowHandle:
    """See ``definition.Handle``. ``instance`` is given for one in this process's memory."""

    def __init__(self, post: Post, workflow: Workflow[..., Any], id: str, instance: Instance | None) -> None:
        self._post, self._workflow, self._id, self._instance = post, workflow, id, instance

    @property
    def id(self) -> str:
        return self._id

    async def result(self) -> Any:
        """Waits until it has ended; ``WorkflowFailed`` if that was with an exception, ``Diverged`` if this process's
        code cannot go on with it."""
        end = None
        if self._instance is not None:
            if not self._instance.ended.done():
                await unharmed(self._instance.ended)
            end = self._instance.ended.result()
        if end is None or end.state == WorkflowState.CONTINUED:
            end = await self._stored_end()
        if end.state != WorkflowState.COMPLETED:
            raise failed(self._id, decode_failure(end.body))
        return self._workflow.signature.result.decode(end.body)

    async def _stored_end(self) -> End:
        pause = FIRST_LOOK
        while True:
            known = await journal.by_id(self._post.store, self._id)
            if known is None:
                raise WorkflowUnknown(f"no workflow with the id {self._id!r} was started")
            if (end := known.end) is not None:
                return end
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, LAST_LOOK)

    # --- talking to it ------------------------------------------------------------------------------------------------

    async def signal(self, signal: Signal[T], value: T) -> None:
        await self._ensure_open()
        await self._tell(LetterKind.SIGNAL, signal.name, signal.codec.encode(value))

    async def query(self, query: Query[Q]) -> Q:
        return query.codec.decode(await self._post.ask(self._workflow, self._id, query.name))  # type: ignore[no-any-return]

    async def update(self, update: Update[A, Q], value: A) -> Q:
        body = update.argument.encode(value)
        await self._ensure_open()
        letter = str(uuid4())
        rung = asyncio.Event()
        stop = self._post.listen(rung.set)
        try:
            to = (AddressKind.ID, self._id, update.name, body)
            await self._post.send(LetterKind.UPDATE, *to, letter)
            answer = _answer(await self._reply(letter, rung))
        finally:
            stop()
        if answer.failure is not None:
            raise UpdateFailed(update.name, answer.failure.type, answer.failure.message)
        return update.result.decode(bytes(answer.result))  # type: ignore[no-any-return]

    async def _reply(self, letter: str, rung: asyncio.Event) -> bytes:
        pause = FIRST_LOOK
        while True:
            rung.clear()
            # Asked before: what it has answered by its end can be read behind that.
            is_open = await self._is_open()
            found = await self._post.store.fetch(journal.SQL["outcome"], id=letter)
            if not found or (found[0]["outcome"] is None and not is_open):
                raise WorkflowEnded(self._id, "before it answered")
            if found[0]["outcome"] is not None:
                async with self._post.store.transaction() as tx:
                    await tx.execute(journal.SQL["drop_letter"], id=letter)
                return bytes(found[0]["outcome"])
            try:
                async with asyncio.timeout(pause):
                    await rung.wait()
            except TimeoutError:
                pause = min(pause * 1.5, LAST_LOOK)

    async def cancel(self, reason: str = "") -> None:
        await self._ensure_open()
        await self._tell(LetterKind.CANCEL, "", reason.encode())

    async def terminate(self, reason: str = "") -> None:
        await self._ensure_open()
        await self._tell(LetterKind.TERMINATE, "", reason.encode())

    async def pause(self) -> None:
        await self._ensure_open()
        known = await journal.by_id(self._post.store, self._id)
        # A letter to a paused one would pause it again after its resume.
        if known is None or known.state != WorkflowState.PAUSED:
            await self._tell(LetterKind.PAUSE, "", b"")

    async def resume(self) -> None:
        await journal.resume(self._post.store, self._id)
        self._post.store.workflows.ring()

    async def retry(self) -> None:
        await journal.retry(self._post.store, self._id)
        self._instance = None  # its end is none any more
        self._post.store.workflows.ring()

    async def _tell(self, kind: LetterKind, name: str, payload: bytes) -> None:
        await self._post.send(kind, AddressKind.ID, self._id, name, payload)

    async def _ensure_open(self) -> None:
        """Of one that has not been started yet nothing is known: what is sent to it waits."""
        if self._post.live(self._id) is not None:
            return
        known = await journal.by_id(self._post.store, self._id)
        if known is not None and known.end is not None:
            raise WorkflowEnded(self._id, known.state.value)

    async def _is_open(self) -> bool:
        known = await journal.by_id(self._post.store, self._id)
        return known is None or known.end is None  # one that is not started yet hears of it then
