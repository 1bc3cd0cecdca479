"""The sagas among the workflows whose histories are kept here; the same rules hold for them."""

from __future__ import annotations

import asyncio

import msgspec

from skald import NEVER, FailedExecution, LockTaken, SagaCompensated, compensation, lock, saga, step
from skald.sagas.question import ANSWERS, Answer, Choice, encode
from skald.testing.workflows import Lab
from skald.unit import AddressKind, LetterKind


class Room(msgspec.Struct, frozen=True):
    name: str
    nights: int = 1


broken = False
"""Whether rooms cannot be given back now."""


@compensation(retry=NEVER)
async def give_back(room: Room | None, name: str, failed: FailedExecution, key: str) -> None:
    if broken and name == "blue":
        raise OSError("nobody answers")


@step(compensate=give_back, retry=NEVER)
async def take(name: str) -> Room:
    if name == "late":
        raise TimeoutError("no answer")
    return Room(name, 2)


@step(pivot=True, retry=NEVER)
async def pay(rooms: list[Room]) -> int:
    if any(room.name == "dear" for room in rooms):
        raise ValueError("no money")
    return len(rooms)


@step(critical=False, retry=NEVER)
async def tell(name: str) -> str:
    raise OSError("no mail today")


@saga
async def stay(room: Room) -> int:
    rooms = await asyncio.gather(take("red"), take("green"))
    paid = await pay([*rooms, room])
    await tell(room.name)
    return paid


@saga(deadline=3600)
async def stay_compensated(room: Room) -> int:
    rooms = [await take("red"), await take("blue")]
    await take("late")
    return await pay(rooms)


@saga(deadline=3600)
async def stay_resolved(room: Room) -> int:
    rooms = [await take("red"), await take("blue")]
    return await pay([*rooms, Room("dear")])


@saga
async def keep(room: Room) -> None:
    await lock(f"room {room.name}")
    await asyncio.sleep(3600)  # sleep: a durable timer


@saga
async def stay_locked(room: Room) -> list[str]:
    await lock("key")
    await asyncio.sleep(60)  # sleep: a durable timer
    found = [(await lock("room blue", conflict="proceed")).holder or ""]
    for conflict, timeout in (("fail", None), ("wait", 5.0)):
        try:
            await lock("room blue", conflict=conflict, timeout=timeout)
        except (LockTaken, TimeoutError) as error:
            found.append(str(error))
    await lock("room blue")
    await lock("key")
    found.append((await take(room.name)).name)
    return found


SAGAS = [stay, stay_compensated, stay_resolved, stay_locked, keep]


async def finish(lab: Lab, name: str) -> None:
    try:
        await lab.result(next(one for one in SAGAS if one.name == name).handle(name))
    except SagaCompensated:
        assert name != "stay"


async def wait(lab: Lab, name: str) -> None:
    """For a lock that another saga has."""
    await keep.start(Room("blue"), id="keeper")
    await finish(lab, name)


async def resolve(lab: Lab, name: str) -> None:
    """Its compensation has failed; it is tried again in vain, and then passed over."""
    client = lab._executors[0]._client
    for number, choice in enumerate((Choice.RETRY, Choice.SKIP), start=1):
        body = encode(Answer(number, choice, "ann", "the house has burnt down"))
        await client.send(LetterKind.SIGNAL, AddressKind.ID, name, ANSWERS, body)
        await lab.settle()
    await finish(lab, name)
