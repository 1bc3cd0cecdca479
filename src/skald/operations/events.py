"""What stands in the logs: the last messages, those that come, and one of them with its way through the readers."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from datetime import datetime
from typing import Any

import msgspec

from skald.app import App
from skald.clock import from_datetime, to_rfc3339
from skald.errors import ConfigurationError, SkaldError, StoreUnavailable
from skald.message import Envelope, Record
from skald.messaging import cursor
from skald.messaging.router import Subscription, lane_of
from skald.operations.access import NotFound, chosen, opened, opened_log, scrubbed
from skald.sql import blocks
from skald.store import Log

_SQL = blocks("skald.operations", "parked")
PAGE = 500
POLL = 2.0
"""Seconds between looks at a log that is followed; the bell is usually faster."""

Since = str | int | datetime
"""``"start"``, a position, or a time."""


class EventView(msgspec.Struct, frozen=True):
    """A message in a log, for people. ``payload`` is what its JSON holds, or ``{"base64": …}`` if it is none."""

    service: str
    position: int
    id: str
    type: str
    version: int
    topic: str
    key: str
    time: str
    correlation_id: str
    causation_id: str | None
    stream: str | None
    stream_version: int | None
    payload: Any


class Reading(msgspec.Struct, frozen=True):
    """How far one reader has got with a message: ``handled``, ``ahead``, ``stopped``, ``not started``, ``unknown``, or
    the state of its delivery (``parked``, ``delayed``, ``waiting``, ``running``, ``queued``)."""

    service: str
    handler: str
    state: str
    detail: str | None = None


class EventDetail(msgspec.Struct, frozen=True):
    event: EventView
    envelope: dict[str, str]
    readers: list[Reading]


def view(service: str, record: Record) -> EventView:
    return EventView(
        service=service,
        position=record.position,
        id=record.id,
        type=record.type,
        version=record.version,
        topic=record.topic,
        key=record.key,
        time=to_rfc3339(record.time),
        correlation_id=record.correlation_id,
        causation_id=record.causation_id,
        stream=record.stream,
        stream_version=record.stream_version,
        payload=readable(record.payload or b""),
    )


def readable(payload: bytes) -> Any:
    try:
        return msgspec.json.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {"base64": base64.b64encode(payload).decode()}


# --- the last ones, and those that come -------------------------------------------------------------------------------


async def tail_events(
    app: App,
    services: Iterable[str] = (),
    *,
    last: int = 20,
    since: Since | None = None,
    types: Sequence[str] = (),
    key: str | None = None,
    follow: bool = False,
    absent: Callable[[StoreUnavailable], None] | None = None,
) -> AsyncGenerator[EventView, None]:
    """The ``last`` messages of the named services together, or all ``since`` then; with ``follow`` also what comes.

    They come in order of time, those of one service always in order of position. ``absent`` is told of each service
    whose log cannot be opened (yet): it is left out, and followed from its start once it is there. Without ``absent``,
    or with nothing left to show, the error is raised.
    """
    names = chosen(app, services)

    def wanted(record: Record) -> bool:
        return (not types or record.type in types) and key in (None, record.key)

    async with AsyncExitStack() as stack:
        logs, missing = dict[str, Log](), list[str]()
        for name in names:
            try:
                logs[name] = await stack.enter_async_context(opened_log(app, name))
            except StoreUnavailable as error:
                missing.append(name)
                if absent is None or (len(missing) == len(names) and not follow):
                    raise
                absent(error)
        ends = {name: (await log.end())[0] for name, log in logs.items()}
        if since is None:
            found = [(r.time, n, r) for n, log in logs.items() for r in await _last(log, ends[n], last, wanted)]
            for _, name, record in sorted(found, key=lambda entry: (entry[0], entry[1], entry[2].position))[-last:]:
                yield view(name, record)
        else:
            starts = {name: await _place(log, name, since) for name, log in logs.items()}
            sources = {n: _between(n, log, starts[n], ends[n], wanted) for n, log in logs.items()}
            async with aclosing(_merged(sources)) as merged:
                async for event in merged:
                    yield event
        if follow:
            async with aclosing(_followed(app, logs, ends, missing, wanted)) as followed:
                async for event in followed:
                    yield event


async def _place(log: Log, service: str, since: Since) -> int:
    """The position to begin behind."""
    if since == "start":
        return 0
    if isinstance(since, int):
        return since - 1
    if isinstance(since, datetime):
        return await log.position_at(from_datetime(since))
    raise ConfigurationError(f"{since!r} is neither 'start', nor a position, nor a time with its zone")


async def _last(log: Log, end: int, count: int, wanted: Callable[[Record], bool]) -> list[Record]:
    """Walks backwards in growing steps, because a log is read forwards and most of it may be something else."""
    step, low = max(count * 2, 100), end + 1
    found: list[Record] = []
    while low > 1 and len(found) < count:
        high, low = low - 1, max(1, low - step)
        found = [record async for record in _records(log, low, high) if wanted(record)] + found
        step = min(step * 2, 20_000)
    return found[-count:] if count > 0 else []


async def _records(log: Log, position: int, upto: int) -> AsyncGenerator[Record, None]:
    while records := await log.read(position, PAGE, upto=upto):
        for record in records:
            yield record
        position = records[-1].position + 1
        if position > upto:
            return


async def _between(
    service: str, log: Log, after: int, upto: int, wanted: Callable[[Record], bool]
) -> AsyncGenerator[EventView, None]:
    async for record in _records(log, after + 1, upto):
        if wanted(record):
            yield view(service, record)


async def _merged(sources: dict[str, AsyncGenerator[EventView, None]]) -> AsyncGenerator[EventView, None]:
    heads: dict[str, EventView] = {}
    async with AsyncExitStack() as stack:
        for name, source in sources.items():
            await stack.enter_async_context(aclosing(source))
            with suppress(StopAsyncIteration):
                heads[name] = await anext(source)
        while heads:
            name = min(heads, key=lambda name: (heads[name].time, name))
            yield heads.pop(name)
            with suppress(StopAsyncIteration):
                heads[name] = await anext(sources[name])


async def _followed(
    app: App, logs: dict[str, Log], ends: dict[str, int], missing: list[str], wanted: Callable[[Record], bool]
) -> AsyncGenerator[EventView, None]:
    queue: asyncio.Queue[EventView | BaseException] = asyncio.Queue(PAGE)

    async def follow(name: str) -> None:
        try:
            if name in logs:
                await _follow(name, logs[name], ends[name], wanted, queue)
                return
            async with _awaited_log(app, name) as log:
                await _follow(name, log, 0, wanted, queue)
        except Exception as error:
            # Whatever it is: a follower that ended without a word would be waited for without end.
            await queue.put(error)

    tasks = [asyncio.create_task(follow(name)) for name in (*logs, *missing)]
    try:
        while True:
            event = await queue.get()
            if isinstance(event, BaseException):
                raise event
            yield event
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def _awaited_log(app: App, name: str) -> AsyncIterator[Log]:
    """The log of a service, as soon as there is one."""
    async with AsyncExitStack() as stack:
        while True:
            try:
                log = await stack.enter_async_context(opened_log(app, name))
                break
            except StoreUnavailable:
                await asyncio.sleep(POLL)
        yield log


async def _follow(
    name: str, log: Log, position: int, wanted: Callable[[Record], bool], queue: asyncio.Queue[Any]
) -> None:
    rung = asyncio.Event()
    stop = log.listen(rung.set)
    try:
        while True:
            rung.clear()
            records = await log.read(position + 1, PAGE)
            for record in records:
                position = record.position
                if wanted(record):
                    await queue.put(view(name, record))
            if not records:
                with suppress(TimeoutError):
                    # Not wait_for: up to Python 3.11 it loses a cancellation that comes with what it waits for.
                    async with asyncio.timeout(POLL):
                        await rung.wait()
    finally:
        stop()


# --- one of them ------------------------------------------------------------------------------------------------------


async def show_event(app: App, wanted: str | int, services: Iterable[str] = ()) -> EventDetail:
    """A message by its id, or by its position in one service's log, and what became of it at every reader."""
    names = chosen(app, services)
    if isinstance(wanted, int) and len(names) != 1:
        raise ConfigurationError(f"position {wanted} of which log? Name the service, or give the message's id")
    for name in names:
        async with opened_log(app, name) as log:
            record = await (_at(log, name, wanted) if isinstance(wanted, int) else log.find(wanted))
        if record is not None:
            readers = [r for s in _readers(app, name, record) for r in await _readings(app, s, record)]
            return EventDetail(view(name, record), Envelope(record, name).attributes(), readers)
    where = f"the log of {names[0]}" if len(names) == 1 else f"the logs of {', '.join(names)}"
    raise NotFound(f"there is no message {wanted} in {where}")


async def _at(log: Log, service: str, position: int) -> Record | None:
    found = await log.read(position, 1)
    if found and found[0].position == position:
        return found[0]
    if 0 < position <= await log.floor():
        raise NotFound(f"{service} has no message at position {position} any more: retention has deleted it")
    return None


def _readers(app: App, origin: str, record: Record) -> list[Subscription]:
    everyone = [subscription for found in app.topology.subscriptions.values() for subscription in found]
    readers = [s for s in everyone if s.origin == origin and record.topic in s.topics]
    return [subscription for subscription in readers if record.type in subscription.handlers]


async def _readings(app: App, subscription: Subscription, record: Record) -> list[Reading]:
    group, handlers = subscription.group, [h.name for h in subscription.handlers[record.type]]
    try:
        async with opened(app, group) as store:
            rows = await cursor.lanes(store, group)
            found = await store.fetch(
                _SQL["of_message"], group=group, origin=subscription.origin, position=record.position
            )
    except SkaldError as error:
        return [Reading(group, name, "unknown", scrubbed(str(error))) for name in handlers]
    lanes = {row.lane: row for row in rows if row.origin == subscription.origin}
    lane = lanes.get(lane_of(record.slot, len(lanes))) if lanes else None
    deliveries = {row["handler"]: row for row in found}
    return [_reading(group, name, record, lane, deliveries.get(name)) for name in handlers]


def _reading(
    group: str, handler: str, record: Record, lane: cursor.LaneRow | None, delivery: dict[str, Any] | None
) -> Reading:
    if delivery is not None:
        return Reading(group, handler, delivery["state"], delivery["error"] and scrubbed(delivery["error"]))
    if lane is None:
        return Reading(group, handler, "not started", "this service has never read that log")
    if lane.position >= record.position:
        return Reading(group, handler, "handled")
    if lane.stopped is not None:
        return Reading(group, handler, "stopped", lane.stopped)
    return Reading(group, handler, "ahead", f"lane {lane.lane} stands at {lane.position}")
