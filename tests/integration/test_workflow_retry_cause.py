"""A failed workflow is retried: of its failures that one is taken back which it has failed because of, and no other."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from skald import NEVER, App, RuntimeSettings, Service, step, workflow
from skald.errors import StepFailed, WorkflowFailed
from skald.workflows.executor import ExecutorSettings

declined: set[str] = set()
done: list[str] = []


class Refused(Exception): ...


@step(retry=NEVER)
async def charge(card: str) -> str:
    if card in declined:
        raise OSError(f"{card} declined")
    done.append(card)
    return card


@step(at_most_once=True)
async def once(card: str) -> str:
    done.append(f"tried {card}")
    return await charge.function(card)


@workflow
async def kid(card: str) -> str:
    return await charge(card)


@workflow
async def paying(fails: str) -> str:
    """Card a is declined at first, and b is charged instead."""
    try:
        paid = await (kid.run("a") if fails == "behind a child" else charge("a"))
    except StepFailed as error:
        match fails:
            case "without a cause":
                paid = await charge("b")
                if "bug" in declined:
                    raise KeyError("bug") from None
            case "while it handles":
                paid = await charge("b")
                if "bug" in declined:
                    raise KeyError("bug")  # noqa: B904
            case "because of it":
                raise Refused("a") from error
            case "in its place":
                raise Refused("a")  # noqa: B904
            case _:
                paid = await charge("b")
    except WorkflowFailed:
        paid = await charge("b")
    if "bug" in declined:
        match fails:
            case "alike":
                raise OSError("a declined")
            case _:
                raise KeyError("bug")
    return paid


@workflow
async def once_paying(card: str) -> str:
    return await once(card)


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    done.clear()
    declined.clear()
    if request.param == "postgres":
        return str(request.getfixturevalue("postgres_url"))
    return f"sqlite:{tmp_path / 'data'}"


@asynccontextmanager
async def playing(url: str) -> AsyncIterator[App]:
    app = App(
        Service("shop", workflows=[paying, once_paying, kid]),
        store=url,
        settings=RuntimeSettings(workflows=ExecutorSettings(poll=0.05)),
    )
    await app.migrate()
    async with app.run():
        yield app


@pytest.mark.parametrize("fails", ["later", "without a cause", "while it handles", "alike", "behind a child"])
async def test_a_failure_that_the_code_had_handled_stays(url: str, fails: str) -> None:
    declined.update(("a", "bug"))
    async with playing(url):
        with pytest.raises(WorkflowFailed):
            await paying.run(fails, id="x")
        assert done == ["b"]
        declined.clear()
        await paying.handle("x").retry()
        assert await paying.handle("x").result() == "b"
        assert done == ["b"]


@pytest.mark.parametrize("fails", ["because of it", "in its place"])
async def test_what_was_raised_because_of_a_failure_takes_that_one_back(url: str, fails: str) -> None:
    declined.add("a")
    async with playing(url):
        with pytest.raises(WorkflowFailed, match="Refused"):
            await paying.run(fails, id="x")
        declined.clear()
        await paying.handle("x").retry()
        assert await paying.handle("x").result() == "a"
        assert done == ["a"]


async def test_a_failure_of_before_is_known_by_its_words(url: str) -> None:
    """Where the outcome does not say which entry it came of."""
    declined.update(("a", "b"))
    async with playing(url) as app:
        with pytest.raises(WorkflowFailed, match="b declined"):
            await paying.run("later", id="x")
        async with app.service("shop").transaction() as tx:
            await tx.execute(
                "UPDATE skald_workflows SET outcome = :outcome", outcome=b'{"type":"OSError","message":"b declined"}'
            )
        declined.clear()
        await paying.handle("x").retry()
        assert await paying.handle("x").result() == "b"
        assert done == ["b"]


async def test_a_step_that_is_done_at_most_once_and_has_failed_for_certain_runs_again(url: str) -> None:
    declined.add("a")
    async with playing(url):
        for failed in (1, 2):
            with pytest.raises(WorkflowFailed, match="a declined"):
                await (once_paying.run("a", id="x") if failed == 1 else once_paying.handle("x").result())
            assert done == ["tried a"] * failed
            if failed == 2:
                declined.clear()
            await once_paying.handle("x").retry()
        assert await once_paying.handle("x").result() == "a"
        assert done == ["tried a"] * 3 + ["a"]
