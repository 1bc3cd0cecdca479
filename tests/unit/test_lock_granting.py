"""Who gets a lock: whatever is asked, one has it, the queue is kept, and nobody waits in a circle."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise

import pytest
from msgspec.structs import replace

from skald.unit import LetterKind
from skald.workflows.granting import MOST, Claim, decide
from skald.workflows.locking import Conflict, Verdict

ASKS, WAITS, HELD = LetterKind.LOCK, LetterKind.LOCK_WAITS, LetterKind.LOCK_HELD


def claim(run: str, key: str = "k", kind: LetterKind = ASKS, time: int = 0, conflict: Conflict = "wait") -> Claim:
    return Claim(f"{run}:{key}", key, kind, time, run, f"saga-{run}", "buy", conflict=conflict)


class World:
    """The letters of some keys, and what has become of those that asked."""

    def __init__(self) -> None:
        self.claims: dict[str, Claim] = {}
        self.told: dict[str, Verdict] = {}
        self.now = 0

    def settle(self) -> None:
        made = decide(list(self.claims.values()), self.now)
        for gone in made.gone:
            del self.claims[gone.ticket]
        for one in made.granted:
            self.claims[one.ticket] = replace(one, kind=HELD, time=self.now)
        for one, place in made.queued:
            self.claims[one.ticket] = replace(one, kind=WAITS, time=place)
        for one, verdict in made.told:
            del self.claims[one.ticket]
            self.told[one.ticket] = verdict

    def queue(self, key: str) -> list[str]:
        """The runs that have it and wait for it."""
        found = [one for one in self.claims.values() if one.key == key and one.kind != ASKS]
        return [one.run for one in sorted(found, key=lambda one: (-one.kind, one.time))]


def blocked(world: World) -> dict[str, set[str]]:
    """By run: for whom it waits, by the queues alone."""
    found: dict[str, set[str]] = {}
    for key in {one.key for one in world.claims.values()}:
        queue = world.queue(key)
        for place, run in enumerate(queue):
            found.setdefault(run, set()).update(set(queue[:place]) - {run})
    return found


def reaches(edges: dict[str, set[str]], start: str, goal: str) -> bool:
    seen, left = set[str](), [start]
    while left:
        for other in edges.get(left.pop(), set()) - seen:
            seen.add(other)
            left.append(other)
    return goal in seen


def leave(chance: random.Random, world: World) -> None:
    """A saga ends, and says so of its locks or not; or it gives one up."""
    run = chance.choice([one.run for one in world.claims.values()])
    for one in [one for one in world.claims.values() if one.run == run]:
        if chance.random() < 0.5:
            world.claims[one.ticket] = replace(one, open=False)
        else:
            del world.claims[one.ticket]


def ask(world: World, asked: Claim) -> None:
    """And compares what comes of it with what can be seen from the queues."""
    world.settle()
    queue, edges = world.queue(asked.key), blocked(world)
    blockers = set(queue) - {asked.run}
    closes = any(one == asked.run or reaches(edges, one, asked.run) for one in blockers)
    world.claims[asked.ticket] = asked
    world.settle()
    verdict = world.told.get(asked.ticket)
    if verdict is None:
        assert world.queue(asked.key) == [*queue, asked.run]
        assert not closes
        assert asked.conflict == "wait" or not queue
    elif verdict.chain:
        assert closes
        assert asked.conflict == "wait"
        assert verdict.chain[0] == asked.saga
    elif verdict.holder is None:
        assert queue[0] == asked.run
    else:
        assert asked.conflict != "wait"
        assert verdict.holder == f"saga-{queue[0]}"


@pytest.mark.parametrize("seed", range(40))
def test_random_sagas(seed: int) -> None:
    chance, world = random.Random(seed), World()
    before = {key: list[str]() for key in "klmn"}
    for number in range(60):
        world.now += chance.randrange(3)
        run, key = f"r{chance.randrange(8)}", chance.choice("klmn")
        if chance.random() < 0.3 and world.claims:
            leave(chance, world)
            world.settle()
        elif run not in world.queue(key)[1:]:  # one branch of a saga asks for a key at a time
            conflict: Conflict = chance.choice(["wait", "wait", "wait", "fail", "proceed"])
            asked = claim(run, key, time=world.now, conflict=conflict)
            ask(world, replace(asked, ticket=f"{asked.ticket}:{number}"))
        edges = blocked(world)
        assert not any(reaches(edges, one, one) for one in edges)
        assert all(one.kind != ASKS and one.open for one in world.claims.values())
        for key, queue in before.items():
            now = world.queue(key)
            assert [one.run for one in world.claims.values() if one.key == key and one.kind == HELD] == now[:1]
            assert [run for run in queue if run in now] == now[: sum(run in now for run in queue)]
            before[key] = now


def decided(claims: Sequence[Claim]) -> World:
    world = World()
    world.claims = {one.ticket: one for one in claims}
    world.settle()
    return world


def test_of_equal_times_the_older_saga_is_first() -> None:
    assert decided([claim("b"), claim("a"), claim("c")]).queue("k") == ["a", "b", "c"]


def test_who_waits_comes_before_who_asks_now() -> None:
    world = decided([claim("a", time=9), claim("b", kind=WAITS, time=10)])
    assert world.queue("k") == ["b", "a"]


def test_who_does_not_wait_gets_what_is_free_and_only_that() -> None:
    world = decided([claim("a", conflict="fail"), claim("b", conflict="fail"), claim("c", conflict="proceed")])
    assert world.queue("k") == ["a"]
    assert world.told == {"b:k": Verdict("saga-a", "buy"), "c:k": Verdict("saga-a", "buy")}


def test_hundreds_wait_for_one_key_and_have_others_that_are_waited_for() -> None:
    """Each ask looks for circles once through all who wait, and no more."""
    runs = [f"r{n:04}" for n in range(400)]
    world = World()
    for number, run in enumerate(runs):
        for one in (claim(run, run, HELD), claim(run, "k", time=number), claim(f"{run}-child", run, WAITS)):
            world.claims[one.ticket] = one
    for done in range(MOST, len(runs) + 1, MOST):
        world.settle()
        assert world.queue("k") == runs[:done]
    assert world.told == {}


def test_a_long_circle_names_all_of_its_sagas() -> None:
    runs = [f"r{n}" for n in range(50)]
    held = [claim(run, run, HELD) for run in runs]
    waits = [claim(run, after, WAITS) for run, after in pairwise(runs)]
    world = decided([*held, *waits, claim("r49", "r0")])
    assert world.told["r49:r0"].chain == tuple(f"saga-{run}" for run in ["r49", *runs[:-1]])
