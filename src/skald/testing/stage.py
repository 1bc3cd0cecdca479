"""One service at work in a laboratory, and the outside, which a test plays: who publishes what it handles, and who
answers what it calls. What ``scenario`` and ``sagas`` are made of."""

from __future__ import annotations

import asyncio
import inspect
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, Union

import msgspec

from skald.app import App
from skald.codec import codec_for
from skald.errors import ConfigurationError
from skald.message import Event, MessageType, Record, message_type
from skald.messaging.compensation import CompensationFailed
from skald.messaging.context import Cause, current_cause
from skald.messaging.definition import injectable
from skald.messaging.outcome import Item, Outcome
from skald.messaging.provider import Provider
from skald.messaging.router import published_by
from skald.messaging.service import Service
from skald.store import Row
from skald.testing.workflows import Lab, laboratory
from skald.workflows.calling import results
from skald.workflows.loop import user_line

T = TypeVar("T")
Provided = Mapping[type, Any]
Answers = Mapping[type, Iterable[type]]
"""By class of command, what the test answers it with."""

PATIENCE = 1.0
"""Real seconds after which a handler or a step that does nothing counts as one that waits: slow machines have time."""
MOST = 10_000
"""Moves of the clock, after which a scenario counts as one that goes on for ever."""


class Refused(Event, key="key", name="skald.testing.Refused"):
    """What a command that is made to fail is answered with."""

    key: str


class Raised(msgspec.Struct, frozen=True):
    """What a handler has failed with, at one attempt."""

    handler: str
    error: BaseException


class Stage:
    """Made by ``staged``. ``told`` has in words what has happened, in order."""

    def __init__(self, lab: Lab, service: Service, outside: Service) -> None:
        self.lab, self.service, self.outside = lab, service, outside
        self.raised: list[Raised] = []
        self.told: list[str] = []
        self._began = lab.clock.now()
        lab.grace = PATIENCE
        self._ours: set[int] = set()
        """Positions of what the test itself has published in the name of the service."""
        own = published_by(service.declaration())
        kinds = own | {kind for handler in service.declaration().handlers for kind in handler.types}
        self._classes = {kind.name: kind.cls for kind in kinds}
        self._own = {kind.cls for kind in own if kind.kind != "command"}
        for one in lab.running:
            if one.invoker is not None:
                one.invoker.failed = self._listening(one.invoker.failed)  # type: ignore[method-assign]

    def _listening(self, failed: Callable[..., Coroutine[Any, Any, Outcome | None]]) -> Callable[..., Any]:
        async def heard(item: Item, origin: str, error: BaseException, **options: Any) -> Outcome | None:
            self.raised.append(Raised(item.handler.name, error))
            self.tell(f"{item.handler.name} raised {type(error).__name__}: {error} (attempt {item.attempts})")
            return await failed(item, origin, error, **options)

        return heard

    def tell(self, what: str) -> None:
        seconds = (self.lab.clock.now() - self._began) / 1e6
        self.told.append(f"{f'after {seconds:g} s':>14}  {what}")

    # --- what happens -------------------------------------------------------------------------------------------------

    async def publish(self, message: Any) -> None:
        """In the name of its owner, up to where nothing goes on any more."""
        if type(message) in self._own:
            self._ours.update(await self.service.publish(message))
        else:
            await self.outside.publish(message)
        await self.settle()

    async def answer(self, command: Record, event: Any) -> None:
        """As the handler of a command does that was called."""
        cause = Cause(command.id, command.correlation_id, command.traceparent, command.key)
        token = current_cause.set(cause)
        try:
            await self.outside.publish(event)
        finally:
            current_cause.reset(token)
        await self.settle()

    async def do(self, what: str | Callable[[], Any]) -> None:
        """Runs a statement, or calls a function."""
        if isinstance(what, str):
            async with self.service.transaction() as tx:
                await tx.execute(what)
        elif inspect.isawaitable(result := what()):
            await result
        await self.settle()

    async def settle(self) -> None:
        await self.lab.move_to(self.lab.clock.now())

    # --- what has come of it ------------------------------------------------------------------------------------------

    async def position(self) -> int:
        return (await self.service.store.log.end())[0]

    async def records(self, after: int) -> list[Record]:
        """What the service has published since, itself."""
        found, position = [], after
        while some := [one for one in await self.service.store.log.read(position + 1, 500) if one.position > position]:
            found += some
            position = some[-1].position
        return [one for one in found if one.position not in self._ours]

    def read(self, record: Record) -> Any:
        return codec_for(self._classes[record.type]).decode(record.payload or b"")


@asynccontextmanager
async def staged(
    service: Service, provide: Provided, answers: Answers, folder: Path | None = None
) -> AsyncIterator[Stage]:
    """``service`` as it is, but for what is provided otherwise. In ``folder`` its data is left behind."""
    outside, routes = _outside(service, answers), service.calls.routes
    try:
        with _provided(service, provide):
            async with laboratory(service, apart=[outside], folder=folder) as lab:
                yield Stage(lab, service, outside)
    finally:
        service.calls.routes = routes


@asynccontextmanager
async def left_behind(service: Service, folder: Path) -> AsyncIterator[None]:
    """Connected to what ``staged`` has left in a folder."""
    outside, routes = _outside(service, {}), service.calls.routes
    stores = {one.name: f"sqlite:{folder}" for one in (service, outside)}
    try:
        async with App(service, outside, stores=stores).connect(service.name):
            yield
    finally:
        service.calls.routes = routes


def _outside(service: Service, answers: Answers) -> Service:
    """Publishes what ``service`` handles, and stands for whoever handles its commands."""
    declaration = service.declaration()
    own = published_by(declaration)
    handled = {kind for handler in declaration.handlers for kind in handler.types}
    wanted = [kind.cls for kind in handled if kind.kind == "command" or kind not in own]
    found = Service(
        "outside" if service.name != "outside" else "outside_of_it", publishes={*wanted, CompensationFailed}
    )
    for kind in sorted(own - handled, key=lambda one: one.name):
        if kind.kind == "command":
            replies = [*(results(kind.cls) or ()), *answers.get(kind.cls, ()), Refused, CompensationFailed]
            _handle(found, kind, replies if kind in service.calls.kinds else [])
    return found


def _handle(service: Service, kind: MessageType, returns: Iterable[type]) -> None:
    def answer(command: Any) -> None:
        """Is never called: the test answers."""

    answer.__annotations__ = {"command": kind.cls, "return": Union[tuple(dict.fromkeys(returns)) or None]}  # noqa: UP007
    service.on(kind.cls, name=f"answer {kind.name}")(answer)


@contextmanager
def _provided(service: Service, provide: Provided) -> Iterator[None]:
    kept = service.providers
    service.providers = {**kept, **{cls: Provider(cls, _giving(value), {}) for cls, value in provide.items()}}
    try:
        yield
    finally:
        service.providers = kept


def _giving(value: T) -> Callable[[], T]:
    return lambda: value


def check_provided(service: Service, provide: Provided) -> None:
    wanted = {cls for handler in service.handlers for cls in handler.injected.values() if not injectable(cls)}
    for cls in provide:
        if cls not in wanted:
            known = ", ".join(sorted(one.__name__ for one in wanted)) or "nothing"
            raise ConfigurationError(
                f"{user_line()}: provide={{{getattr(cls, '__name__', cls)}: …}}: no handler of {service.name} asks for "
                f"that; they ask for {known}"
            )


# --- what the faces have in common ------------------------------------------------------------------------------------


def play(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """On a loop of its own."""
    if asyncio._get_running_loop() is not None:
        raise ConfigurationError(
            f"{user_line()}: a scenario has an event loop of its own: make this test a plain 'def', and no 'async def'"
        )
    with asyncio.Runner() as runner:
        return runner.run(work())


def values_of(rows: Iterable[Row]) -> list[Any]:
    """A row of one column is its value, any other one is a tuple."""
    found = [tuple(row.values()) for row in rows]
    return [row[0] if len(row) == 1 else row for row in found]


def new_folder() -> Path:
    """In memory, where that is a folder."""
    return Path(tempfile.mkdtemp(prefix="skald-scenario-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))


def is_message(value: object) -> bool:
    try:
        message_type(type(value))
    except TypeError:
        return False
    return True


def seconds_of(time: timedelta | float) -> float:
    seconds = time.total_seconds() if isinstance(time, timedelta) else float(time)
    if not seconds >= 0:
        raise ConfigurationError(f"{user_line()}: after({time!r}): the clock only goes forward")
    return seconds
