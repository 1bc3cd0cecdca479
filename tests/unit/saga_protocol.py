"""A model of the protocol between a saga and those that it calls, small enough to explore all that can happen.

A saga of two steps, A and B. Each is one request, and one that undoes it; B may be refused. What is explored:

- the owner dies at any moment, or is taken for dead and goes on (a zombie), and another one takes over;
- requests come late, or twice; answers are lost; what nobody has answered is given up, by a time-out or a cancel;
- the participant dies before it commits what it has answered, with the flaw that makes this possible.

What in the code it stands for:

- ``State.journal`` is the saga's journal. Its statuses follow ``sagas.machine.TRANSITIONS``, which are asked here, too.
- ``decide`` is ``sagas.course.Course``. What is undone, in which order, is asked of ``sagas.compensation.to_undo``.
- ``State.fence``, which ``_commit`` compares, is the fence that a unit names, and that whoever takes over deletes.
- ``Participant`` is a mark of ``messaging.undoing``. Its life is asked of ``messaging.compensation.TRANSITIONS``.
- A request is sent after the entry that led to it, as ``workflows.turner`` does.

An owner's memory is what it has replayed or committed. What the code calls because of an entry is called again by who
replays that entry, so a step that a zombie may begin is an execution of its successor, too: that is why giving up what
was never asked for here makes its outcome unknown, and not undone.

``Flaw`` plants a defect into the protocol; ``explore`` finds the shortest way to what it breaks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from enum import StrEnum
from functools import cache
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

from skald.messaging import compensation as effects
from skald.messaging.compensation import EffectState
from skald.sagas.compensation import Execution, ExecutionState, to_undo
from skald.sagas.machine import Happening, Impossible, Status, follow

STEPS = ("A", "B")
REFUSABLE = "B"
_CALL: Any = SimpleNamespace(step=SimpleNamespace(recovery=SimpleNamespace(compensate=True)))


class Flaw(StrEnum):
    NONE = "the protocol as it is"
    MARK_BEFORE_ACT = "a step is journalled before it is asked for"
    NO_TOMBSTONE = "a compensation that finds nothing leaves nothing"
    ZOMBIE_COMMITS = "a unit does not name the fence of its owner"
    REPLY_BEFORE_COMMIT = "a participant answers before its commit"
    DOUBLE_COMPENSATE = "a participant undoes what it is asked to undo, however often"
    FORGETS_THE_UNASKED = "what is given up before it was asked for counts as not done"


class Request(NamedTuple):
    undoes: bool
    step: str

    def __str__(self) -> str:
        return f"{'undo' if self.undoes else 'do'} {self.step}"


class Entry(NamedTuple):
    """Of the journal: what has become of a step, or of undoing it, or a status."""

    step: str
    what: str

    def __str__(self) -> str:
        return f"{self.step} {self.what}".strip()


class Owner(NamedTuple):
    """A process that has the saga in memory, or believes so."""

    epoch: int
    memory: tuple[Entry, ...]
    asked: bool = False
    reply: str | None = None
    owes: Request | None = None
    """With MARK_BEFORE_ACT: what it has journalled, and not asked for yet."""


class Participant(NamedTuple):
    """What one knows of its step. ``refused``: it has answered that it will not do it, which is an outcome, too."""

    state: str = ""
    refused: bool = False
    done: int = 0
    undone: int = 0


class Left(NamedTuple):
    """Of each kind of trouble, how often it may still come."""

    crashes: int = 1
    zombies: int = 1
    twice: int = 1
    participant_crashes: int = 1
    cancels: int = 1


class State(NamedTuple):
    journal: tuple[Entry, ...] = ()
    fence: int = 1
    owners: tuple[Owner, ...] = (Owner(1, ()),)
    network: tuple[Request, ...] = ()
    """Sorted: they come in any order."""
    uncommitted: tuple[Request, ...] = ()
    """With REPLY_BEFORE_COMMIT: answered by a participant, and not committed."""
    participants: tuple[Participant, Participant] = (Participant(), Participant())
    left: Left = Left()


class Counterexample(Exception):
    """``trace`` is a shortest way there."""

    def __init__(self, broken: str, trace: list[str]) -> None:
        super().__init__(broken)
        self.broken, self.trace = broken, trace

    def __str__(self) -> str:
        return "\n".join([self.broken, *(f"{number:3} {line}" for number, line in enumerate(self.trace, 1))])


# --- what an owner does -----------------------------------------------------------------------------------------------


@cache
def status_of(journal: tuple[Entry, ...]) -> Status:
    """Raises ``Impossible``, as the code would."""
    status = Status.IN_PROGRESS
    for entry in journal:
        if not entry.step:
            status = follow(status, Happening(entry.what))
    return status


def executions(memory: tuple[Entry, ...]) -> list[Execution]:
    found = []
    for number, step in enumerate(STEPS, 1):
        told = [entry.what for entry in memory if entry.step == step]
        if told:
            state = ExecutionState(told[-1])
            found.append(Execution(number, step, cast("Any", _CALL), _CALL.step.recovery, state))
    return found


@cache
def decide(memory: tuple[Entry, ...]) -> Request | Happening | None:
    """What comes next: a request, or a status to be journalled; ``None`` once it has ended."""
    status, known = status_of(memory), executions(memory)
    if status == Status.IN_PROGRESS:
        if any(one.state in (ExecutionState.FAILED, ExecutionState.UNKNOWN) for one in known):
            return Happening.FAILS
        following = next((step for step in STEPS if step not in {one.node for one in known}), None)
        return Happening.COMPLETES if following is None else Request(False, following)
    if status == Status.COMPENSATING:
        undo = to_undo(known)
        return Request(True, undo[0].node) if undo else Happening.IS_UNDONE
    return None


def moves(state: State, flaw: Flaw) -> Iterator[tuple[str, State]]:
    """Everything that can happen next, with its name."""
    for owner in state.owners:
        yield from _moves_of(state, owner, flaw)
    for request in dict.fromkeys(state.network):
        yield from _handled(state, request, flaw)
        if state.left.twice:
            again = state._replace(left=state.left._replace(twice=state.left.twice - 1))
            yield f"{request} is sent twice", _sent(again, request)
    for request in state.uncommitted:
        rest = _without(state.uncommitted, request)
        yield f"the participant commits {request}", _acted(state, request, refused=False)._replace(uncommitted=rest)
        if state.left.participant_crashes:
            left = state.left._replace(participant_crashes=state.left.participant_crashes - 1)
            lost = state._replace(uncommitted=rest, left=left)
            yield f"the participant dies before it commits {request}, which comes again", _sent(lost, request)
    current = any(owner.epoch == state.fence for owner in state.owners)
    if not current or state.left.zombies:
        left = state.left._replace(zombies=state.left.zombies - 1) if current else state.left
        fence = state.fence + 1
        what = "another one takes over from one that still lives" if current else "another one takes over"
        owners = (*state.owners, Owner(fence, state.journal))
        yield f"{what}, as {fence}", state._replace(fence=fence, left=left, owners=owners)


def _moves_of(state: State, owner: Owner, flaw: Flaw) -> Iterator[tuple[str, State]]:
    me = f"owner {owner.epoch}"
    is_current = owner.epoch == state.fence
    if not is_current or state.left.crashes:
        left = state.left._replace(crashes=state.left.crashes - is_current)
        yield f"{me} dies", _without_owner(state, owner)._replace(left=left)
    if owner.owes is not None:
        yield f"{me} asks: {owner.owes}", _sent(_replaced(state, owner, owner._replace(owes=None)), owner.owes)
        return
    following = decide(owner.memory)
    if isinstance(following, Happening):
        yield _commit(state, owner, flaw, Entry("", following.value))
    elif following is not None:
        yield from _asking(state, owner, following, flaw)


def _asking(state: State, owner: Owner, request: Request, flaw: Flaw) -> Iterator[tuple[str, State]]:
    me, step = f"owner {owner.epoch}", request.step
    if owner.reply is not None:
        yield _commit(state, owner, flaw, Entry(step, owner.reply))
    elif not owner.asked and flaw == Flaw.MARK_BEFORE_ACT and not request.undoes:
        yield _commit(state, owner, flaw, Entry(step, ExecutionState.DONE), owes=request)
    elif not owner.asked:
        yield f"{me} asks: {request}", _sent(_replaced(state, owner, owner._replace(asked=True)), request)
    else:
        if not request.undoes:  # it takes too long
            yield _commit(state, owner, flaw, Entry(step, ExecutionState.UNKNOWN))
        elif request not in state.network:  # the answer was lost
            yield f"{me} gets no answer to: {request}", _replaced(state, owner, owner._replace(asked=False))
    if not request.undoes and not owner.asked and owner.reply is None and state.left.cancels:
        # It is called by the code, and may be on its way: by a zombie, too, that has replayed as much.
        left = state.left._replace(cancels=state.left.cancels - 1)
        outcome = ExecutionState.FAILED if flaw == Flaw.FORGETS_THE_UNASKED else ExecutionState.UNKNOWN
        yield _commit(state._replace(left=left), owner, flaw, Entry(step, outcome))


def _commit(state: State, owner: Owner, flaw: Flaw, entry: Entry, owes: Request | None = None) -> tuple[str, State]:
    me = f"owner {owner.epoch}"
    if owner.epoch != state.fence and flaw != Flaw.ZOMBIE_COMMITS:
        return f"{me} is refused: {entry}", _without_owner(state, owner)
    after = owner._replace(memory=(*owner.memory, entry), asked=False, reply=None, owes=owes)
    return f"{me} commits: {entry}", _replaced(state, owner, after)._replace(journal=(*state.journal, entry))


# --- what a participant does ------------------------------------------------------------------------------------------


def _handled(state: State, request: Request, flaw: Flaw) -> Iterator[tuple[str, State]]:
    """Its act, its mark and its answer are one commit; the answer may be lost on its way."""
    mine = state.participants[STEPS.index(request.step)]
    taken = state._replace(network=_without(state.network, request))
    is_new = not (request.undoes or mine.state)
    for refused in (False, True) if is_new and request.step == REFUSABLE else (False,):
        verdict = " and refuses it" if refused else ""
        if flaw == Flaw.REPLY_BEFORE_COMMIT and is_new and not refused:
            after = taken._replace(uncommitted=(*state.uncommitted, request))
            answer = ExecutionState.DONE.value
        else:
            after = _acted(taken, request, refused=refused, flaw=flaw)
            answer = _answer(request, after.participants[STEPS.index(request.step)])
        yield f"{request} comes to the participant{verdict}, and its answer is lost", after
        yield f"{request} comes to the participant{verdict}: {answer}", _answered(after, request, answer)


def _acted(state: State, request: Request, *, refused: bool, flaw: Flaw = Flaw.NONE) -> State:
    place = STEPS.index(request.step)
    mine = state.participants[place]
    if not request.undoes:
        if not mine.state:
            now = effects.after("", effects.Happening.FINISHED)
            mine = mine._replace(state=now, refused=refused, done=mine.done + (not refused))
    elif mine.state == EffectState.DONE or (flaw == Flaw.DOUBLE_COMPENSATE and mine.state == EffectState.UNDONE):
        if not mine.refused:
            mine = mine._replace(undone=mine.undone + 1)
            mine = mine._replace(state=effects.after(EffectState.DONE, effects.Happening.COMPENSATED))
    elif not mine.state and flaw != Flaw.NO_TOMBSTONE:
        mine = mine._replace(state=effects.after("", effects.Happening.OVERTOOK))
    participants = list(state.participants)
    participants[place] = mine
    return state._replace(participants=(participants[0], participants[1]))


def _answer(request: Request, mine: Participant) -> str:
    if request.undoes:
        return ExecutionState.COMPENSATED.value
    is_done = mine.state == EffectState.DONE and not mine.refused
    return (ExecutionState.DONE if is_done else ExecutionState.FAILED).value


def _answered(state: State, request: Request, answer: str) -> State:
    """Whoever waits for it hears of it."""
    owners = tuple(
        owner._replace(reply=owner.reply or answer) if owner.asked and decide(owner.memory) == request else owner
        for owner in state.owners
    )
    return state._replace(owners=owners)


# --- states -----------------------------------------------------------------------------------------------------------


def _sent(state: State, request: Request) -> State:
    return state._replace(network=tuple(sorted((*state.network, request))))


def _without(requests: tuple[Request, ...], request: Request) -> tuple[Request, ...]:
    place = requests.index(request)
    return requests[:place] + requests[place + 1 :]


def _replaced(state: State, owner: Owner, after: Owner) -> State:
    return state._replace(owners=tuple(after if one is owner else one for one in state.owners))


def _without_owner(state: State, owner: Owner) -> State:
    return state._replace(owners=tuple(one for one in state.owners if one is not owner))


# --- what must hold ---------------------------------------------------------------------------------------------------


def broken(state: State) -> str | None:
    """What does not hold, in words."""
    for step, mine in zip(STEPS, state.participants, strict=True):
        if mine.done > 1 or mine.undone > 1:
            return f"{step} was done {mine.done} times, and undone {mine.undone} times"
    try:
        status = status_of(state.journal)
    except Impossible as impossible:
        return str(impossible)
    settled = [entry for entry in state.journal if entry.step]
    if len(set(settled)) < len(settled):
        return f"the journal has something twice: {', '.join(map(str, settled))}"
    if not is_over(state):
        return None
    held = [step for step, mine in zip(STEPS, state.participants, strict=True) if mine.done > mine.undone]
    undone = [step for step, mine in zip(STEPS, state.participants, strict=True) if mine.undone]
    if status == Status.COMPLETED and (held != [*STEPS] or undone):
        return f"it is COMPLETED, and of its steps {held} are done, and {undone} were undone"
    if status == Status.COMPENSATED and held:
        return f"it is COMPENSATED, and {held} are done"
    return None


def is_over(state: State) -> bool:
    """It has ended, and nobody is left who could do anything any more."""
    idle = all(owner.owes is None and decide(owner.memory) is None for owner in state.owners)
    return bool(idle and not state.network and not state.uncommitted and status_of(state.journal) in ENDS)


ENDS = (Status.COMPLETED, Status.COMPENSATED)


def explore(flaw: Flaw = Flaw.NONE) -> dict[State, tuple[State, str] | None]:
    """Every state that can be reached, with one way to it; raises ``Counterexample`` for the first that is wrong, and
    for one from which no end can be reached."""
    first = State()
    found: dict[State, tuple[State, str] | None] = {first: None}
    before: dict[State, list[State]] = {}
    waiting = deque([first])
    while waiting:
        state = waiting.popleft()
        for name, after in moves(state, flaw):
            before.setdefault(after, []).append(state)
            if after in found:
                continue
            found[after] = state, name
            if (what := broken(after)) is not None:
                raise Counterexample(what, trace(found, after))
            waiting.append(after)
    _require_ends(found, before)
    return found


def trace(found: dict[State, tuple[State, str] | None], state: State) -> list[str]:
    names = []
    while (way := found[state]) is not None:
        state, name = way
        names.append(name)
    return names[::-1]


def _require_ends(found: dict[State, tuple[State, str] | None], before: dict[State, list[State]]) -> None:
    """None is lost: from everywhere an end can be reached."""
    ending = deque(state for state in found if is_over(state))
    good = set(ending)
    while ending:
        for state in before.get(ending.popleft(), ()):
            if state not in good:
                good.add(state)
                ending.append(state)
    for state in found:
        if state not in good:
            raise Counterexample(f"it ends nowhere: {state}", trace(found, state))
