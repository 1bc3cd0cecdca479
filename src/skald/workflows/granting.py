"""PURE. Who gets a lock: decided for all keys of a service at once, from the letters that ask for one, wait or hold.

A key has one holder. What is free is given to the one who has waited longest; who asks for a key that somebody waits
for gets into the queue behind.

Sagas that wait for each other in a circle would do so for ever. Who waits for a key waits for its holder and for all
who stand before him, and later only somebody's leaving changes that. So a circle is closed by an ask, or never: that
one is refused, and what is granted needs no second look.

Children of a saga are sagas of their own. One that waits for a lock of its parent, which waits for it, is not found.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from skald.unit import LetterKind
from skald.workflows.locking import Conflict, Verdict

MOST = 50
"""Decisions at a time: they are written in one transaction."""


class Claim(msgspec.Struct, frozen=True):
    """A letter: a lock that is asked for, waited for or held, as ``kind`` says."""

    ticket: str
    key: str
    kind: LetterKind
    time: int
    """Since when it is held; where it stands in the queue."""
    run: str
    saga: str
    """The saga's id, and its name."""
    name: str
    open: bool = True
    """The saga has not ended."""
    call: str = ""
    conflict: Conflict = "wait"


class Decision(msgspec.Struct):
    """What is to be done: letters that go, because their sagas have ended; those that get the lock; those that wait,
    with their places; those that do not get it, or have it already, with the answer."""

    gone: list[Claim] = msgspec.field(default_factory=list)
    granted: list[Claim] = msgspec.field(default_factory=list)
    queued: list[tuple[Claim, int]] = msgspec.field(default_factory=list)
    told: list[tuple[Claim, Verdict]] = msgspec.field(default_factory=list)


class _Lines:
    """By key: who has it, and behind, who waits for it. As long as somebody waits somebody has it."""

    def __init__(self, claims: Iterable[Claim]) -> None:
        self.by_key: dict[str, list[Claim]] = {}
        self._places: dict[str, int] = {}
        """By ticket: how many stand before."""
        self._of: dict[str, list[Claim]] = {}
        """By run: where it stands."""
        for claim in claims:
            self.join(claim)

    def join(self, claim: Claim) -> None:
        line = self.by_key.setdefault(claim.key, [])
        self._places[claim.ticket] = len(line)
        self._of.setdefault(claim.run, []).append(claim)
        line.append(claim)

    def circle(self, claim: Claim) -> tuple[str, ...]:
        """The ids of sagas that would each wait for the next one, and the last one for the first, if the claim got into
        its line; empty if there are none. Looks at each place of a line once."""
        if all(self.by_key[own.key][-1] is own for own in self._of.get(claim.run, ())):
            return ()  # nobody waits for this saga
        seen: dict[str, int] = {}
        comes_from: dict[str, Claim] = {}
        left = [(claim, len(self.by_key[claim.key]))]
        while left:
            waiting, place = left.pop()
            for other in self.by_key[waiting.key][seen.get(waiting.key, 0) : place]:
                if other.run == claim.run:
                    return _path(waiting, claim, comes_from)
                if other.run not in comes_from:
                    comes_from[other.run] = waiting
                    left += [(own, self._places[own.ticket]) for own in self._of[other.run]]
            seen[waiting.key] = max(place, seen.get(waiting.key, 0))
        return ()


def _path(last: Claim, first: Claim, comes_from: dict[str, Claim]) -> tuple[str, ...]:
    found = [last.saga]
    while last is not first:
        last = comes_from[last.run]
        found.append(last.saga)
    return tuple(reversed(found))


def decide(claims: Sequence[Claim], now: int, most: int = MOST) -> Decision:
    """Of everything that is asked for, in the order of asking; of more than ``most`` the first ones."""
    made = Decision()
    made.gone = [claim for claim in claims if not claim.open][:most]
    if len(made.gone) == most:
        return made
    known = [claim for claim in claims if claim.open]
    held, waiting = _of(known, LetterKind.LOCK_HELD), _of(known, LetterKind.LOCK_WAITS)
    lines = _Lines([*held, *waiting])
    made.granted = [line[0] for line in lines.by_key.values() if line[0].kind == LetterKind.LOCK_WAITS][:most]
    for claim in _of(known, LetterKind.LOCK)[: most - len(made.granted)]:
        line = lines.by_key.get(claim.key, [])
        if not line:
            made.granted.append(claim)
            lines.join(claim)
        elif line[0].run == claim.run:
            made.told.append((claim, Verdict()))
        elif claim.conflict != "wait":
            made.told.append((claim, Verdict(line[0].saga, line[0].name)))
        elif chain := lines.circle(claim):
            made.told.append((claim, Verdict(line[0].saga, line[0].name, chain)))
        else:
            place = now if len(line) == 1 else max(now, line[-1].time + 1)
            made.queued.append((claim, place))
            lines.join(msgspec.structs.replace(claim, time=place))
    return made


def _of(claims: Iterable[Claim], kind: LetterKind) -> list[Claim]:
    return sorted((one for one in claims if one.kind == kind), key=lambda one: (one.time, one.run, one.ticket))
