"""Who of a group works on which lanes: takes over from the dead, claims what is free, gives up what is another's.

Every process computes the same distribution from the same list of members, and changes only rows that say so: a lane is
claimed where nobody (or this process) owns it, and given up by its owner. Nothing depends on being told:

- A lane that this process owns without working on it (a reply was lost, a step failed) is claimed again, or released.
- A process that owns something and is not in the list of members (its row was lost with the power, or the database was
  restored) is taken over from as soon as a list that was read later does not name it either: it joined before it could
  own anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from skald import failpoints
from skald.errors import ConfigurationError, Fenced, SkaldError
from skald.messaging import cursor
from skald.messaging.consumer import Consumer
from skald.messaging.router import Subscription
from skald.runtime.lanes import assigned
from skald.store import Member, Store
from skald.telemetry import LanesTaken, Recovering, Refused, emit

SOON = 0.25
"""Seconds until the next look while another process still has to give up a lane of ours."""
STRANGERS_EVERY = 3
"""Looks between two searches for owners that are no members."""

Place = tuple[str, int]
"""Origin and lane."""


class Balance:
    """``consumers`` is the process's own list; more may appear in it. ``forget`` ends a membership, ``freed`` is called
    when the work of another process became free, ``lose`` when this process has been taken over itself; ``pause``
    (seconds) is told when something has to wait."""

    def __init__(
        self,
        *,
        store: Store,
        member: Member,
        subscriptions: Sequence[Subscription],
        consumers: list[Consumer],
        forget: Callable[[str], None],
        freed: Callable[[], None],
        lose: Callable[[], None],
        pause: float,
    ) -> None:
        self._store, self._member, self._subscriptions, self._consumers = store, member, subscriptions, consumers
        self._forget, self._freed, self._lose, self._pause = forget, freed, lose, pause
        self._group, self._me = member.group, member.id
        self._alive: list[Member] = [member]
        self._dead: list[tuple[Member, str]] = []
        self._seen_at = 0.0
        self._strangers: dict[str, float] = {}
        """Owners that were not among the members, and when they were seen."""
        self._looks = 0
        self._leaving: dict[Place, asyncio.Task[None]] = {}
        self._look = asyncio.Event()
        self._stopping = False

    def saw(self, alive: list[Member], dead: list[tuple[Member, str]], at: float) -> None:
        """Told the members, as they were read at a time (of the event loop) not before ``at``."""
        self._alive, self._dead, self._seen_at = alive, dead, at
        self._look.set()

    @property
    def leads(self) -> bool:
        """True in one process of the group, as far as everybody knows the same members."""
        return self._me == min(member.id for member in self._alive)

    def look(self) -> None:
        """Asks for a look now."""
        self._look.set()

    def stop(self) -> None:
        self._stopping = True
        self._look.set()

    async def run(self) -> None:
        """Until ``stop``, at each look of the lease."""
        while not self._stopping:
            waiting = False
            try:
                await self._take_over()
                waiting = await self._share()
            except (ConfigurationError, Fenced) as error:
                emit(Refused(self._group, "sharing the lanes", str(error)))
                self._lose()
                break
            except (SkaldError, OSError) as error:
                emit(Recovering(self._group, "sharing the lanes", str(error), self._pause))
            await self._until_look(SOON if waiting else None)
        if self._leaving:
            await asyncio.wait(self._leaving.values())

    async def _until_look(self, seconds: float | None) -> None:
        try:
            await asyncio.wait_for(self._look.wait(), seconds)
        except TimeoutError:
            return
        finally:
            self._look.clear()

    # --- the dead -----------------------------------------------------------------------------------------------------

    async def _take_over(self) -> None:
        # What fails here is seen dead again at the next look; the list may be replaced meanwhile.
        dead, self._dead = self._dead, []
        for member, reason in dead:
            await self._take_over_from(member.id, reason)
        self._looks += 1
        if self._strangers or self._looks % STRANGERS_EVERY == 1:
            await self._find_strangers()

    async def _take_over_from(self, id: str, reason: str) -> None:
        freed = await cursor.take_over(self._store, id)
        failpoints.hit("take_over.after")
        self._forget(id)
        if freed:
            self._freed()
            emit(LanesTaken(self._group, self._me, id, reason))

    async def _find_strangers(self) -> None:
        owners = await cursor.owners(self._store)
        now = asyncio.get_running_loop().time()
        unknown = owners - {member.id for member in self._alive} - {self._me}
        for id in sorted(unknown):
            if self._seen_at > self._strangers.get(id, now):
                await self._take_over_from(id, "it is no member")
                unknown.discard(id)
        self._strangers = {id: self._strangers.get(id, now) for id in unknown}

    # --- the lanes ----------------------------------------------------------------------------------------------------

    async def _share(self) -> bool:
        """True if somebody else still has a lane that should be ours."""
        before = {(c.origin, number): lane.position for c in self._consumers for number, lane in c.lanes.items()}
        rows = await cursor.lanes(self._store, self._group)
        check_lanes(self._group, rows, self._subscriptions)
        origins = {consumer.origin: consumer for consumer in self._consumers}
        rows = [row for row in rows if row.origin in origins and row.stopped is None]
        ids = [member.id for member in self._alive]
        mine = assigned(ids, self._me, [(row.origin, row.lane) for row in rows])
        for consumer in self._consumers:
            own = [row for row in rows if row.origin == consumer.origin and row.owner == self._me]
            # One that stands further back than it did: this service's own database was restored.
            kept = [row for row in own if row.position >= before.get((row.origin, row.lane), 0)]
            consumer.refresh({row.lane: row.version for row in kept})
            for lane in consumer.lanes:
                if (consumer.origin, lane) not in mine:
                    self._give_up(consumer, lane)
        held = {(consumer.origin, lane) for consumer in self._consumers for lane in consumer.lanes}
        loose = [row for row in rows if (row.origin, row.lane) not in held | self._leaving.keys()]
        begun = {place for consumer in self._consumers for place in consumer.begun()}
        for row in loose:
            place = (row.origin, row.lane)
            if row.owner == self._me and place not in mine:
                await cursor.release(self._store, self._group, *place, self._me, begun=place in begun)
        await self._claim([row for row in loose if (row.origin, row.lane) in mine and row.owner in (None, self._me)])
        return any(row.owner not in (None, self._me) and (row.origin, row.lane) in mine for row in rows)

    async def _claim(self, rows: list[cursor.LaneRow]) -> None:
        if not rows:
            return
        claimed = await cursor.claim(self._store, self._group, [(row.origin, row.lane) for row in rows], self._me)
        # Their number may have been changed since we looked; the next look tells, and nothing was done yet.
        versions = {(row.origin, row.lane): row.version for row in rows}
        fresh = [lane for lane in claimed if lane.version == versions[lane.origin, lane.lane]]
        for consumer in self._consumers:
            lanes = [lane for lane in fresh if lane.origin == consumer.origin]
            if lanes:
                await consumer.assign(lanes)
        if len(fresh) < len(claimed):
            self._look.set()

    def _give_up(self, consumer: Consumer, lane: int) -> None:
        """Beside everything else, because what runs for the lane gets time to end."""
        place = (consumer.origin, lane)
        if place not in self._leaving:
            self._leaving[place] = asyncio.create_task(self._leave(consumer, lane))

    async def _leave(self, consumer: Consumer, lane: int) -> None:
        try:
            await consumer.release(lane)
        except (SkaldError, OSError) as error:
            emit(Recovering(self._group, f"giving up lane {lane} of {consumer.origin}", str(error), self._pause))
        finally:
            del self._leaving[consumer.origin, lane]


def check_lanes(group: str, rows: Sequence[cursor.LaneRow], subscriptions: Sequence[Subscription]) -> None:
    """Refuses to work with a number of lanes that is not the stored one: keys would be in the wrong lanes."""
    for subscription in subscriptions:
        count = sum(row.origin == subscription.origin for row in rows)
        if count not in (0, subscription.lanes):
            raise ConfigurationError(
                f"{group} has {count} lanes on {subscription.origin}, and lanes={subscription.lanes} "
                f"was asked for: stop its processes and run 'skald subscriptions relane'"
            )
