"""A workflow that was started, as its caller sees it."""

from __future__ import annotations

import asyncio
from typing import Any

from skald.errors import WorkflowFailed, WorkflowUnknown
from skald.store import Store
from skald.unit import WorkflowState
from skald.workflows import journal
from skald.workflows.definition import Workflow
from skald.workflows.replay import End, decode_failure

FIRST_LOOK, LAST_LOOK = 0.02, 1.0
"""Seconds between looks at a workflow that runs in another process."""


class WorkflowHandle:
    """``ended`` is known of a workflow in this process's memory."""

    def __init__(
        self,
        store: Store,
        workflow: Workflow[*tuple[Any, ...], Any],
        id: str,
        ended: asyncio.Future[End | None] | None,
    ) -> None:
        self._store, self._workflow, self._id, self._ended = store, workflow, id, ended

    @property
    def id(self) -> str:
        return self._id

    async def result(self) -> Any:
        """Waits until it has ended; ``WorkflowFailed`` if that was with an exception, ``Diverged`` if this process's
        code cannot go on with it."""
        end = await asyncio.shield(self._ended) if self._ended is not None else None
        end = end or await self._stored_end()
        if end.state == WorkflowState.FAILED:
            failure = decode_failure(end.body)
            raise WorkflowFailed(self._id, failure.type, failure.message)
        return self._workflow.signature.result.decode(end.body)

    async def _stored_end(self) -> End:
        pause = FIRST_LOOK
        while True:
            known = await journal.by_id(self._store, self._id)
            if known is None:
                raise WorkflowUnknown(f"no workflow with the id {self._id!r} was started")
            if known.end is not None:
                return known.end
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, LAST_LOOK)
