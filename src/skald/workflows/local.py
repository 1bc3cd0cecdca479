"""What the handlers of the same process do to workflows: started and answered at once, with nothing read.

The tables say the same, for whoever takes over. What a handler starts belongs to its own process in the row already,
and is begun when that is durable; the answer to a call stands in its letter when the caller in memory is told of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from functools import partial

from msgspec.structs import replace

from skald.clock import Clock
from skald.message import Record
from skald.messaging.calls import replied
from skald.unit import LetterKind, WorkflowStart
from skald.workflows.calling import Asked
from skald.workflows.client import AnyWorkflow
from skald.workflows.instance import Instance
from skald.workflows.journal import Mail
from skald.workflows.receiving import receive
from skald.workflows.signature import identity_text
from skald.workflows.turner import Turner


class Local:
    """See ``messaging.local``. ``has_room`` says whether another workflow may come into memory; ``look`` asks for a
    look at the tables, ``bring_back`` for one at a run that may be owned and is not in memory."""

    def __init__(
        self,
        turner: Turner,
        workflows: dict[str, AnyWorkflow],
        clock: Clock,
        *,
        owner: str,
        has_room: Callable[[], bool],
        look: Callable[[], None],
        bring_back: Callable[[str], None],
    ) -> None:
        self._turner, self._workflows, self._clock, self._owner = turner, workflows, clock, owner
        self._has_room, self._look, self._bring_back = has_room, look, bring_back
        self._loop = asyncio.get_running_loop()
        self.has_mail = True
        """There were letters when somebody looked last: one of them may be for what begins now."""

    # --- starting -----------------------------------------------------------------------------------------------------

    def take(self, start: WorkflowStart) -> WorkflowStart:
        # One that takes the place of another, or is delayed, goes the long way.
        if start.again or start.wake_at or start.workflow not in self._workflows or not self._has_room():
            return start
        return replace(start, owner=self._owner, wake_at=None, time=self._clock.now())

    def begin(self, starts: Iterable[WorkflowStart]) -> None:
        self._loop.call_soon(self._begin_all, tuple(starts), context=self._turner.context)
        if self.has_mail:
            self._look()

    def look_for(self, starts: Iterable[WorkflowStart]) -> None:
        for start in starts:
            self._bring_back(start.run)

    def _begin_all(self, starts: tuple[WorkflowStart, ...]) -> None:
        turner = self._turner
        if turner.stopping:
            return  # the rows are there for whoever takes over
        for start in starts:
            if start.run in turner.runs:
                continue  # it was found in its row
            instance = Instance(
                self._workflows[start.workflow], start.id, start.run, start.input, start.time,
                first=True, key=start.key, correlation=start.correlation,
            )  # fmt: skip
            turner.guarded(instance, partial(turner.resume, instance, (), (), frozenset()))

    # --- answers ------------------------------------------------------------------------------------------------------

    def await_answer(self, event: Record) -> bool:
        return self._asked(event) is not None

    def answer(self, events: Iterable[Record]) -> None:
        self._loop.call_soon(self._answer_all, tuple(events), context=self._turner.context)

    def _answer_all(self, events: tuple[Record, ...]) -> None:
        turner, now = self._turner, self._clock.now()
        if turner.stopping:
            return  # the letters are there for whoever takes over
        for event in events:
            found = self._asked(event)
            if found is None:
                self._look()  # it has left memory meanwhile, and the letter is there
                continue
            instance, ask = found
            reply = replied(event)
            letter = Mail(reply.letter, LetterKind.ANSWER, identity_text(ask.identity), reply.outcome, now)
            turner.guarded(instance, partial(receive, turner, instance, letter, now))

    def _asked(self, event: Record) -> tuple[Instance, Asked] | None:
        """Who has called the command that this answers, if it is in memory and waits."""
        instance, letter = self._turner.asked.get(event.causation_id or ""), event.causation_id
        if instance is None or letter is None or instance.stopped or instance.rest:
            return None
        for call in instance.machine.calls.values():
            if isinstance(call, Asked) and call.is_answered_by(letter):
                return instance, call
        return None
