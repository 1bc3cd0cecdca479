"""PURE. What steps say about their failure in a saga, and which of it makes no sense."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import msgspec

from skald.retry import Backoff, Policy, Retry

TO_THE_END = Backoff(first=1.0, factor=2.0, longest=300.0, attempts=2**31)


class Undo(Protocol):
    """A compensation."""

    def misfits(self, step: Any) -> list[str]:
        """Why it cannot compensate this step."""
        ...


class Recovery(msgspec.Struct, frozen=True):
    """See ``skald.step``."""

    compensate: Undo | None = None
    pivot: bool = False
    critical: bool = True
    forward: bool = False
    human: bool = False

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Recovery:
        return cls(**{name: options[name] for name in cls.__struct_fields__ if name in options})

    def patience(self, retry: Policy | None) -> Policy | None:
        """How often it is tried: a forward step to the end, but for errors that have a rule of their own."""
        if not self.forward or isinstance(retry, Retry):  # which ``wrong`` refuses
            return retry
        if isinstance(retry, Backoff):
            return msgspec.structs.replace(retry, attempts=TO_THE_END.attempts)
        return {"*": TO_THE_END, **(retry if isinstance(retry, Mapping) else {})}

    def wrong(self, step: Any) -> list[str]:
        """What contradicts itself, in words."""
        wrong = []
        if self.pivot and self.compensate is not None:
            wrong.append("once a pivot is done nothing is undone: leave out pivot= or compensate=")
        if not self.critical:
            for name in ("pivot", "forward", "human"):
                if getattr(self, name):
                    wrong.append(f"critical=False lets the saga go on without it: leave that out, or {name}=True")
        if self.forward:
            if isinstance(step.retry, Retry):
                wrong.append("a forward step is retried to the end: give retry= a Backoff, or rules by class of error")
            for name, given in (("total", step.total), ("at_most_once", step.at_most_once), ("human", self.human)):
                if given:
                    wrong.append(f"a forward step is retried to the end, and after that a person decides: no {name}=")
        if self.human and step.pause:
            wrong.append("a person decides how it goes on, or resumes the whole workflow: leave out human= or pause=")
        if self.compensate is not None:
            misfits = getattr(self.compensate, "misfits", None)
            if misfits is None:
                name = getattr(self.compensate, "__name__", repr(self.compensate))
                wrong.append(f"compensate={name}: make it a compensation with @compensation")
            else:
                wrong += misfits(step)
        return wrong
