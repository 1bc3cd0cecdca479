"""The workflows that call, among those whose histories are kept here; the same rules hold for them."""

from __future__ import annotations

from skald import CallRejected, Command, Event, SagaCompensated, Service, call, saga, step, workflow
from skald.testing.workflows import Lab


class Reserved(Event, key="name"):
    name: str
    shelf: int


class SoldOut(Event, key="name"):
    name: str
    since: str


class Released(Event, key="name"):
    name: str


class Reserve(Command[Reserved], key="name"):
    name: str
    count: int = 1


class Release(Command[Released], key="name"):
    name: str


class Note(Command[None], key="name"):
    name: str


STOCK = Service("stock")


@STOCK.on(Reserve)
def reserve(command: Reserve) -> Reserved | SoldOut:
    return SoldOut(command.name, "today") if command.count > 9 else Reserved(command.name, command.count)


@STOCK.on(Release)
def release(command: Release) -> Released:
    return Released(command.name)


@STOCK.on(Note)
def note(command: Note) -> None: ...


@step
async def prepare(name: str) -> str:
    return name.upper()


@workflow
async def calling(name: str) -> list[str]:
    reserved = await call(Reserve(await prepare(name), 3))
    told = [reserved.name, str(reserved.shelf), str(await call(Note(name)))]
    try:
        await call(Reserve(name, 10), timeout=60)
    except CallRejected as rejected:
        told += [rejected.type, rejected.reply.since]
    return told


@saga
async def calling_back(name: str) -> None:
    await prepare(name)
    await call(Reserve(name), compensate=Release(name))
    await call(Reserve(name, 20), compensate=Release(name))


WORKFLOWS = [calling, calling_back]
CALLS = [Reserve, Release, Note]


async def finish(lab: Lab, name: str) -> None:
    """Answers come from another service, and in a time of their own."""
    try:
        await next(one for one in WORKFLOWS if one.name == name).handle(name).result()
    except SagaCompensated:
        assert name == "calling_back"
