"""Waiting for the saga of the own domain."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from skald.errors import WorkflowFailed
from skald.workflows.definition import Workflow

PATIENCE = 120.0
"""Seconds for a handler that waits: the attempts of a step take long when somebody outside does not answer."""


async def ended(saga: Workflow[Any, None], id: str) -> None:
    """However that was: what it has done or failed to do is known then."""
    with suppress(WorkflowFailed):
        await saga.handle(id).result()
