"""Workflows that may have ended the process that had them, run in ever smaller groups until it is known which one did.

``deaths`` counts, for each workflow, the processes that have ended while they had it, since it last rested. One that is
taken with ``SUSPICIOUS`` of them waits, and as long as it waits its count stands in its row below zero, so that the end
of a process leaves it as it is. With its group it is counted again; whoever gets further is cleared at once. So the
count of those that are innocent stays, and the one that ends its process comes into a group of its own, and is paused
in the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from skald.store import Store
from skald.unit import Unit
from skald.workflows.failure import Failure
from skald.workflows.instance import Instance
from skald.workflows.journal import SQL, SUSPICIOUS, Open

MOST_DEATHS = 8
GROUP = 64
"""Of those that were suspected once; a quarter for each time more."""
PATIENCE = 3.0
"""Seconds after which a group is no longer waited for; it keeps its count."""


class Suspects:
    """Of one process, ``owner``."""

    def __init__(self, store: Store, owner: str) -> None:
        self._store, self._owner = store, owner
        self.waiting: dict[str, Open] = {}
        """By run; these rows are ours, and not in memory."""
        self._group: dict[str, int] = {}
        """By run: how far it had got when it was taken."""
        self._since = 0.0

    def is_busy(self, now: float) -> bool:
        """Whether somebody waits, or is to be cleared as soon as it gets further: a process may end at any moment."""
        return bool(self.waiting or (self._group and now < self._since + PATIENCE))

    async def sort(self, found: Sequence[Open]) -> tuple[list[Open], list[Open]]:
        """Keeps the suspects; returns those that nobody suspects, and those that are to be given up."""
        fresh = [one for one in found if one.deaths < SUSPICIOUS]
        hopeless = [one for one in found if one.deaths >= MOST_DEATHS]
        held = [one for one in found if SUSPICIOUS <= one.deaths < MOST_DEATHS]
        if held:
            await self._write("hold", [one.run for one in held])
            self.waiting.update((one.run, one) for one in held)
        return fresh, hopeless

    async def next(self, runs: Mapping[str, Instance], now: float) -> list[Open]:
        """The next group, if it is its turn. ``runs`` are those in memory, ``now`` is in seconds."""
        innocent = [run for run, position in self._group.items() if _got_further(runs.get(run), position)]
        if innocent:
            await self._write("clear", innocent)
            for run in innocent:
                del self._group[run]
        if not self.waiting or (self._group and now < self._since + PATIENCE):
            return []
        deaths = min(one.deaths for one in self.waiting.values())
        alike = [one for one in self.waiting.values() if one.deaths == deaths]
        group = alike[: max(1, GROUP >> 2 * (deaths - SUSPICIOUS))]
        await self._write("count", [one.run for one in group])
        self._since = now
        self._group = {one.run: len(one.history) for one in group}
        for one in group:
            del self.waiting[one.run]
        return group

    async def _write(self, block: str, runs: Sequence[str]) -> None:
        async with self._store.transaction() as tx:
            await tx.apply(Unit(fence=self._owner))
            for run in runs:
                await tx.execute(SQL[block], run=run, owner=self._owner)


def _got_further(instance: Instance | None, position: int) -> bool:
    """It has ended, leaves memory, or was told something that is durable."""
    if instance is None or instance.rest is not None:
        return True
    return instance.machine.position - len(instance.pending) > position and not instance.in_flight


def given_up(one: Open) -> Failure:
    return Failure(
        "ProcessEnded",
        f"{one.deaths} processes have ended while they ran it, and it got no further: see what it does to its process "
        "(memory, os._exit, a library that crashes), and resume it then",
    )
