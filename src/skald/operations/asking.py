"""Workflows asked by an operator: queries, which a replay answers here, and updates, which they answer themselves."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from skald.app import App
from skald.errors import WorkflowBusy
from skald.operations.access import OperationRefused, members
from skald.operations.workflows import client_of, declared, json_body, last_run, open_run
from skald.unit import WorkflowState
from skald.workflows.channels import Update
from skald.workflows.handle import WorkflowHandle


class Answered(msgspec.Struct, frozen=True):
    """``state`` is what the workflow was in before."""

    service: str
    id: str
    workflow: str
    state: str
    answer: Any


async def query_workflow(app: App, id: str, query: str, *, service: str | None = None) -> Answered:
    """Answered by a replay of the journal on this program's code, which calls no step and writes nothing; also after
    the end."""
    async with client_of(app, service) as client:
        name, known = client.store.service, await last_run(client.store, id)
        answer = await client.ask(declared(app, name, known.workflow), id, query)
        return Answered(name, id, known.workflow, known.state.value, msgspec.json.decode(answer))


async def update_workflow(
    app: App, id: str, update: str, argument: str, *, timeout: float, service: str | None = None
) -> Answered:
    """``argument`` is a JSON text; its type is known to the workflow's code alone. Refused where nobody could answer
    for now."""
    value = msgspec.json.decode(json_body("the update", argument))
    async with client_of(app, service) as client:
        name, known = client.store.service, await open_run(client.store, id)
        if known.state == WorkflowState.PAUSED:
            raise WorkflowBusy(f"workflow {id!r} is paused, and answers nothing before it is resumed; nothing was sent")
        if all(gone is not None for _, gone in await members(client.store)):
            raise OperationRefused(f"no process of {name} is running that could answer; nothing was sent")
        handle = WorkflowHandle(client, declared(app, name, known.workflow), id, None)
        try:
            async with asyncio.timeout(timeout):
                answer = await handle.update(Update[Any, Any](update, Any, Any), value)
        except TimeoutError as error:
            raise WorkflowBusy(
                f"workflow {id!r} has not answered the update {update!r} within {timeout:g} s; it was sent, and is "
                "handled when the workflow comes to it"
            ) from error
        return Answered(name, id, known.workflow, known.state.value, answer)
