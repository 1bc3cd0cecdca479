"""Tells the world that a saga needs a person."""

from __future__ import annotations

from collections.abc import Iterable

from skald.sagas.machine import Status
from skald.sagas.question import decode_change
from skald.telemetry import SagaNeedsPerson, emit
from skald.unit import EntryKind, JournalEntry

_WAITING = (Status.NEEDS_ATTENTION, Status.COMPENSATION_FAILED)


def announce(service: str, saga: str, id: str, marks: Iterable[JournalEntry]) -> None:
    for mark in marks:
        if mark.kind == EntryKind.STATUS and mark.name in _WAITING:
            change = decode_change(mark.payload or b"{}")
            if change.question is not None and not change.again:
                # The type alone: the text of a user's exception may hold anything. It stands in the journal.
                asked = change.question
                emit(SagaNeedsPerson(service, saga, id, mark.name, asked.step, asked.failure.type))
