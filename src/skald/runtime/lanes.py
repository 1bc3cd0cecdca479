"""PURE. Which lanes belong to which process: every member computes the same answer from the same member list.

A process gives up what is not its own any more and claims what is free; nobody coordinates. Lanes move only as far as
they must: rendezvous hashing moves a lane only when its own best member comes or goes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import sha256


def assigned(members: Iterable[str], me: str, lanes: Sequence[tuple[str, int]]) -> set[tuple[str, int]]:
    """The lanes (origin, number) that ``me`` should own. Each origin's lanes are spread evenly over the members."""
    everyone = sorted(set(members))
    if me not in everyone:
        return set()
    if len(everyone) == 1:
        return set(lanes)
    mine: set[tuple[str, int]] = set()
    for origin in {origin for origin, _ in lanes}:
        numbers = [number for other, number in lanes if other == origin]
        load = dict.fromkeys(everyone, 0)
        most = -(-len(numbers) // len(everyone))
        for number in numbers:
            open_to = [member for member in everyone if load[member] < most]
            best = max(open_to, key=lambda member: sha256(f"{member}:{origin}:{number}".encode()).digest())
            load[best] += 1
            if best == me:
                mine.add((origin, number))
    return mine
