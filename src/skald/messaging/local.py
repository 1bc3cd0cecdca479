"""What the handlers of a service and its workflows know of each other where both run in one process: so that neither
waits for the other to be found in the tables."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from skald.message import Record
from skald.unit import WorkflowStart


class LocalWorkflows(Protocol):
    """The workflows of a service that run in this process."""

    def take(self, start: WorkflowStart) -> WorkflowStart:
        """The start as this process's own, if it can take it. Whoever commits it, with the fence of this process, says
        so by ``begin``, or by ``look_for`` if nobody knows whether it was committed."""
        ...

    def begin(self, starts: Iterable[WorkflowStart]) -> None:
        """They are committed, and this process's."""
        ...

    def look_for(self, starts: Iterable[WorkflowStart]) -> None:
        """They may have been committed."""
        ...

    def await_answer(self, event: Record) -> bool:
        """Whether one of them waits for it. Then whoever commits its reply says so by ``answer``."""
        ...

    def answer(self, events: Iterable[Record]) -> None:
        """Their replies are committed."""
        ...
