"""What units write of workflows, inside an open write transaction (see ``units``)."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from msgspec.structs import astuple, replace

from skald.errors import WorkflowExists, WorkflowKeyTaken
from skald.sql import blocks
from skald.unit import WorkflowEnd, WorkflowStart, WorkflowState, WorkflowWrites

_SQL = blocks(__package__, "unit")
_STARTED, _KEYS, _SUPERSEDE, _START = _SQL["started"], _SQL["keys_in_use"], _SQL["supersede"], _SQL["start"]
_FORGET_TOLD = _SQL["forget_told"]
_JOURNAL, _END, _REST = _SQL["journal"], _SQL["end"], _SQL["rest"]
_LETTER, _TAKE, _TAKE_UPDATE, _REPLY = _SQL["letter"], _SQL["take"], _SQL["take_update"], _SQL["reply"]


class WorkflowGroup:
    """The part of a group; ``check`` before ``take``, then ``write``."""

    def __init__(self, execute: Callable[..., Any], executemany: Callable[..., Any]) -> None:
        self._execute, self._executemany = execute, executemany
        self._runs: dict[str, tuple[str, bool]] = {}
        """By id that was looked up: its last run, and whether that is open."""
        self._keys: dict[str, tuple[str, str]] = {}
        """By key: the open run that has it, and its id."""
        self._looked_up: set[str] = set()
        self._ended: set[str] = set()
        self._again: list[tuple[str]] = []
        self._starts: list[tuple[Any, ...]] = []
        self._journal: list[tuple[Any, ...]] = []
        self._ends: list[tuple[Any, ...]] = []
        self._rests: list[tuple[Any, ...]] = []
        self._letters: list[tuple[Any, ...]] = []
        self._taken: list[tuple[str]] = []
        self._replies: list[tuple[str, bytes]] = []

    def look_up(self, starts: Sequence[WorkflowStart]) -> None:
        """Reads at once which ids and keys are there."""
        ids = [start.id for start in starts]
        for run, id, key, is_open in self._execute(_STARTED, (json.dumps(ids),)):
            self._runs[id] = run, bool(is_open)
            if is_open and key is not None:
                self._keys[key] = run, id
        keys = [start.key for start in starts if start.key is not None]
        if keys:
            for run, id, key in self._execute(_KEYS, (json.dumps(keys),)):
                self._keys[key] = run, id
        self._looked_up.update(ids)

    def check(self, writes: WorkflowWrites) -> None:
        """Raises for an id or a key that is in use."""
        if any(start.id not in self._looked_up for start in writes.starts):
            self.look_up(writes.starts)
        ended = self._ended.union(end.run for end in writes.ends)
        for start in writes.starts:
            run, is_open = self._runs.get(start.id, ("", False))
            if run and not (start.again and (not is_open or run in ended)):
                raise WorkflowExists(start.id)
            if start.key is not None:
                run, id = self._keys.get(start.key, ("", ""))
                if run and run not in ended:
                    raise WorkflowKeyTaken(start.key, id)

    def take(self, writes: WorkflowWrites) -> None:
        self._ended.update(end.run for end in writes.ends)
        ends = {end.run: end for end in writes.ends}
        for place, start in enumerate(writes.starts):
            if start.id in self._runs:
                self._again.append((start.id,))
            end = ends.pop(start.run, None)
            later = writes.starts[place + 1 :] if end is not None else ()
            self._starts.append(_start_row(start, end, later))
        self._ends += [(end.run, end.state._value_, end.outcome, end.time) for end in ends.values()]
        self._journal += [astuple(entry) for entry in writes.journal]
        self._rests += [(rest.run, rest.state.value, rest.wake_at, rest.note) for rest in writes.rests]
        for letter in writes.letters:
            to: list[str | None] = [None, None, None]
            to[letter.by] = letter.address
            self._letters.append((letter.id, letter.kind, *to, letter.name, letter.payload, letter.time))
        self._taken += [(id,) for id in writes.taken]
        self._replies += [(reply.letter, reply.outcome) for reply in writes.replies]

    def write(self) -> None:
        for sql, rows in (
            (_END, self._ends),
            (_FORGET_TOLD, self._again),
            (_SUPERSEDE, self._again),
            (_START, self._starts),
            (_JOURNAL, self._journal),
            (_REST, self._rests),
            (_LETTER, self._letters),
            (_TAKE, self._taken),
            (_TAKE_UPDATE, self._taken),
            (_REPLY, self._replies),
        ):
            if rows:
                self._executemany(sql, rows)


def _start_row(start: WorkflowStart, end: WorkflowEnd | None, later: Sequence[WorkflowStart]) -> tuple[Any, ...]:
    """With its end, if it has ended before it first waited: there is no row yet that an end could be written to."""
    if end is None:
        state = WorkflowState.SCHEDULED if start.owner is None else WorkflowState.RUNNING
        return (*astuple(start)[:9], 1, state.value, None, None, start.style, start.correlation)
    latest = int(all(other.id != start.id for other in later))
    row = astuple(replace(start, owner=None, wake_at=None))
    return (*row[:9], latest, end.state.value, end.outcome, end.time, start.style, start.correlation)
