"""A small world that sagas take things from, and a saga of three steps that is made to fail in every way."""

from __future__ import annotations

from typing import Any

import msgspec

from skald import NEVER, FailedExecution, Service, compensation, saga, step, workflows
from skald.sagas.machine import Status
from skald.sagas.question import ANSWERS, Answer, Choice, decode_change, encode
from skald.testing.workflows import Lab
from skald.unit import AddressKind, EntryKind, LetterKind
from skald.workflows import journal
from skald.workflows.context import current_attempt
from skald.workflows.starting import Handle

taken: dict[str, str] = {}
"""What is held now: by the key of the step that took it."""
told: list[str] = []
"""What has happened, in order."""
failures: list[FailedExecution] = []
trouble: dict[str, Any] = {}
"""By name of a step or a compensation: what it raises."""


class Thing(msgspec.Struct, frozen=True):
    name: str


def begin_anew() -> None:
    for found in (taken, told, failures, trouble):
        found.clear()


def happen(name: str) -> None:
    told.append(name)
    if name in trouble:
        raise trouble[name]


@compensation(retry=NEVER)
async def give_back(thing: Thing | None, name: str, failed: FailedExecution, key: str) -> None:
    """Harmless where nothing was taken."""
    failures.append(failed)
    happen(f"give back {name}" if thing else f"give back {name}, if anything")
    taken.pop(key, None)


@step(compensate=give_back, retry=NEVER)
async def take(name: str) -> Thing:
    happen(f"take {name}")
    if current_attempt.get() is not None:
        taken[workflows.attempt().key] = name
    return Thing(name)


@step(retry=NEVER)
async def look(name: str) -> str:
    happen(f"look {name}")
    return name


@saga
async def three(name: str) -> str:
    found = [await take("a"), await take("b")]
    await look(name)
    return " ".join([one.name for one in found])


SERVICE = Service("sagas", workflows=[three])


async def answer(lab: Lab, id: str, choice: str, number: int = 1, result: Any = None, reason: str = "seen to") -> None:
    """As ``skald sagas resolve`` does, but without looking whether anything is asked."""
    executor = lab._executors[0]
    body = encode(Answer(number, Choice(choice), "ann", reason, msgspec.Raw(msgspec.json.encode(result))))
    await executor._client.send(LetterKind.SIGNAL, AddressKind.ID, id, ANSWERS, body)
    await lab.settle()


async def statuses(lab: Lab, id: str) -> list[str]:
    return [entry.name for entry in (await lab.history(id)).journal() if entry.kind == EntryKind.STATUS]


async def asked(lab: Lab, id: str) -> list[Any]:
    """Every question so far."""
    entries = (await lab.history(id)).journal()
    changes = [decode_change(one.payload or b"{}") for one in entries if one.kind == EntryKind.STATUS]
    return [change.question for change in changes if change.question is not None]


async def state(lab: Lab, handle: Handle[Any]) -> str:
    known = await journal.by_id(lab._executors[0].store, handle.id)
    assert known is not None
    return known.state.value


BACK = [Status.COMPENSATING, Status.COMPENSATED]
