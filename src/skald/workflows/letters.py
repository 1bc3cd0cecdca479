"""PURE. What is written to start a workflow and to talk to one, from wherever that is done."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from msgspec.structs import replace

from skald.errors import InvalidMessage, WorkflowMismatch
from skald.unit import AddressKind, WorkflowStart
from skald.workflows.definition import Workflow
from skald.workflows.starting import Options

MAX_NAME = 200
"""Characters of an id or a key."""
MOST_YEARS = 10


def started(
    workflow: Workflow[..., Any],
    body: bytes,
    run: str,
    id: str,
    options: Options,
    now: int,
    correlation: str | None,
) -> WorkflowStart:
    """One that whoever runs its service takes."""
    check_name("id", id)
    if options.key is not None:
        check_name("key", options.key)
    again = options.existing == "restart"
    return WorkflowStart(
        run, id, workflow.name, None, 0, None, options.key, body, now, again, workflow.style, correlation
    )


async def delayed(start: WorkflowStart, delay: float, now: Callable[[], Awaitable[int]]) -> WorkflowStart:
    """The same so many seconds later, by the database's clock."""
    if not 0 <= delay < MOST_YEARS * 31_536_000:
        raise InvalidMessage(start.workflow, "delay", f"{delay} is no number of seconds up to {MOST_YEARS} years")
    return replace(start, wake_at=await now() + round(delay * 1e6))


def check_name(what: str, name: str) -> None:
    if not 1 <= len(name) <= MAX_NAME or not name.isprintable():
        raise WorkflowMismatch(f"{name[:MAX_NAME]!r} is no {what}: use 1 to {MAX_NAME} printable characters")


def require_same(id: str, workflow: Workflow[..., Any], body: bytes, known: str, known_body: bytes) -> None:
    if workflow.name != known:
        raise WorkflowMismatch(f"the id {id!r} belongs to a workflow {known!r}, which is not {workflow.name!r}")
    if not workflow.signature.agrees(body, known_body):
        raise WorkflowMismatch(f"workflow {id!r} was started with other arguments")


def addressed(id: str | None, key: str | None) -> tuple[AddressKind, str]:
    """Whom something is for."""
    if (id is None) == (key is None):
        raise WorkflowMismatch("say whom it is for: id= or key=, and not both")
    by, address = (AddressKind.ID, id) if id is not None else (AddressKind.KEY, key)
    assert address is not None
    check_name(by.name.lower(), address)
    return by, address
