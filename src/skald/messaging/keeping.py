"""What handlers remember of keys: read before a handler runs, written as marks of its unit with everything else.

What was read is a hint; the mark's version decides. A unit whose mark has moved is rejected (``MarkMoved``), its
handler is not to blame, and the message is decided on again. So nothing is locked while a handler runs, and of two
messages about one key that are in work at the same time, in whatever lanes and processes, one is committed first and
the other one sees it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

import msgspec

from skald.clock import Clock
from skald.codec import Codec
from skald.errors import Busy, MarkMoved, StoreError, UnreadableMessage
from skald.messaging.calls import is_called
from skald.messaging.definition import Handler, fact_of
from skald.messaging.marks import NOTHING_YET, Marks, Plan, Undecided
from skald.messaging.outcome import Done, Item, Ledger, Place, Taken
from skald.messaging.proceeding import Proceeding
from skald.messaging.processes import Role
from skald.messaging.publisher import Publisher
from skald.messaging.transaction import Transaction
from skald.messaging.undoing import Undoing
from skald.store import Store
from skald.unit import Mark, MarkKind


class Keeper:
    """For the handlers of one service. ``codecs`` are those of their messages, by wire name."""

    def __init__(
        self,
        group: str,
        handlers: Iterable[Handler],
        store: Store,
        clock: Clock,
        codecs: Mapping[str, Codec],
        publisher: Publisher,
    ) -> None:
        self._codecs = codecs
        self._marks = Marks(store, clock)
        by_name = {handler.name: handler for handler in handlers}
        self._undoing = Undoing(group, by_name, store, clock, self._marks, publisher)
        self._proceeding = Proceeding(group, clock, self._marks, store)

    async def recall(self, items: Iterable[Item]) -> Ledger:
        """Reads at once what a stretch will ask for."""
        ledger = Ledger()
        wanted: dict[tuple[MarkKind, str], set[str]] = {}
        for item in items:
            if item.handler.keeps is not None and item.outcome is None:
                item.ledger = ledger
                for kind, name, key in self.places(item):
                    wanted.setdefault((kind, name), set()).add(key)
        for (kind, name), keys in wanted.items():
            ledger.read |= await self._marks.read(kind, name, sorted(keys))
        return ledger

    async def plan(self, item: Item, origin: str, transaction: Transaction | None, *, aside: bool = True) -> Plan:
        """Reads what is remembered, and decides. Raises ``UnreadableMessage``, and ``MarkMoved`` to be asked again.

        ``Aside`` is raised inside a transaction, and without ``aside``: ask again outside of it.
        """
        try:
            return await self._plan(item, origin, transaction, aside and transaction is None)
        except (StoreError, Busy) as error:
            raise Undecided(f"{item.handler.name}: {error}") from error

    async def _plan(self, item: Item, origin: str, transaction: Transaction | None, aside: bool) -> Plan:
        keeps = item.handler.keeps
        assert keeps is not None
        plan = Plan()
        if keeps.once_by is not None:
            place = self._once(item, keeps.once_by)
            found = await self._marks.find(item, place, transaction)
            mine = item.record.id.encode()
            # A compensation is asked for again by what comes behind its tombstone; the effect says whether it is done.
            again = keeps.undoes is not None and found.payload == mine
            if found.version and not again:
                plan.answered = found.payload == mine
                return plan.skipped()
            plan.identity = fact_of(item.handler, item.record.type, self._value(item, keeps.once_by))
            if not again:
                payload = mine if keeps.undoes is not None or is_called(item.record.id) else b""
                plan.marks = (self._marks.mark(item, place, NOTHING_YET, "handled", payload),)
        if keeps.role is not None:
            place = self._place(item, keeps.role)
            return await self._proceeding.plan(item, origin, keeps.role, place, self._message(item), transaction)
        if keeps.compensated:
            return await self._undoing.forward(item, transaction, plan, aside)
        if keeps.undoes is not None:
            return await self._undoing.compensation(item, origin, transaction, plan, aside)
        return plan

    def wrote(self, item: Item, done: Done) -> None:
        """Told what an item will write, if it is committed."""
        if item.ledger is not None:
            for mark in done.marks:
                item.ledger.written.setdefault(mark.place, []).append(item)

    async def decide_aside(self, item: Item, origin: str) -> None:
        """Writes what has to be written by itself before the item can be decided on in a transaction."""
        keeps = item.handler.keeps
        if keeps is not None and (keeps.compensated or keeps.undoes is not None):
            with suppress(MarkMoved, UnreadableMessage):
                await self.plan(item, origin, None)

    async def gave_up(self, item: Item, origin: str, rescued: Done, *, aside: bool) -> Done:
        """What is remembered of a message whose ``exhausted=`` has decided instead of its handler."""
        keeps = item.handler.keeps
        assert keeps is not None
        if keeps.undoes is not None:
            # It has not been undone, whatever the function says instead.
            return rescued
        plan = await self.plan(item, origin, None, aside=aside)
        return plan.skip if plan.skip is not None else plan.finish(rescued, gave_up=True)

    async def parks(self, item: Item, origin: str, taken: Taken, error: BaseException, *, aside: bool) -> Done | Taken:
        """What becomes of a message that is about to be parked: one that is cancelled meanwhile is not."""
        keeps = item.handler.keeps
        assert keeps is not None
        if keeps.undoes is not None:
            return msgspec.structs.replace(taken, events=(self._undoing.failed(item, keeps.undoes, error),))
        if keeps.compensated:
            ledger, item.ledger = item.ledger, None  # it was read before the attempt
            with suppress(UnreadableMessage):
                mark = await self._against_parking(item)
                plan = await self.plan(item, origin, None, aside=aside)
                if plan.skip is not None:
                    return plan.skip
                if ledger is not None:
                    ledger.written.setdefault(mark.place, []).append(item)
                return msgspec.structs.replace(taken, marks=(mark,))
        return taken

    async def _against_parking(self, item: Item) -> Mark:
        try:
            return await self._undoing.against_parking(item, item.handler.name, None)
        except (StoreError, Busy) as error:
            raise Undecided(f"{item.handler.name}: {error}") from error

    # --- places -------------------------------------------------------------------------------------------------------

    def places(self, item: Item) -> list[Place]:
        """What its handling depends on."""
        keeps = item.handler.keeps
        found: list[Place] = []
        if keeps is None:
            return found
        if keeps.compensated or keeps.undoes is not None:
            found.append((MarkKind.EFFECT, keeps.undoes or item.handler.name, item.record.key))
        if keeps.once_by is not None:
            # What cannot be read is said by its attempt.
            with suppress(UnreadableMessage):
                found.append(self._once(item, keeps.once_by))
        if keeps.role is not None:
            with suppress(UnreadableMessage):
                found.append(self._place(item, keeps.role))
        return found

    def _once(self, item: Item, field: str) -> Place:
        return MarkKind.ONCE, item.handler.name, f"{item.record.type}:{self._value(item, field)}"

    def _place(self, item: Item, role: Role) -> Place:
        key = item.record.key if role.timeout is not None else self._value(item, role.by)
        return MarkKind.PROCESS, role.process.name, key

    def _value(self, item: Item, field: str) -> str:
        value = getattr(self._message(item), field)
        if value is None:
            raise UnreadableMessage(item.record.type, f"{field} is null, and says which one it is")
        return str(value)

    def _message(self, item: Item) -> Any:
        return self._codecs[item.record.type].decode(item.record.payload or b"")
