"""How sagas end where something unusual happens just then: by hand, with a result that cannot be stored, in their first
turn, beside children, locks and threads that have not ended yet."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from skald import (
    NEVER,
    App,
    Command,
    Event,
    SagaCompensated,
    Service,
    call,
    compensation,
    lock,
    saga,
    step,
    workflow,
    workflows,
)
from skald.operations import sagas as operations
from skald.operations.access import OperationRefused
from skald.sagas.machine import Status
from skald.sagas.question import Choice
from skald.testing.workflows import Lab, crash_everywhere, laboratory
from tests.simulation.stage import QUICK, eventually
from tests.unit.saga_programs import asked, begin_anew, happen, look, state, statuses, take, three, told, trouble

go = workflows.Signal("go", str)


@pytest.fixture(autouse=True)
def _world() -> None:
    begin_anew()
    kids.clear()
    let.clear()


# --- a pivot that a person decides on ---------------------------------------------------------------------------------


class Refused(Exception):
    pass


@step(pivot=True, human=True, retry=NEVER)
async def hand_over(name: str) -> str:
    happen(f"hand over {name}")
    return name


@step(pivot=True, forward=True, retry={Refused: NEVER})
async def push(name: str) -> str:
    happen(f"push {name}")
    return name


@saga
async def handed_over(name: str) -> str:
    await take("a")
    await hand_over(name)
    await look(name)
    return name


@saga
async def pushed(name: str) -> str:
    await take("a")
    await push(name)
    await look(name)
    return name


@saga(deadline=60)
async def late(name: str) -> str:
    await take("a")
    return await hand_over(name)


@pytest.mark.parametrize("flow", [handed_over, pushed])
async def test_a_pivot_that_a_person_has_done_is_not_gone_back_behind(flow: Any) -> None:
    async with laboratory(Service("s", workflows=[flow])) as lab:
        trouble.update({"hand over x": Refused("no"), "push x": Refused("no"), "look x": ValueError("no")})
        handle = await flow.start("x", id="s-1")
        await lab.settle()
        [question] = await asked(lab, "s-1")
        await lab.resolve(handle, "done", question.step, "by hand")
        await lab.settle()
        assert "give back a" not in told
        assert (await statuses(lab, "s-1"))[-1] == "NEEDS_ATTENTION"


async def test_a_deadline_that_came_while_the_pivot_ran_counts_when_it_has_failed() -> None:
    async with laboratory(Service("s", workflows=[late])) as lab:
        begun, end = asyncio.Event(), asyncio.Event()

        async def slowly(name: str) -> str:
            begun.set()
            await end.wait()
            raise Refused("no")

        lab.mock(hand_over, slowly)
        await late.start("x", id="s-1")
        await begun.wait()
        await lab.advance(timedelta(seconds=61))
        end.set()
        await lab.settle()
        assert told == ["take a", "give back a"]


# --- what it comes to -------------------------------------------------------------------------------------------------


@saga
async def wrong(name: str) -> int:
    await take("a")
    return name  # type: ignore[return-value]


@saga
async def invalid(name: str) -> str:
    raise ValueError("bad request")


async def test_a_result_that_cannot_be_stored_is_a_failure_like_any_other() -> None:
    async with laboratory(Service("s", workflows=[wrong])) as lab:
        handle = await wrong.start("x", id="s-1")
        with pytest.raises(SagaCompensated, match="InvalidMessage"):
            await lab.result(handle)
        assert told == ["take a", "give back a"]


class Halt(BaseException):
    pass


@saga
async def halting(name: str) -> str:
    await take("a")
    if name == "as new":
        async with asyncio.TaskGroup():
            workflows.continue_as_new("b")
    if name == "in a group":
        async with asyncio.TaskGroup():
            raise Halt
    raise Halt


@pytest.mark.parametrize("name", ["as new", "in a group", "at once"])
async def test_whatever_ends_the_code_is_a_failure(name: str) -> None:
    async with laboratory(Service("s", workflows=[halting])) as lab:
        handle = await halting.start(name, id="s-1")
        await lab.settle()
        assert await state(lab, handle) == "failed"
        assert told == ["take a", "give back a"]
        assert (await statuses(lab, "s-1"))[-1] == "COMPENSATED"


@saga
async def pausing() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(take("a"))
        await go.receive()


async def test_leaving_memory_in_a_task_group_is_none() -> None:
    async with laboratory(Service("s", workflows=[pausing]), idle=0.0) as lab:
        handle = await pausing.start(id="s-1")
        await lab.settle()
        assert told == ["take a"]
        await handle.signal(go, "")
        await lab.settle()
        assert await state(lab, handle) == "completed"
        assert told == ["take a"]


async def test_one_that_fails_in_its_first_turn_ends_wherever_it_crashes() -> None:
    async def scenario(lab: Lab) -> str:
        handle = await invalid.start("x", id="s-1", delay=5)
        with pytest.raises(SagaCompensated) as caught:
            await lab.result(handle)
        return caught.value.type

    assert set(await crash_everywhere(scenario, Service("s", workflows=[invalid]))) == {"ValueError"}


async def test_one_that_was_terminated_asks_nothing(tmp_path: Path) -> None:
    app = App(Service("orders", workflows=[three]), store=f"sqlite:{tmp_path / 'data'}", settings=QUICK)
    await app.migrate()
    trouble.update({"look x": ValueError("no"), "give back b": OSError("away")})

    async def is_at(status: Status) -> bool:
        return any(one.status == status for one in (await operations.list_sagas(app)).sagas)

    async with app.run():
        handle = await three.start("x", id="s-1")
        await eventually(lambda: is_at(Status.COMPENSATION_FAILED))
        await handle.terminate("enough")
        await eventually(lambda: is_at(Status.TERMINATED))
        assert (await operations.show_saga(app, "s-1")).questions == []
        with pytest.raises(OperationRefused, match="asks nothing"):
            await operations.resolve_saga(app, "s-1", Choice.DONE, "take", by="ann", reason="done")


# --- what has not ended yet -------------------------------------------------------------------------------------------

kids: list[str] = []
let = threading.Event()


@step
async def grow(name: str) -> None:
    kids.append(name)


@workflow
async def kid(name: str) -> None:
    await asyncio.sleep(30)  # sleep: a durable timer
    await grow(name)


@saga
async def with_children(name: str) -> None:
    async def later() -> None:
        await asyncio.sleep(60)  # sleep: a durable timer
        await kid.run("begun later")

    await take("a")
    await asyncio.gather(kid.run("begun"), later(), look(name))


@saga
async def locking(key: str) -> None:
    await take("a")
    await asyncio.gather(lock(key), lock(key), look("x"))


@saga
async def holding(key: str) -> None:
    await lock(key)
    await go.receive()


async def test_children_are_given_up_with_the_code() -> None:
    async with laboratory(Service("s", workflows=[with_children, kid])) as lab:
        trouble.update({"look x": ValueError("no"), "give back a": OSError("away")})
        await with_children.start("x", id="s-1")
        await lab.settle()
        await lab.advance(timedelta(seconds=200))
        assert kids == []
        assert (await statuses(lab, "s-1"))[-1] == "COMPENSATION_FAILED"


async def test_no_lock_is_asked_for_once_the_code_has_ended() -> None:
    service = Service("s", workflows=[locking, holding])
    rows = "SELECT saga_id FROM skald_locks"
    async with laboratory(service) as lab:
        holder = await holding.start("k", id="h")
        await lab.settle()
        trouble.update({"look x": ValueError("no"), "give back a": OSError("away")})
        await locking.start("k", id="g")
        await lab.settle()
        assert await service.fetch(rows) == [{"saga_id": "h"}]
        await holder.signal(go, "now")
        await lab.settle()
        assert await service.fetch(rows) == []


@compensation(retry=NEVER)
async def undo(name: str) -> None:
    told.append(f"undo {name}")


def not_done(name: str) -> Any:
    told.append(f"look up {name}")
    return name if f"do {name}" in told else workflows.NOT_DONE


@step(compensate=undo, retry=NEVER)
def in_thread(name: str) -> str:
    let.wait(30)
    told.append(f"do {name}")
    return name


@step(compensate=undo, retry=NEVER, lookup=not_done)
def looked_up(name: str) -> str:
    let.wait(30)
    told.append(f"do {name}")
    return name


@saga
async def threaded(name: str) -> None:
    await asyncio.gather(looked_up(name) if name == "looked up" else in_thread(name), look("x"))


class Shelved(Event, key="name"):
    name: str


class Shelve(Command[Shelved], key="name"):
    name: str


class Clear(Command[None], key="name"):
    name: str


@step(retry=NEVER)
def weigh(name: str) -> None:
    let.wait(30)
    told.append(f"weigh {name}")


@step(compensate=undo, retry=NEVER)
async def announce(name: str) -> None: ...


@saga
async def weighing(name: str) -> None:
    if name == "called":
        await call(Shelve(name), compensate=Clear(name))
    else:
        await announce(name)
    await asyncio.gather(weigh(name), look("x"))


@pytest.mark.parametrize("name", ["called", "done"])
async def test_what_was_done_before_is_not_undone_beside_a_thread_that_was_given_up(name: str) -> None:
    """It may work on that. Nothing undoes what the thread does."""
    shop, stock = Service("shop", workflows=[weighing], calls=[Shelve, Clear]), Service("stock")

    @stock.on(Shelve)
    async def shelve(command: Shelve) -> Shelved:
        return Shelved(command.name)

    @stock.on(Clear)
    async def clear(command: Clear) -> None:
        told.append(f"undo {command.name}")

    async with laboratory(shop, stock) as lab:
        trouble["look x"] = ValueError("no")
        handle = await weighing.start(name, id="s-1")
        await lab.settle()
        assert told == ["look x"]
        let.set()
        with pytest.raises(SagaCompensated):
            await lab.result(handle)
    assert told == ["look x", f"weigh {name}", f"undo {name}"]


@pytest.mark.parametrize("name", ["plain", "looked up"])
async def test_nothing_overtakes_a_thread_that_was_given_up(name: str) -> None:
    async with laboratory(Service("s", workflows=[threaded])) as lab:
        trouble["look x"] = ValueError("no")
        handle = await threaded.start(name, id="s-1")
        await lab.settle()
        assert told == ["look x"]
        let.set()
        with pytest.raises(SagaCompensated):
            await lab.result(handle)
        assert await state(lab, handle) == "failed"
    looks = ["look up looked up"] if name == "looked up" else []
    assert told == ["look x", f"do {name}", *looks, f"undo {name}"]
