"""What a type checker must accept of scenarios, and what it must refuse."""

from __future__ import annotations

from collections.abc import Iterator
from typing import assert_type

from skald import Command, Event, Process, Saga, Service, compensation, saga, step
from skald.testing.sagas import Outcome, SagaScenario, each_compensation, each_step
from skald.testing.scenario import Scenario
from skald.workflows import Signal


class Placed(Event, key="order"):
    order: str


class Reserve(Command[Placed], key="order"):
    order: str


class Checkout(Process):
    order: str


class Gateway: ...


go = Signal("go", str)


@compensation
async def give_back(amount: int | None) -> None: ...


@step(compensate=give_back)
async def take(amount: int) -> int:
    return amount


@step
def look() -> str:
    return ""


@saga
async def order(id: str, amount: int) -> str:
    return f"{id} {await take(amount)}"


orders = Service("orders", publishes=[Placed], workflows=[order], calls=[Reserve])


def handlers() -> None:
    placed = Scenario(orders, provide={Gateway: Gateway()}).given(Checkout("o"), "DELETE FROM orders", Placed("o"))
    assert_type(placed, Scenario)
    placed.when(Placed("o")).after(5).then(Placed("o"), Placed, state=Checkout("o"), raised=[OSError, ValueError("no")])
    placed.then(parked="charge", effects={"charge": "done"}, rows={"SELECT 1 AS one": [1]}, timeouts={"patience": 5.0})
    placed.then(state=Placed("o"))  # type: ignore[arg-type]


def sagas() -> None:
    scenario = SagaScenario(order, orders)
    given = scenario.given(take, 1, OSError("away"), lambda amount: amount + 1).given(give_back, None).given(look, "")
    prepared = given.given("DELETE FROM orders", lambda: None)
    prepared.when("o-1", 5).signal(go, "now").after(60).cancel("why").then("o-1 5", status="COMPLETED")
    given.reply(Reserve, Placed("o"), after=5, times=2).never(Reserve).fail(take).fail(2, lost=True).fail("take")
    assert_type(given.when("o-1", 5).play(), Outcome[str])
    assert_type(each_step(given.when("o-1", 5)), Iterator[Outcome[str]])
    for failed in each_compensation(given.when("o-1", 5), ValueError("no")):
        assert_type(failed.compensated, list[str])
        assert_type(failed.result, str)
        failed.then("o-1 5", asks="take")


def mistakes() -> None:
    scenario = SagaScenario(order, orders)
    scenario.when("o-1")  # type: ignore[call-arg]
    scenario.when("o-1", "5")  # type: ignore[arg-type]
    scenario.when("o-1", 5).signal(go, 5)  # type: ignore[misc]
    scenario.when("o-1", 5).then(5)  # type: ignore[arg-type]
    scenario.given(look, 5)  # type: ignore[misc]
    scenario.reply(Placed, Placed("o"))  # type: ignore[type-var]
    SagaScenario(take)  # type: ignore[arg-type]


graph = SagaScenario(Saga("graph").step("left", take)).when(5)
graph.then(compensated=[{"left"}])
