"""Effects in a service's database: a handler that can be compensated, and its compensations (see ``compensation``)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from skald import store as contract
from skald.clock import Clock
from skald.codec import codec_for
from skald.errors import UnreadableMessage
from skald.message import MessageType, Record
from skald.messaging import compensation
from skald.messaging.compensation import (
    CompensationFailed,
    Effect,
    EffectState,
    Happening,
    Published,
    Trigger,
    Unknown,
    after,
    effect_of,
    finished_late,
    published,
    refusing,
)
from skald.messaging.context import Cause
from skald.messaging.definition import Handler, Keeping, fact_of
from skald.messaging.marks import NOTHING_YET, SQL, Aside, Marks, Plan, TooEarly
from skald.messaging.outcome import NOTHING, Done, Item, Place
from skald.messaging.publisher import Publisher
from skald.messaging.transaction import Transaction
from skald.store import Row, Store
from skald.telemetry import ForwardRefused, emit
from skald.unit import Delivery, DeliveryState, Mark, MarkKind, Unit


class Undoing:
    """``handlers`` are those of the service, by name."""

    def __init__(
        self,
        group: str,
        handlers: Mapping[str, Handler],
        store: Store,
        clock: Clock,
        marks: Marks,
        publisher: Publisher,
    ) -> None:
        self._group, self._handlers, self._store = group, handlers, store
        self._clock, self._marks, self._publisher = clock, marks, publisher

    async def forward(self, item: Item, transaction: Transaction | None, plan: Plan, aside: bool) -> Plan:
        record = item.record
        place = (MarkKind.EFFECT, item.handler.name, record.key)
        found = await self._marks.find(item, place, transaction)
        effect = effect_of(found.payload)
        plan.identity = plan.identity or record.key
        mine = Effect(of=record.id, attempt=f"{self._group}:{item.handler.name}:{plan.identity}")
        if not found.version:
            plan.then = lambda done, gave_up: self._finished(item, place, mine, done, gave_up)
            return plan
        # What is written by itself is decided on what is written: the versions of what is not are only supposed.
        too_early = item.ledger is not None and item.ledger.supposes(place)
        aside = aside and not too_early
        if item.ran is not None and _has_run(item.ran, place) and finished_late(found.state, effect, record.id):
            if not aside:
                raise Aside(*place)
            effect = msgspec.structs.replace(mine, by=effect.by, refused=effect.refused, finished=True)
            effect = msgspec.structs.replace(effect, published=published(item.ran.events + item.ran.messages))
            mark = self._marks.mark(item, place, found, after(found.state, Happening.FINISHED_LATE), _encoded(effect))
            await self._ask_again(item, mark, effect, plan, item.ran)
            return Plan(NOTHING)
        if effect.of == record.id:
            # The effect is its own, and was written by itself; with what was published, if the handler had ended.
            plan.answered = effect.finished
            return plan.skipped()
        effect = refusing(effect, record.id)
        state = found.state
        emit(ForwardRefused(self._group, item.handler.name, record.key, record.id, record.correlation_id, state))
        was_tried = (item.unknown or item.attempts > 0) and item.ran is None
        if was_tried and state == EffectState.CANCELLED and self._looks_up(effect.by):
            if not aside:
                raise TooEarly(*place) if too_early else Aside(*place)
            effect = msgspec.structs.replace(mine, by=effect.by, refused=effect.refused)
            mark = self._marks.mark(item, place, found, after(state, Happening.TRIED), _encoded(effect))
            await self._ask_again(item, mark, effect, plan)
            return Plan(NOTHING)
        return plan.skipped(self._marks.mark(item, place, found, state, _encoded(effect)))

    def _finished(self, item: Item, place: Place, effect: Effect, done: Done, gave_up: bool) -> Done:
        state = after("", Happening.GAVE_UP if gave_up else Happening.FINISHED)
        effect = msgspec.structs.replace(effect, published=published(done.events + done.messages), finished=True)
        mark = self._marks.mark(item, place, NOTHING_YET, state, _encoded(effect))
        return msgspec.structs.replace(done, marks=(*done.marks, mark))

    async def compensation(
        self, item: Item, origin: str, transaction: Transaction | None, plan: Plan, aside: bool
    ) -> Plan:
        keeps, record = item.handler.keeps, item.record
        assert keeps is not None
        assert keeps.undoes is not None
        place = (MarkKind.EFFECT, keeps.undoes, record.key)
        found = await self._marks.find(item, place, transaction)
        effect = effect_of(found.payload)
        by = Trigger(item.handler.name, origin, record)
        if not found.version:
            moves = await self.against_parking(item, keeps.undoes, transaction)
            if await self._has_unfinished(keeps.undoes, record.key, transaction):
                if not aside:
                    raise Aside(*place)
                await self._discard(item, place, by)
                return await self.compensation(item, origin, transaction, plan, aside)
            mark = self._marks.mark(item, place, found, after("", Happening.OVERTOOK), _encoded(Effect(by=by)))
            plan.marks += (moves,)
            return plan.called_with(keeps.done, None, mark) if keeps.takes_nothing else plan.skipped(mark)
        if found.state == EffectState.CANCELLED:
            # Compared all the same: what comes behind the tombstone at this moment asks for this compensation again,
            # and must not find it passed over.
            mark = self._marks.mark(item, place, found, found.state, found.payload)
            # With ``once_by=`` that is read again which has been handled: behind a tombstone nothing asks again.
            handled = keeps.once_by is not None and not plan.marks
            ours = effect.by is not None and effect.by.record.id == record.id and not handled
            return plan.called_with(keeps.done, None, mark) if keeps.takes_nothing and ours else plan.skipped(mark)
        argument: compensation.Done[Any] | Unknown | None = None
        if found.state == EffectState.DONE:
            wanted = [one for one in effect.published if not keeps.wanted or one.type in _names(keeps.wanted)]
            argument = (
                None if keeps.wanted and not wanted else _done(keeps, wanted, effect.attempt, self._publisher.max_body)
            )
        elif keeps.takes_unknown and found.state in (EffectState.UNKNOWN, EffectState.FAILED):
            argument = Unknown(effect.attempt)
        if found.state == EffectState.UNDONE or (argument is None and not keeps.takes_nothing):
            return plan.skipped()
        effect = msgspec.structs.replace(effect, by=by)
        mark = self._marks.mark(item, place, found, after(found.state, Happening.COMPENSATED), _encoded(effect))
        plan.identity = plan.identity or record.key
        return plan.called_with(keeps.done, argument, mark)

    async def _discard(self, item: Item, place: Place, by: Trigger) -> None:
        """Ends what the handler has not finished for the key, and leaves the tombstone: together, and by itself,
        because the lanes concerned have to be read again, and one of them may be that of the message in work."""
        keeps = item.handler.keeps
        assert keeps is not None
        item.ledger = None
        values = {"group": self._group, "handler": place[1], "key": place[2]}
        async with self._store.transaction() as tx:
            moves = await self.against_parking(item, place[1], tx)
            gone = await tx.fetch(SQL["discard"], **values)
            tried = [row for row in gone if row["attempts"] or row["error"] is not None]
            if tried and keeps.takes_unknown:
                first = min(tried, key=lambda row: int(row["position"]))
                state, effect = after("", Happening.TRIED), Effect(first["id"], self._attempt(place, first), by=by)
            else:
                state, effect = after("", Happening.OVERTOOK), Effect(by=by)
            for row in gone:
                effect = refusing(effect, row["id"])
            mark = self._marks.mark(item, place, NOTHING_YET, state, _encoded(effect))
            for origin, lane in sorted({(row["origin"], row["lane"]) for row in gone}):
                await tx.execute(SQL["bump"], group=self._group, origin=origin, lane=lane)
            await tx.apply(Unit(marks=(mark, moves)))
        for id in effect.refused:
            emit(ForwardRefused(self._group, place[1], place[2], id, item.record.correlation_id, state))

    def _attempt(self, place: Place, row: Row) -> str:
        """The idempotency key of the attempts at a delivery."""
        handler = self._handlers[place[1]]
        identity = place[2]
        if handler.keeps is not None and handler.keeps.once_by is not None:
            codecs = {kind.name: codec_for(kind.cls, self._publisher.max_body) for kind in handler.types}
            # What cannot be read was never tried.
            with suppress(UnreadableMessage, KeyError):
                message = codecs[row["type"]].decode(bytes(row["payload"]))
                identity = fact_of(handler, row["type"], getattr(message, handler.keeps.once_by))
        return f"{self._group}:{handler.name}:{identity}"

    async def _ask_again(self, item: Item, mark: Mark, effect: Effect, plan: Plan, ran: Done = NOTHING) -> None:
        """Records what a handler did behind the tombstone, and delivers once more what asked for its compensation."""
        by, unit = effect.by, Unit(events=ran.events, messages=ran.messages, marks=(*plan.marks, mark))
        async with self._store.transaction() as tx:
            if by is not None:
                now = self._clock.now()
                # Of one key, and so in the lane of the same number.
                lane = item.lane
                again = Delivery(self._group, by.handler, by.origin, lane, DeliveryState.DELAYED, by.record, due=now)
                unit = msgspec.structs.replace(unit, deliveries=(again,))
                await tx.execute(SQL["bump"], group=self._group, origin=by.origin, lane=lane)
            await tx.apply(unit)

    async def against_parking(
        self, item: Item, handler: str, transaction: Transaction | contract.Transaction | None
    ) -> Mark:
        """What is written with a parking, and with a tombstone: of two that do not see each other, one is decided on
        again. To be asked for before either looks for the other."""
        place = (MarkKind.PARKING, handler, item.record.key)
        return self._marks.mark(item, place, await self._marks.find(item, place, transaction), "moved")

    async def _has_unfinished(self, handler: str, key: str, transaction: Transaction | None) -> bool:
        fetch: Callable[..., Any] = self._store.fetch if transaction is None else transaction.fetch
        return bool(await fetch(SQL["unfinished"], group=self._group, handler=handler, key=key))

    def _looks_up(self, by: Trigger | None) -> bool:
        handler = self._handlers.get(by.handler) if by is not None else None
        return handler is not None and handler.keeps is not None and handler.keeps.takes_unknown

    def failed(self, item: Item, forward: str, error: BaseException) -> Record:
        record, name = item.record, item.handler.name
        told = CompensationFailed(self._group, name, forward, record.key, type(error).__name__, record.id)
        cause = Cause(record.id, record.correlation_id, record.traceparent, record.key)
        return self._publisher.draft(told, cause)[1]


def _has_run(done: Done, place: Place) -> bool:
    """A handler that was refused has an outcome, too; its mark stands over the tombstone."""
    return any(mark.place == place and not mark.expected for mark in done.marks)


def _encoded(effect: Effect) -> bytes:
    return msgspec.json.encode(effect)


def _names(kinds: Iterable[MessageType]) -> set[str]:
    return {kind.name for kind in kinds}


def _done(keeps: Keeping, found: Sequence[Published], attempt: str, max_body: int) -> compensation.Done[Any]:
    codecs = {kind.name: codec_for(kind.cls, max_body) for kind in keeps.wanted}
    messages = tuple(codecs[one.type].decode(bytes(one.body)) for one in found if one.type in codecs)
    first = messages[0] if messages else None
    return compensation.Done(first, found[0].id if found else "", messages, attempt)
