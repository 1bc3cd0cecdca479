"""What a random saga may come to, and what the world outside must look like then; in plain Python, from its program.

The ledger is read as a provider would have answered, line by line in the order in which it came: an act is done once
per key, and not at all once it was undone by that key, or looked up and not found while it was on its way.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from itertools import pairwise

import msgspec

from skald.sagas.machine import TRANSITIONS, Status
from tests.simulation.random_sagas import COMMANDS, Act, Line, Program

EDGES = {(before, after) for (before, _), after in TRANSITIONS.items()}
BACK = {Status.COMPENSATED, Status.CANCELLED}


class Person(msgspec.Struct):
    """What people have decided: by thing."""

    skipped: set[str] = msgspec.field(default_factory=set)
    """Its compensation."""
    answers: Counter[str] = msgspec.field(default_factory=Counter)


class Books(msgspec.Struct):
    """Of one act, by what the world outside knows."""

    done: int = 0
    undone: int = 0
    late: int = 0
    """Done behind what undid it: refused."""
    asked: set[str] = msgspec.field(default_factory=set)
    """The keys of what has undone it, or tried to."""
    attempts: Counter[str] = msgspec.field(default_factory=Counter)
    """By key."""
    place: int | None = None
    """Where it was undone first."""

    @property
    def held(self) -> int:
        return self.done - self.undone


def fold(lines: Iterable[tuple[int, Line]]) -> dict[str, Books]:
    found: dict[str, Books] = defaultdict(Books)
    held, over, looked = set[str](), set[str](), dict[str, int]()
    for place, line in lines:
        book = found[line.thing]
        if line.op == "do":
            book.attempts[line.key] += 1
            if line.key in over or line.began < looked.get(line.key, 0):
                book.late += 1
            elif line.key not in held:
                held.add(line.key)
                book.done += 1
        elif line.op == "undo":
            over.add(line.key)
            book.asked.add(line.by)
            if book.place is None:
                book.place = place
            if line.key in held:
                held.discard(line.key)
                book.undone += 1
        elif line.key not in held:
            looked[line.key] = place
    return found


# --- how it may end ---------------------------------------------------------------------------------------------------


def ends(program: Program, is_cancelled: bool) -> set[Status]:
    fates = {"goes"} | {fate(act) for act in _before_the_pivot(program)}
    pivot = any(act.kind == "pivot" for act in program.acts())
    if "fails" in fates or (program.fails and not pivot and program.shape != "graph"):
        found = {Status.COMPENSATED}
    elif "may fail" in fates:
        found = {Status.COMPLETED, Status.COMPENSATED}
    else:
        found = {Status.COMPLETED}
    if is_cancelled:
        found.add(Status.CANCELLED)
    if program.deadline:
        found.add(Status.COMPENSATED)
    return found


def _before_the_pivot(program: Program) -> list[Act]:
    """And the pivot itself."""
    found = []
    for group in program.groups:
        found += group
        if any(act.kind == "pivot" for act in group):
            break
    return found


def fate(act: Act) -> str:
    """Of one that stands before the pivot, or is it."""
    never = act.fails in ("refused", "lost", "hung", "torn")
    match act.kind:
        case "nap" | "optional":
            return "goes"
        case "single":  # a process that ends while it runs makes its outcome unknown
            return "fails" if never or act.fails == "once" else "may fail"
        case "limited" | "hasty take" | "hasty charge":
            return "fails" if never else "may fail"
        case "looked":
            return "fails" if act.fails in ("refused", "hung") else "goes"
        case "human" | "forward":
            return "fails" if never and act.person == "fail" else "goes"
        case "pivot":  # a person says what has become of it
            return "fails" if act.fails in ("refused", "hung") else "goes"
        case _:
            return "fails" if never else "goes"


# --- what must be there -----------------------------------------------------------------------------------------------


def check_life(id: str, statuses: list[Status], end: Status) -> None:
    """``statuses``: as they were journalled."""
    assert end in {Status.COMPLETED, *BACK}, f"{id} is {end}"
    lived = [Status.IN_PROGRESS, *statuses]
    if end not in lived[-1:]:
        lived.append(end)
    for step in pairwise(lived):
        assert step in EDGES, f"{id}: {lived}"


def check_effects(program: Program, end: Status, books: Mapping[str, Books], person: Person) -> None:
    for act in program.acts():
        if act.kind == "nap":
            continue
        book = books.get(act.thing, Books())
        what = f"{act} of a saga that is {end}: {book}"
        assert book.done <= 1, f"done twice: {what}"
        assert len(book.asked) <= 1, f"undone twice: {what}"
        assert act.kind != "single" or sum(book.attempts.values()) <= 1, f"done more than once: {what}"
        if end == Status.COMPLETED:
            assert not book.asked, f"undone: {what}"
            assert keeps(act, program) in (None, book.held), f"kept, or not: {what}"
        elif act.kind == "pivot":
            assert book.done == 0, f"a pivot is never undone: {what}"
        elif act.thing not in person.skipped and not (act.kind == "eager" and act.sticks == "always"):
            assert book.held == 0, f"left: {what}"
        if act.kind in ("booked", "take"):  # whose outcome is always known
            assert bool(book.asked) == bool(book.undone), f"undone, and not done: {what}"


def keeps(act: Act, program: Program) -> bool | None:
    """Whether an act of a saga that has completed is done; ``None`` where nobody can tell."""
    asks = act.kind in ("human", "forward") or (act not in _before_the_pivot(program) and act.kind != "optional")
    if asks and decision(act) == "retry":
        return True
    if asks and act.kind in ("limited", "single") and act.fails not in ("refused", "hung"):
        return None
    return act.fails in ("no", "once", "late", "lost", "torn")


def decision(act: Act) -> str:
    """What a person says about it. A command that was rejected would be rejected again, and what is done at most once
    is not tried again."""
    return "done" if act.person == "retry" and act.kind in ("take", "charge", "single") else act.person


def check_order(program: Program, books: Mapping[str, Books], person: Person) -> None:
    """Last group first, but neighbours that are independent at once, also those of two groups. What a person has undone
    by hand comes when it comes, and a command that was still in work when it was to be undone is undone when it has
    ended."""
    found, batch, before = [], 0, None
    for number, group in enumerate(program.groups):
        for act in group:
            book = books.get(act.thing, Books())
            if not (book.asked or _is_passed_over(act, person)):
                continue
            if not (before == act.kind == "beside"):
                batch = number
            before = act.kind
            if act.kind not in COMMANDS and book.place is not None and "by hand" not in book.asked:
                found.append((book.place, batch))
    order = [number for _, number in sorted(found)]
    assert order == sorted(order, reverse=True), f"undone in the order {order}: {program}"


def _is_passed_over(act: Act, person: Person) -> bool:
    """Whether its neighbours had to wait for its compensation, although that has left nothing in the books."""
    gives_up = act.kind in COMMANDS or (act.kind == "eager" and act.sticks == "always")
    return act.thing in person.skipped or (gives_up and act.fails != "refused")
