"""PURE. What units write of workflows, as rows; how a guard's answer names an id or a key that is in use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec.structs import astuple, replace

from skald.errors import Rejection, WorkflowExists, WorkflowKeyTaken
from skald.stores.postgres.columns import ENDS, JOURNAL, LETTERS, REPLIES, RESTS, STARTS, TAKEN
from skald.unit import WorkflowEnd, WorkflowStart, WorkflowState, WorkflowWrites

EXISTS, KEY_TAKEN = 6, 7


class WorkflowGroup:
    """The part of a group."""

    def __init__(self) -> None:
        self._starts: list[tuple[Any, ...]] = []
        self._journal: list[tuple[Any, ...]] = []
        self._ends: list[tuple[Any, ...]] = []
        self._rests: list[tuple[Any, ...]] = []
        self._letters: list[tuple[Any, ...]] = []
        self._taken: list[tuple[int, str]] = []
        self._replies: list[tuple[int, str, bytes]] = []

    def add(self, index: int, writes: WorkflowWrites) -> None:
        ends = {end.run: end for end in writes.ends}
        for place, start in enumerate(writes.starts):
            self._start(index, start, ends.pop(start.run, None), writes.starts[place + 1 :])
        self._ends += [(index, end.run, end.state.value, end.outcome, end.time) for end in ends.values()]
        self._journal += [(index, *astuple(entry)) for entry in writes.journal]
        self._rests += [(index, rest.run, rest.state.value, rest.wake_at, rest.note) for rest in writes.rests]
        for letter in writes.letters:
            to: list[str | None] = [None, None, None]
            to[letter.by] = letter.address
            self._letters.append((index, letter.id, letter.kind, *to, letter.name, letter.payload, letter.time))
        self._taken += [(index, id) for id in writes.taken]
        self._replies += [(index, reply.letter, reply.outcome) for reply in writes.replies]

    def _start(self, index: int, start: WorkflowStart, end: WorkflowEnd | None, later: Sequence[WorkflowStart]) -> None:
        """With its end, if it has ended before it first waited: there is no row yet that an end could be written to."""
        if end is None:
            state = WorkflowState.SCHEDULED if start.owner is None else WorkflowState.RUNNING
            self._starts.append((index, *astuple(start), 1, state.value, None, None))
            return
        latest = int(all(other.id != start.id for other in later))
        row = astuple(replace(start, owner=None, wake_at=None))
        self._starts.append((index, *row, latest, end.state.value, end.outcome, end.time))

    def arguments(self) -> dict[str, Sequence[Any]]:
        """The fields by name; sections that nobody uses are left out."""
        found: dict[str, Sequence[Any]] = {}
        for names, rows in (
            (STARTS, self._starts),
            (JOURNAL, self._journal),
            (ENDS, self._ends),
            (RESTS, self._rests),
            (LETTERS, self._letters),
            (TAKEN, self._taken),
            (REPLIES, self._replies),
        ):
            if rows:
                found.update(zip(names, zip(*rows, strict=True), strict=True))
        return found


def rejection(code: int, key: str) -> Rejection:
    """Of a key the answer says also whose it is, as a list in JSON."""
    return WorkflowExists(key) if code == EXISTS else WorkflowKeyTaken(*msgspec.json.decode(key, type=tuple[str, str]))
