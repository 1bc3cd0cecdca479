"""Random sagas over two services, whose workers are killed every second or two, stopped for longer than their lease,
and started. People cancel some, and answer those that ask. Each ends as its program allows, and what it has done to the
world is kept, or undone once.

Every command and every answer comes twice, and again when all is over. A seed decides the sagas of a batch and what
happens to their workers; ``SKALD_SEED=…`` plays one batch again.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter, defaultdict
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from skald import App
from skald.errors import Busy, TransactionConflict, WorkflowEnded
from skald.operations.access import NotFound, OperationRefused
from skald.operations.parked import Selection
from skald.operations.redriving import redrive
from skald.operations.sagas import QuestionView, resolve_saga, show_saga
from skald.operations.subscriptions import reset_subscription
from skald.sagas.machine import Status
from skald.sagas.question import ANSWERS, Choice
from skald.unit import EntryKind
from tests.simulation import random_sagas
from tests.simulation.crew import Crew
from tests.simulation.random_sagas import Act, Line, Program, application, mend, program, saga_of, tell, told
from tests.simulation.saga_oracle import (
    Books,
    Person,
    check_effects,
    check_life,
    check_order,
    decision,
    ends,
    fold,
)
from tests.simulation.stage import caught_up, deliveries, effects

CHOSEN = os.environ.get("SKALD_SEED")
SAMPLE = [(int(CHOSEN), 75)] if CHOSEN else [(1, 12)]
SWEEP = [pytest.param(seed, 75, marks=pytest.mark.sweep) for seed in range(10, 14)]
FULL = [pytest.param(seed, 500, marks=pytest.mark.full) for seed in range(100, 120)]
PATIENCE = 300.0
PLACES = [
    "commit.before", "commit.after", "step.before", "step.after", "step.committing", "step.committed",
    "workflows.claiming", "workflows.claimed", "workflows.firing", "take_over.unfenced", "take_over.lanes",
    "hand_over.unfenced", "transaction.handled", "transaction.applied", "transaction.committed", "single.handled",
    "single.applied", "single.committed", "delivery.announced", "delivery.decided", "delivery.ended",
    "delivery.applied", "claim.after",
]  # fmt: skip
WAVE = 12
"""Sagas that are started between two blows."""
ASKING = (Status.NEEDS_ATTENTION, Status.COMPENSATION_FAILED)
OPEN = (Status.IN_PROGRESS, Status.COMPENSATING, *ASKING)
LOOK = 0.1
"""Seconds between two looks at the sagas."""


class Batch:
    """Sagas, their workers, and the people who look after them."""

    def __init__(self, url: str, folder: Path, seed: int, count: int) -> None:
        self.app: App = application(url)
        self.players, self.stock = (self.app.service(name) for name in ("players", "stock"))
        self.ledger, self.person = folder / "ledger", Person()
        self.crew = Crew(random_sagas.__name__, PLACES, url, folder, seed)
        self.programs = {f"s-{n}": program(seed, f"s-{n}") for n in range(count)}
        chance = self.crew.rng
        self.cancelled = {id: chance.randint(0, 3) for id in self.programs if chance.random() < 0.2}
        """After so many blows."""
        self.cancelling: list[asyncio.Task[None]] = []

    async def play(self) -> None:
        repeating = asyncio.create_task(self.repeat_after(self.crew.rng.randint(2, 4)))
        starting = asyncio.create_task(self.start())
        while (left := await self.left()) or not starting.done():
            for id in [row["saga_id"] for row in left if row["status"] in ASKING]:
                await self.attend(id)
            await asyncio.sleep(LOOK)  # sleep: until they look again
        await asyncio.gather(starting, repeating, *self.cancelling)

    async def start(self) -> None:
        """Some after each blow, so that the next one finds sagas at every place."""
        for number, (id, p) in enumerate(self.programs.items()):
            if number and not number % WAVE:
                await self.crew.after(1)
            await saga_of(p).start(p, id=id)
            if id in self.cancelled:
                self.cancelling.append(asyncio.create_task(self.cancel(id, self.cancelled[id])))

    async def settle(self) -> None:
        """Nobody is in trouble any more; all that has come comes once more."""
        await self.repeat()
        while not await self.is_quiet():
            self.crew.refill(armed=False)
            await asyncio.sleep(LOOK)  # sleep: until they look again

    async def left(self) -> list[dict[str, Any]]:
        found = await self.players.fetch("SELECT saga_id, status, current_step FROM saga_state")
        return [row for row in found if row["status"] in OPEN]

    async def is_quiet(self) -> bool:
        for one in await deliveries(self.stock):
            # What has failed again before a person had mended it, and what was still in work when it was to be undone:
            # its saga knew of a tombstone only, and has ended.
            if one["state"] == "parked":
                mend(self.ledger, f"undo {one['key']}")
        await self.redrive()
        read = await caught_up(self.stock, self.players) and await caught_up(self.players, self.stock)
        return read and not await deliveries(self.stock) and not await self.letters()

    async def letters(self) -> list[dict[str, Any]]:
        """But requests to cancel what has ended, and an answer that was given while it ended."""
        return await self.players.fetch(
            "SELECT id, kind, name, to_id, to_run FROM skald_letters WHERE kind <> 2 AND NOT (name = :answer AND "
            "to_run IN (SELECT run FROM skald_workflows WHERE ended_at IS NOT NULL))",
            answer=ANSWERS,
        )

    async def stands(self) -> str:
        """Where it stands, for whoever has to find out why it does not end."""
        left = await self.left()
        lines = [f"parked or on their way: {await deliveries(self.stock)}", f"letters: {await self.letters()}"]
        for id in [row["saga_id"] for row in left]:
            rows = await self.players.fetch("SELECT * FROM skald_workflows WHERE id = :id", id=id)
            lines += [str(self.programs[id]), str(rows)]
            lines += [str(one) for one in (await show_saga(self.app, id, "players")).journal]
        return "\n".join(lines)

    # --- people -------------------------------------------------------------------------------------------------------

    async def cancel(self, id: str, blows: int) -> None:
        await self.crew.after(blows)
        with suppress(WorkflowEnded):
            await saga_of(self.programs[id]).handle(id).cancel("somebody has changed their mind")

    async def repeat_after(self, blows: int) -> None:
        await self.crew.after(blows)
        await self.repeat()

    async def repeat(self) -> None:
        """All commands and all answers come once more."""
        for group, origin in (("stock", "players"), ("players", "stock")):
            with suppress(OperationRefused):  # it has read nothing yet
                await reset_subscription(self.app, group, origin, "start", every_lane=True)

    async def attend(self, id: str) -> None:
        detail = await show_saga(self.app, id, "players")
        for question in detail.questions:
            act = self.asked_about(question)
            choice, result = self.decided(question, act)
            name, body = f"{question.step}#{question.number}", None if result is None else msgspec.json.encode(result)
            with suppress(OperationRefused, NotFound, Busy, TransactionConflict):  # somebody was quicker; or next time
                await resolve_saga(
                    self.app, id, choice, name, by="ann", reason="seen to", service="players",
                    result=None if body is None else body.decode(),
                )  # fmt: skip
                self.person.answers[f"{choice} {'compensation' if question.compensation else 'step'}"] += 1
            if act is not None and question.compensation is not None and act.kind in random_sagas.COMMANDS:
                await self.redrive(act.thing)

    async def redrive(self, key: str | None = None) -> None:
        with suppress(NotFound, Busy, TransactionConflict):
            await redrive(self.app, Selection(services=("stock",), key=key))

    def asked_about(self, question: QuestionView) -> Act | None:
        told = question.arguments
        if told is None:
            return None
        if "act" in told:
            return msgspec.convert(told["act"], Act)
        if "thing" in told:
            program = self.programs[told["thing"].partition("/")[0]]
            return next(act for act in program.acts() if act.thing == told["thing"])
        acts = msgspec.convert(told["program"], Program).acts()
        return next(act for act in acts if act.name.endswith(question.step))

    def decided(self, question: QuestionView, act: Act | None) -> tuple[Choice, Any]:
        """As an honest person decides, who looks at the world first, and changes it before answering."""
        if act is None:
            return Choice.DONE, []  # the code has failed behind its pivot
        if question.compensation is not None:
            return self.decided_about_undoing(act), None
        if act.kind == "pivot":
            done = fold(told(self.ledger))[act.thing].held
            return (Choice.DONE, act.name) if done else (Choice.FAIL, None)
        choice = Choice(decision(act))
        if choice not in question.choices:
            choice = Choice.DONE
        if choice == Choice.RETRY:
            mend(self.ledger, act.thing)
        made = {"thing": act.thing} if act.kind in random_sagas.COMMANDS else act.name
        return choice, made if choice == Choice.DONE else None

    def decided_about_undoing(self, act: Act) -> Choice:
        choice = Choice.RETRY if act.person == "fail" else Choice(act.person)
        keys = {line.key for _, line in told(self.ledger) if line.thing == act.thing and line.op == "do"}
        if act.kind in random_sagas.COMMANDS:
            mend(self.ledger, f"undo {act.thing}")  # and what was parked there is tried once more
        elif act.kind == "booked" or choice == Choice.RETRY or (choice == Choice.DONE and not keys):
            mend(self.ledger, f"undo {act.thing}")
            choice = Choice.RETRY
        elif choice == Choice.DONE:
            for key in keys:
                tell(Line("undo", act.thing, key, by="by hand"), self.ledger)
        else:
            self.person.skipped.add(act.thing)
        return choice

    # --- checks -------------------------------------------------------------------------------------------------------

    async def check(self) -> Counter[str]:
        rows = await self.players.fetch("SELECT saga_id, status, run FROM saga_state")
        states = {row["saga_id"]: Status(row["status"]) for row in rows}
        lives = defaultdict[str, list[Status]](list)
        for row in await self.players.fetch(
            "SELECT run, name FROM skald_journal WHERE kind = :kind ORDER BY run, position",
            kind=int(EntryKind.STATUS),
        ):
            lives[str(row["run"])].append(Status(row["name"]))
        books = await self.books()
        assert states.keys() == self.programs.keys()
        for row in rows:
            check_life(row["saga_id"], lives[str(row["run"])], states[row["saga_id"]])
        for id, p in self.programs.items():
            assert states[id] in ends(p, id in self.cancelled), f"{id} is {states[id]}: {p}"
            check_effects(p, states[id], books, self.person)
            check_order(p, books, self.person)
        assert books.keys() <= {act.thing for p in self.programs.values() for act in p.acts()}
        await self.check_journal()
        found = Counter(str(state) for state in states.values())
        for name in ("done", "undone", "late"):
            found[name] = sum(getattr(book, name) for book in books.values())
        return found

    async def books(self) -> dict[str, Books]:
        found = fold(told(self.ledger))
        for service, done, undone in ((self.players, "book", "unbook"), (self.stock, "take", "give back")):
            for row in await effects(service, done):
                found[row["key"]].done += 1
            for row in await effects(service, undone):
                found[row["key"]].undone += 1
                found[row["key"]].asked.add(row["id"])
        return found

    async def check_journal(self) -> None:
        holes = await self.players.fetch(
            "SELECT run FROM skald_journal GROUP BY run HAVING min(position) <> 1 OR max(position) <> count(*)"
        )
        assert holes == []
        owned = await self.players.fetch("SELECT id FROM skald_workflows WHERE owner IS NOT NULL OR ended_at IS NULL")
        assert owned == []
        doubtful = await self.stock.fetch("SELECT handler, key, state FROM skald_effects WHERE state = 'unknown'")
        assert doubtful == []


async def run(url: str, folder: Path, seed: int, count: int) -> None:
    batch = Batch(url, folder, seed, count)
    await batch.app.migrate()
    async with batch.app.connect():
        batch.crew.refill()
        troubling = asyncio.create_task(batch.crew.trouble())
        try:
            await asyncio.wait_for(batch.play(), PATIENCE)
            troubling.cancel()
            await asyncio.wait_for(batch.settle(), PATIENCE)
        except TimeoutError:
            raise AssertionError(f"seed {seed}: {await batch.stands()}\n{batch.crew.logs()}") from None
        finally:
            troubling.cancel()
            batch.crew.end()
        found = await batch.check()
    print(f"seed {seed}: {batch.crew.deaths} kills, {dict(found)}, people: {dict(batch.person.answers)}")


@pytest.mark.parametrize(("seed", "count"), [*SAMPLE, *SWEEP, *FULL])
async def test_random_sagas_end_as_their_programs_allow(store_url: str, tmp_path: Path, seed: int, count: int) -> None:
    await run(store_url, tmp_path, seed, count)


@pytest.mark.parametrize(
    ("between", "is_skipped", "is_in_order"),
    [
        (None, False, True),  # independent neighbours of two groups are undone at once
        (Act("s", "1a", "plain"), False, True),  # it was not to be undone
        (Act("s", "1a", "plain"), True, False),
        (Act("s", "1a", "take"), False, False),
        (Act("s", "1a", "take", "refused"), False, True),
        (Act("s", "1a", "eager", sticks="always"), False, False),
    ],
)
def test_the_oracle_lets_only_neighbours_be_undone_at_once(
    between: Act | None, is_skipped: bool, is_in_order: bool
) -> None:
    first, last = Act("s", "0a", "beside"), Act("s", "1b", "beside")
    p = Program("gather", ((first,), (between, last) if between else (last,)))
    lines = [Line("do", act.thing, act.thing) for act in (first, last)]
    lines += [Line("undo", act.thing, act.thing, by=act.thing) for act in (first, last)]  # the earlier one first
    person = Person(skipped={between.thing} if between and is_skipped else set())
    with nullcontext() if is_in_order else pytest.raises(AssertionError, match="undone in the order"):
        check_order(p, fold(enumerate(lines)), person)
