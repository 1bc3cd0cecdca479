"""PURE. Where a saga asks people, and keeps its status: the two go together, for a question changes the status."""

from __future__ import annotations

import asyncio

import msgspec

from skald.sagas.machine import Happening, Status, follow
from skald.sagas.question import ANSWERS, Answer, Change, Question, decode_answer, encode
from skald.unit import EntryKind
from skald.workflows.replay import Machine


class Desk:
    """Of one saga in memory."""

    def __init__(self, machine: Machine) -> None:
        self.status = Status.IN_PROGRESS
        self._machine, self._loop = machine, machine.loop
        self._asked = 0
        self._open: dict[int, tuple[Question, asyncio.Future[Answer]]] = {}
        self._listener: asyncio.Task[None] | None = None
        self.ahead: list[str] = []
        """Statuses that the code has come to in a replay, before the history tells so."""

    def close(self) -> None:
        """Whatever is still asked has become pointless."""
        if self._open:
            for _, answered in self._open.values():
                answered.cancel()
            self._open.clear()
            self._answered()

    async def ask(self, question: Question) -> Answer:
        """Waits for a person: durably, and out of memory if that takes long."""
        self._asked = number = self._asked + 1
        question = msgspec.structs.replace(question, number=number)
        answered: asyncio.Future[Answer] = self._loop.create_future()
        self._open[number] = question, answered
        self.enter(self._asking(question), Change(question.step, question=question))
        if self._listener is None:
            self._listener = asyncio.create_task(self._listen(), name="answers")
        try:
            return await answered
        finally:
            if self._open.pop(number, None) is not None:  # otherwise all were given up
                self._answered()

    def _asking(self, question: Question) -> Happening:
        return Happening.ASKS if question.compensation is None else Happening.GIVES_UP

    def _answered(self) -> None:
        if self._open:
            # The one that is open longest is where the saga stands now.
            question, _ = next(iter(self._open.values()))
            self.enter(self._asking(question), Change(question.step, question=question, again=True))
            return
        if self._listener is not None:
            self._listener.cancel()
            self._listener = None
        self.enter(Happening.IS_ANSWERED, Change())

    async def _listen(self) -> None:
        while True:
            try:
                answer = decode_answer(await self._machine.inbox.receive(ANSWERS))
            except msgspec.DecodeError:
                continue  # of somebody who does not know how
            question, answered = self._open.get(answer.number, (None, None))
            if question is None or answered is None or answered.done():
                continue  # it comes too late
            if answer.choice in question.choices:
                answered.set_result(answer)

    def enter(self, happening: Happening, change: Change) -> None:
        self.status = follow(self.status, happening)
        if self._machine.is_replayed:
            self.ahead.append(self.status)
        else:
            self._machine.mark(self.status, EntryKind.STATUS, encode(change))
