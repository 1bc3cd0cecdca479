"""Given, when, then for sagas: steps and compensations that fail, answers that are late, twice or never, persons."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from skald import (
    NEVER,
    CallRejected,
    Command,
    Event,
    Retry,
    Saga,
    SagaCompensated,
    Service,
    call,
    compensation,
    saga,
    step,
)
from skald.errors import ConfigurationError
from skald.testing.sagas import SagaScenario, each_compensation, each_step
from skald.workflows import Signal

THIS = Path(__file__).name


class Thing(msgspec.Struct, frozen=True):
    name: str


held: list[str] = []
go = Signal("go", str)


@pytest.fixture(autouse=True)
def nothing_is_held() -> None:
    held.clear()


class SoldOut(Exception):
    """There is none."""


@compensation(retry=Retry(delays=(5,)))
async def give_back(thing: Thing | None, name: str) -> None:
    if name in held:
        held.remove(name)


@step(retry={SoldOut: NEVER, "*": Retry(delays=(1, 60))}, compensate=give_back)
async def take(name: str) -> Thing:
    held.append(name)
    return Thing(name)


@step(retry=NEVER, compensate=give_back)
def borrow(name: str) -> Thing:
    held.append(name)
    return Thing(name)


@step(critical=False, retry=NEVER)
async def decorate() -> None: ...


@step(pivot=True, retry=NEVER)
async def hand_over(what: str) -> None: ...


@step(forward=True, retry={SoldOut: NEVER})
async def thank() -> None: ...


@step(human=True, retry=NEVER)
async def inspect(name: str) -> str:
    return f"{name} is fine"


@saga
async def party(name: str) -> str:
    cake = await take("cake")
    await borrow("table")
    await decorate()
    await hand_over(name)
    await thank()
    return f"{name} has {cake.name}"


@saga(deadline=600)
async def patient(name: str) -> str:
    await take(name)
    return await go.receive()


@saga
async def inspected(name: str) -> str:
    await take(name)
    return await inspect(name)


PARTY = SagaScenario(party).when("ada")


# --- steps ------------------------------------------------------------------------------------------------------------


def test_it_goes_well_with_what_steps_come_to() -> None:
    PARTY.then("ada has cake", steps=["take", "borrow", "decorate", "hand_over", "thank"])
    assert held == ["cake", "table"]
    away = SagaScenario(party).given(take, OSError("away"), TimeoutError(), Thing("bread")).when("ada")
    away.then("ada has bread")


def test_a_class_of_exception_is_raised() -> None:
    """As ``fail`` does; it was returned, and a result that cannot be stored is undone."""
    SagaScenario(party).given(take, SoldOut).when("ada").then(failed="take", error=SoldOut, compensated=[])


def test_a_function_is_called_with_the_arguments() -> None:
    SagaScenario(party).given(take, lambda name: Thing(name.upper())).when("ada").then("ada has CAKE")


def test_every_failure_gives_back_what_was_taken() -> None:
    for failed in each_step(SagaScenario(party).when("ada")):
        if failed.failing == "decorate":
            failed.then("ada has cake")
            held.clear()
        else:
            failed.then(failed=failed.failing, compensated=[one for one in ("borrow", "take") if one in failed.done])
        assert held == []


def test_every_answer_that_is_lost() -> None:
    found = {failed.failing: failed for failed in each_step(SagaScenario(party).when("ada"), lost=True)}
    assert list(found) == ["take", "borrow", "decorate", "hand_over"], "thank is tried to the end"
    found["take"].then(failed="take", error=TimeoutError("no answer"), compensated=["take"])
    found["borrow"].then(failed="borrow", compensated=["borrow", "take"])
    found["hand_over"].then(asks="hand_over", status="NEEDS_ATTENTION")


def test_one_step_fails_by_its_name_its_number_or_itself() -> None:
    for which in ("borrow", 2, borrow):
        SagaScenario(party).fail(which, SoldOut("no table")).when("ada").then(
            failed="borrow", error=SoldOut("no table"), compensated=["take"]
        )


def test_a_step_that_is_retried_to_the_end_fails_only_with_an_error_of_its_own() -> None:
    broken = SagaScenario(party).fail(thank, SoldOut("no words")).when("ada")
    broken.then(status="NEEDS_ATTENTION", asks="thank")
    broken.decide("skip", "thank").then("ada has cake")
    with pytest.raises(ConfigurationError, match=rf"{THIS}:\d+: fail\(thank\): thank is retried to the end"):
        SagaScenario(party).fail(thank).when("ada").then()


# --- compensations ----------------------------------------------------------------------------------------------------

FAILING = SagaScenario(party).fail(hand_over).when("ada")


def test_each_compensation_that_fails_waits_for_a_person() -> None:
    found = []
    for failed in each_compensation(FAILING):
        failed.then(status="COMPENSATION_FAILED", asks=failed.failing)
        found.append(failed.failing)
        held.clear()
    assert found == ["borrow", "take"]


@pytest.mark.parametrize(("choice", "undone"), [("retry", ["borrow", "take"]), ("skip", ["take"])])
def test_a_person_decides_about_a_compensation(choice: str, undone: list[str]) -> None:
    FAILING.fail_compensation(borrow).decide(choice, "borrow").then(failed="hand_over", compensated=undone)
    FAILING.fail_compensation(1).decide(choice, "borrow").then(compensated=undone)
    both = FAILING.fail_compensation(give_back).decide(choice, "borrow")
    both.then(status="COMPENSATION_FAILED", asks="take")


def test_a_compensation_that_is_late_is_tried_again() -> None:
    FAILING.given(give_back, OSError("away"), None).then(compensated=["borrow", "take"])


def test_a_person_decides_about_a_step() -> None:
    broken = SagaScenario(inspected).fail(inspect).when("cake")
    broken.then(status="NEEDS_ATTENTION", asks=["inspect"])
    broken.decide("done", "inspect", "it will do").then("it will do")
    broken.decide("fail", "inspect").then(failed="inspect", compensated=["take"])
    broken.decide("retry", "inspect").then("cake is fine")


# --- time, signals, cancels -------------------------------------------------------------------------------------------


def test_the_clock_goes_on_by_itself_unless_it_is_moved() -> None:
    waiting = SagaScenario(patient).when("cake")
    waiting.then(failed=None, error=TimeoutError("the saga took longer than deadline=600 s"), compensated=["take"])
    waiting.after(599).then(status="IN_PROGRESS", steps=["take"])
    waiting.after(599).signal(go, "now").then("now")
    waiting.cancel("changed my mind").then(status="CANCELLED", compensated=["take"])


@saga
async def gathered(name: str) -> set[str]:
    return {(await take(name)).name, "and more"}


def test_a_result_that_is_a_set_is_compared_as_it_is() -> None:
    found = SagaScenario(gathered).when("cake")
    found.then({"cake", "and more"})
    for other in ({"cake"}, {"cake", "and less"}, set()):
        assert "result:\n" in told(lambda other=other: found.then(other))  # type: ignore[misc]


# --- graphs -----------------------------------------------------------------------------------------------------------


@step(retry=NEVER)
async def wrap(left: Thing, right: Thing) -> None:
    raise SoldOut("no paper")


BOTH = Saga("both").step("left", take).step("right", borrow).step("last", wrap)


def test_a_graph_is_told_by_its_nodes() -> None:
    graph = SagaScenario(BOTH)
    graph.when("x").then(steps=[{"left", "right"}, "last"], compensated=[{"left", "right"}], failed="wrap")
    graph.fail("left").when("x").then(compensated=["right"], failed="take")
    graph.fail("right").when("x").then(compensated=["left"], failed="borrow")


# --- calls ------------------------------------------------------------------------------------------------------------


class Reserved(Event, key="order"):
    order: str


class NoStock(Event, key="order"):
    order: str


class Reserve(Command[Reserved], key="order"):
    order: str


class Release(Command[None], key="order"):
    order: str


class Pay(Command[None], key="order"):
    order: str


class Pack(Command[None], key="order"):
    order: str


@saga
async def fulfil(order: str) -> str:
    await take(order)
    try:
        stock = await call(Reserve(order), timeout=30, compensate=Release(order))
    except CallRejected as rejected:
        if isinstance(rejected.reply, NoStock):
            return f"no stock for {rejected.reply.order}"
        raise
    await call(Pay(order), timeout=60)
    return stock.order


@saga
async def again_and_again(order: str) -> str:
    await call(Reserve(order), compensate=Release(order))
    await call(Reserve(order), compensate=Release(order))
    raise SoldOut("in vain")


@saga
async def at_home(order: str) -> None:
    await call(Pack(order))
    await take(order)


orders = Service("orders", workflows=[fulfil, again_and_again, at_home], calls=[Reserve, Release, Pay, Pack])


@orders.on(Pack)
def pack(command: Pack) -> None:
    held.append(f"packed {command.order}")


ORDER = SagaScenario(fulfil, orders).reply(Reserve, Reserved("o-1"))


def test_the_commands_that_it_calls_and_how_they_are_answered() -> None:
    ORDER.when("o-1").then("o-1", commands=[Reserve("o-1"), Pay("o-1")], steps=["take", "Reserve", "Pay"])
    named = SagaScenario(fulfil, orders).reply(Reserve, reserved).when("o-2")
    named.then("o-2", commands=[Reserve, Pay])


def reserved(command: Reserve) -> Reserved | NoStock:
    return Reserved(command.order) if command.order == "o-2" else NoStock(command.order)


def test_an_answer_that_rejects() -> None:
    rejected = SagaScenario(fulfil, orders).reply(Reserve, reserved).when("o-3")
    rejected.then("no stock for o-3", commands=[Reserve])


def silent(command: Reserve) -> Reserved | None:
    return None


async def reserved_later(command: Reserve) -> Reserved:
    return Reserved(command.order)


def test_a_function_answers_as_a_handler_does() -> None:
    """One that publishes nothing rejects a command whose class names an event, at once; it may be ``async``."""
    scenario = SagaScenario(fulfil, orders)
    nothing = scenario.reply(Reserve, silent).when("o-1")
    nothing.after(0).then(failed="Reserve", commands=[Reserve], compensated=["take"])
    scenario.reply(Reserve, reserved_later).when("o-1").then("o-1")


def test_an_answer_that_comes_twice_changes_nothing() -> None:
    SagaScenario(fulfil, orders).reply(Reserve, Reserved("o-1"), times=2).when("o-1").then("o-1")


@pytest.mark.parametrize("seconds", [29, 31, 10_000])
def test_an_answer_that_is_late(seconds: float) -> None:
    late = SagaScenario(fulfil, orders).reply(Reserve, Reserved("o-1"), after=seconds).when("o-1")
    if seconds < 30:
        late.then("o-1")
        late.after(28).then(status="IN_PROGRESS", commands=[Reserve])
        return
    late.then(
        failed="Reserve", error=TimeoutError("no answer within 30 s"), commands=[Reserve, Release],
        compensated=["Reserve", "take"],
    )  # fmt: skip


def test_no_answer_at_all() -> None:
    ORDER.never(Pay).when("o-1").then(
        failed="Pay", commands=[Reserve, Pay, Release], compensated=["Reserve", "take"], error=TimeoutError
    )


def test_the_answers_of_several_calls_come_in_turn() -> None:
    twice = SagaScenario(again_and_again, orders).reply(Reserve, Reserved("a")).never(Reserve).when("o")
    twice.then(status="IN_PROGRESS", commands=[Reserve, Reserve])
    twice.cancel().then(status="CANCELLED", commands=[Reserve, Reserve, Release, Release])
    both = SagaScenario(again_and_again, orders).reply(Reserve, Reserved("a")).when("o")
    both.then(error=SoldOut("in vain"), commands=[Reserve, Reserve, Release, Release], compensated=["Reserve"] * 2)


def test_each_step_and_each_command_fails() -> None:
    found = {failed.failing: failed for failed in each_step(ORDER.when("o-1"))}
    found["take"].then(compensated=[], commands=[])
    found["Reserve"].then(compensated=["take"], commands=[Reserve])
    found["Pay"].then(compensated=["Reserve", "take"], commands=[Reserve, Pay, Release], failed="Pay")
    lost = {failed.failing: failed for failed in each_step(ORDER.when("o-1"), lost=True)}
    lost["Reserve"].then(compensated=["Reserve", "take"], commands=[Reserve, Release], failed="Reserve")


def test_a_command_that_undoes_fails() -> None:
    failing = ORDER.fail(Pay).when("o-1")
    for failed in each_compensation(failing):
        failed.then(status="COMPENSATION_FAILED", asks=failed.failing)
    failing.fail_compensation(Reserve).decide("retry", "Reserve").then(
        compensated=["Reserve", "take"], commands=[Reserve, Pay, Release, Release]
    )


def test_a_command_that_the_service_handles_itself() -> None:
    own = SagaScenario(at_home, orders).when("o-1")
    own.then(None, commands=[Pack("o-1")], steps=["Pack", "take"])
    assert held == ["packed o-1", "o-1"]
    with pytest.raises(ConfigurationError, match="Pack cannot be made to fail here: the service itself answers it"):
        list(each_step(own))
    with pytest.raises(ConfigurationError, match=r"never\(Pack\): orders handles it itself, and its own handler ans"):
        own.never(Pack)


def test_what_comes_before_and_what_is_left_behind() -> None:
    async def before() -> None:
        await orders.fetch("SELECT 1 AS one")
        held.append("before")

    done = SagaScenario(at_home, orders).given(before, "CREATE TABLE mine (id TEXT)").when("o-1").play()
    done.then(
        None, rows={"SELECT id FROM mine": [], "SELECT saga_id, status FROM saga_state": [("saga-1", "COMPLETED")]}
    )
    assert held[0] == "before"
    assert done.result is None
    with pytest.raises(SagaCompensated, match="borrow has failed: SoldOut: no table"):
        _ = PARTY.fail(borrow, SoldOut("no table")).play().result
    assert len(done.look(lambda: orders.fetch("SELECT position FROM skald_log"))) > 1


# --- what it says when something else comes ---------------------------------------------------------------------------


def told(then: Callable[[], None]) -> str:
    with pytest.raises(AssertionError) as failure:
        then()
    return str(failure.value)


def test_a_difference_is_told_as_a_diff_with_what_became_of_each_step() -> None:
    text = told(lambda: PARTY.fail(borrow, SoldOut("no table")).then("ada has cake", compensated=["borrow", "take"]))
    assert re.match(rf".*{THIS}:\d+: the saga party came to something else\n", text)
    assert "result:\n  - 'ada has cake'\n\n" in text
    assert "compensated:\n  - 'borrow'\n    'take'\n" in text
    assert "  1. take: compensated\n  2. borrow: failed\n" in text


@pytest.mark.parametrize(
    ("expected", "text"),
    [
        ({"status": "COMPENSATED"}, "status:\n  - 'COMPENSATED'\n"),
        ({"result": "eve has cake"}, "- 'eve has cake'\n  ?  ^"),
        ({"failed": "take"}, "failed:\n  - 'take'\n"),
        ({"error": SoldOut}, "- 'SoldOut'\n  + 'none'\n"),
        ({"steps": ["take"]}, "steps:\n    'take'\n  + 'borrow'\n"),
        ({"asks": "take"}, "asks:\n  - 'take'\n"),
        ({"commands": [Reserve]}, "commands:\n  - Reserve(…)\n"),
        ({"published": [Reserved("o")]}, "published:\n  - Reserved(order='o')\n"),
        ({"rows": {"SELECT 1 AS one": [2]}}, "rows of SELECT 1 AS one:\n  - 2\n  + 1\n"),
    ],
)
def test_each_expectation_can_fail(expected: dict[str, Any], text: str) -> None:
    assert text in told(lambda: PARTY.then(**expected))


def test_what_was_to_fail_and_never_came_is_told() -> None:
    text = told(lambda: SagaScenario(party).fail("pay").when("ada").then("ada has cake"))
    assert "to be made to fail:\n  - 'pay'\n" in text


# --- what cannot be meant ---------------------------------------------------------------------------------------------


def annotated_wrongly(command: Reserve) -> Reserved:
    return NoStock(command.order)  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("misuse", "text"),
    [
        (lambda: SagaScenario(take), "takes a saga"),
        (
            lambda: SagaScenario(party, orders),
            r"orders does not run party: name it in Service\('orders', work",
        ),
        (lambda: SagaScenario(party).then(), r"nothing happens: start the saga, with when\(…\)"),
        (lambda: SagaScenario(party).after(1), r"after\(\) comes behind when\(\), which starts the saga"),
        (lambda: PARTY.when("eve"), "it is started once"),
        (lambda: PARTY.given(take), r"given\(take\): say at least one outcome"),
        (lambda: PARTY.given(party, 1), "a step or a compensation with its outcomes, SQL, or a function"),
        (lambda: PARTY.reply(Reserve, Reserved("o")), "the service of the saga does not call it; it calls nothing"),
        (lambda: ORDER.reply(Reserve, "yes"), "the answer is an event, or a function of the command"),
        (lambda: ORDER.reply(Reserve, Release("o")), "the answer is an event, or a function of the command"),
        (lambda: ORDER.reply(Reserve, Reserved), "the answer is an event, or a function of the command"),
        (
            lambda: SagaScenario(fulfil, orders).reply(Reserve, lambda command: [Reserved("o")]).when("o").then(),
            r"answers Reserve with \[Reserved\(order='o'\)\]: let it return an event, or None for a handler that publ",
        ),
        (lambda: ORDER.reply(Reserve, Reserved("o"), times=0), "at least once; never"),
        (lambda: PARTY.decide("maybe", "take"), "retry, done, skip, fail"),
        (lambda: PARTY.decide("retry", "take").then(), "the saga does not ask about that, but about nothing"),
        (
            lambda: SagaScenario(fulfil, orders).when("o").then(),
            r"nobody answers: say .reply\(Reserve, …\) or .never\(",
        ),
        (
            lambda: SagaScenario(fulfil, orders).reply(Reserve, annotated_wrongly).when("o").then(),
            "a function answers Reserve with NoStock: annotate it with what it returns",
        ),
        (
            lambda: SagaScenario(fulfil).when("o").then(status="COMPENSATED"),
            r"fulfil needs what its service declares, SagaScenario\(fulfil, service\): .* does not declare to call R",
        ),
        (lambda: next(each_compensation(PARTY)), r"the scenario undoes nothing: let it fail\(\) first"),
    ],
)
def test_a_mistake_names_the_line_and_what_to_do(misuse: Callable[[], Any], text: str) -> None:
    with pytest.raises(ConfigurationError, match=rf".*{THIS}:\d+: .*{text}"):
        misuse()


def test_the_saga_is_as_it_was_afterwards() -> None:
    functions, calls = [one.function for one in (take, borrow)], fulfil.calls
    SagaScenario(party).given(take, Thing("x")).fail(borrow).when("ada").then(failed="borrow")
    ORDER.when("o-1").then("o-1")
    assert [one.function for one in (take, borrow)] == functions
    assert fulfil.calls is calls
