"""PURE. What a saga asks a person, and what the person answers: both are kept in its journal.

A question goes with the status that it brings; so it is the dead letter, too. An answer is a signal.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Any

import msgspec

from skald.unit import EntryKind, JournalEntry
from skald.workflows.failure import Failure

ANSWERS = "skald.sagas.answer"
"""The name of the signal."""


class Choice(StrEnum):
    RETRY = "retry"
    """Once more, with the same idempotency key."""
    DONE = "done"
    """Somebody has seen to it; a step has this result."""
    SKIP = "skip"
    """Goes on without it; the call of a step returns None."""
    FAIL = "fail"
    """Fails the saga, which is compensated."""


class Question(msgspec.Struct, frozen=True, omit_defaults=True):
    """``failure`` is what has failed now, ``because`` the failure of the saga that is being compensated."""

    number: int
    step: str
    choices: tuple[Choice, ...]
    failure: Failure
    saga: str
    id: str
    arguments: Any = None
    result: Any = None
    compensation: str | None = None
    because: Failure | None = None


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """``number`` is the question's: one that comes too late changes nothing."""

    number: int
    choice: Choice
    by: str
    reason: str
    result: msgspec.Raw = msgspec.Raw(b"null")


class Change(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is journalled with a status: why, and what a person is asked. ``step`` is where the saga stands; it comes
    first, because the view ``saga_state`` looks for it there."""

    step: str | None = None
    failure: Failure | None = None
    question: Question | None = None
    again: bool = False
    """It was asked before, beside another one that is answered now."""


encode = msgspec.json.Encoder().encode
decode_change = msgspec.json.Decoder(Change).decode
decode_answer = msgspec.json.Decoder(Answer).decode


def open_questions(history: Iterable[JournalEntry]) -> list[Question]:
    """What a person is asked now, by what a saga's journal has."""
    found: dict[int, Question] = {}
    for entry in history:
        if entry.kind == EntryKind.STATUS:
            question = decode_change(entry.payload or b"{}").question
            if question is None:
                found.clear()
            else:
                found[question.number] = question
        elif (answer := answered(entry)) is not None and answer.choice in _choices(found.get(answer.number)):
            del found[answer.number]
    return list(found.values())


def answered(entry: JournalEntry) -> Answer | None:
    """The answer, if the entry is one."""
    if entry.kind != EntryKind.SIGNAL or entry.name != ANSWERS:
        return None
    try:
        return decode_answer(entry.payload or b"")
    except msgspec.DecodeError:
        return None


def _choices(question: Question | None) -> tuple[Choice, ...]:
    return () if question is None else question.choices
