"""PURE. The life of a saga as one table: what is not in it cannot happen, and raises. The diagram in the docs is drawn
from it."""

from __future__ import annotations

from enum import StrEnum

from skald.errors import SkaldError


class Status(StrEnum):
    IN_PROGRESS = "IN_PROGRESS"
    NEEDS_ATTENTION = "NEEDS_ATTENTION"
    """It can go neither forward nor back before a person has decided."""
    COMPENSATING = "COMPENSATING"
    COMPENSATION_FAILED = "COMPENSATION_FAILED"
    """A compensation has given up; a person decides."""
    COMPLETED = "COMPLETED"
    COMPENSATED = "COMPENSATED"
    CANCELLED = "CANCELLED"
    """After its compensations."""
    TERMINATED = "TERMINATED"
    """Nothing was undone."""


class Happening(StrEnum):
    COMPLETES = "completes"
    FAILS = "fails"
    IS_CANCELLED = "is cancelled"
    ASKS = "a step asks a person"
    IS_ANSWERED = "no question is open any more"
    GIVES_UP = "a compensation gives up"
    IS_UNDONE = "all is undone"
    IS_UNDONE_FOR_CANCEL = "all is undone, after a cancel"
    IS_TERMINATED = "is terminated"


class Impossible(SkaldError):
    """Something happened to a saga that cannot happen in its status: a defect of this library."""

    def __init__(self, status: Status, happening: Happening) -> None:
        super().__init__(f"a saga that is {status.value} cannot come to {happening.value!r}")
        self.status, self.happening = status, happening


S, H = Status, Happening

TRANSITIONS: dict[tuple[Status, Happening], Status] = {
    (S.IN_PROGRESS, H.COMPLETES): S.COMPLETED,
    (S.IN_PROGRESS, H.FAILS): S.COMPENSATING,
    (S.IN_PROGRESS, H.IS_CANCELLED): S.COMPENSATING,
    (S.IN_PROGRESS, H.ASKS): S.NEEDS_ATTENTION,
    (S.NEEDS_ATTENTION, H.ASKS): S.NEEDS_ATTENTION,
    (S.NEEDS_ATTENTION, H.IS_ANSWERED): S.IN_PROGRESS,
    (S.COMPENSATING, H.GIVES_UP): S.COMPENSATION_FAILED,
    (S.COMPENSATING, H.IS_UNDONE): S.COMPENSATED,
    (S.COMPENSATING, H.IS_UNDONE_FOR_CANCEL): S.CANCELLED,
    (S.COMPENSATION_FAILED, H.GIVES_UP): S.COMPENSATION_FAILED,
    (S.COMPENSATION_FAILED, H.IS_ANSWERED): S.COMPENSATING,
    (S.IN_PROGRESS, H.IS_TERMINATED): S.TERMINATED,
    (S.NEEDS_ATTENTION, H.IS_TERMINATED): S.TERMINATED,
    (S.COMPENSATING, H.IS_TERMINATED): S.TERMINATED,
    (S.COMPENSATION_FAILED, H.IS_TERMINATED): S.TERMINATED,
}


def follow(status: Status, happening: Happening) -> Status:
    """The status after it; raises ``Impossible``."""
    found = TRANSITIONS.get((status, happening))
    if found is None:
        raise Impossible(status, happening)
    return found


def diagram() -> str:
    """The table as a Mermaid diagram."""
    lines = [f"    {before} --> {after}: {happening.value}" for (before, happening), after in TRANSITIONS.items()]
    leaving = {before for before, _ in TRANSITIONS}
    lines += [f"    {status} --> [*]" for status in Status if status not in leaving]
    return "\n".join(["stateDiagram-v2", f"    [*] --> {Status.IN_PROGRESS}", *lines])
