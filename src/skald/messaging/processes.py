"""PURE. Processes: a state per key, which several events of one service move on.

A function of a process is a handler like any other. It takes the state before the message, changes it in place, and
returns what is to be published. The state is written as a mark, over exactly the version that the function was given;
so two events about one key may come at the same time, from different services, and each sees what the other one did.

A timeout is work of a queue that is due later. It is written and deleted in the units that write the state, which
names the timeouts that are set: one that was cancelled or has been set anew since is skipped, whenever it comes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Generic, Literal, TypeVar

import msgspec

from skald.errors import ConfigurationError, SkaldError, UnreadableMessage
from skald.message import Command
from skald.retry import Policy

NotFound = Literal["ignore", "park"] | Callable[..., Any]


class TimeoutDue(Command, name="skald.TimeoutDue"):
    """What a timeout's delivery carries. It goes through no log."""

    name: str


class ProcessNotFound(SkaldError):
    """An event came for a process that has not started or has ended, and ``not_found="park"``."""

    def __init__(self, process: str, key: str) -> None:
        super().__init__(f"there is no {process} {key!r} that runs: it has not started yet, or has ended")
        self.process, self.key = process, key


class ProcessNotStarted(ProcessNotFound):
    """The message that starts it came before, and is not finished. No failure: it is waited for.

    ``due``: when that one is tried again, if it is known.
    """

    def __init__(self, process: str, key: str, due: int = 0) -> None:
        super().__init__(process, key)
        self.due = due


class Changes(msgspec.Struct):
    """What a function asked for beside the state."""

    known: frozenset[str]
    """The names of the process's timeouts."""
    ended: bool = False
    made: dict[str, float] = msgspec.field(default_factory=dict)
    """Seconds by name, in the order in which they were set."""
    cancelled: set[str] = msgspec.field(default_factory=set)


class Process(msgspec.Struct, dict=True):
    """The state of a process: subclass it with typed fields. A field called ``step``, a text, is shown to people.

    A process is made from the message that starts it: fields without a default take its fields of the same name.
    """

    def timeout(self, seconds: float, name: str) -> None:
        """Calls the function ``on_timeout(name)`` after so many seconds, unless it is cancelled, set anew, or the
        process ends before. In the commit that writes the state."""
        changes = self._changes()
        self._check(name, changes)
        if seconds < 0:
            raise ValueError(f"timeout({seconds!r}, {name!r}): the seconds must not be negative")
        changes.made.pop(name, None)
        changes.made[name] = seconds

    def cancel(self, name: str) -> None:
        """The timeout of this name does not come any more; nothing happens if it is not set."""
        changes = self._changes()
        self._check(name, changes)
        changes.made.pop(name, None)
        changes.cancelled.add(name)

    def end(self) -> None:
        """The process is over: its timeouts are cancelled, and later events do not find it."""
        self._changes().ended = True

    def _changes(self) -> Changes:
        found = self.__dict__.get("changes")
        if found is None:
            raise RuntimeError("timeouts and the end of a process are a matter of its own functions")
        assert isinstance(found, Changes)
        return found

    def _check(self, name: str, changes: Changes) -> None:
        if name not in changes.known:
            known = ", ".join(sorted(changes.known)) or "none"
            raise ValueError(
                f"{type(self).__name__} has no timeout {name!r} (it has: {known}): write a function for it, with "
                f"@….on_timeout({name!r})"
            )


class Definition(msgspec.Struct):
    """A process of a service. ``timeouts``: the handlers of its timeouts, by name; ``starts``: those that make it."""

    name: str
    cls: type[Process]
    timeouts: dict[str, str] = msgspec.field(default_factory=dict)
    starts: list[str] = msgspec.field(default_factory=list)


class Role(msgspec.Struct, frozen=True):
    """What one handler is to a process."""

    process: Definition
    by: str = ""
    starts: bool = False
    timeout: str | None = None
    not_found: NotFound = "ignore"


class Kept(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the mark of a process holds. ``timeouts``: the number of each that is set; ``number``: of the last one."""

    state: msgspec.Raw
    timeouts: dict[str, int] = {}
    number: int = 0


RUNNING, ENDED = "running", "ended"


class Opened(msgspec.Struct):
    """The state, as a function is given it."""

    state: Process
    changes: Changes
    timeouts: dict[str, int]
    number: int

    def kept(self) -> bytes:
        """Raises ``TypeError`` for a state that the next function could not be given."""
        cls, state = type(self.state), msgspec.json.encode(self.state)
        if not self.changes.ended:
            try:
                msgspec.json.decode(state, type=cls)
            except msgspec.DecodeError as error:
                raise TypeError(f"{cls.__name__}: its state does not fit the class: {error}") from error
        return msgspec.json.encode(Kept(msgspec.Raw(state), self.timeouts, self.number))

    @property
    def step(self) -> str | None:
        step = getattr(self.state, "step", None)
        return None if step is None else str(step)

    def take_timeouts(self, fired: str | None) -> tuple[list[tuple[str, int]], list[tuple[str, int, float]]]:
        """Names and numbers of the timeouts to delete, and of those to set, with their seconds."""
        if fired is not None:
            # Its delivery is the one that is being handled.
            self.timeouts.pop(fired, None)
        over = set(self.timeouts) if self.changes.ended else self.changes.cancelled | set(self.changes.made)
        gone = [(name, self.timeouts.pop(name)) for name in sorted(over) if name in self.timeouts]
        made = []
        for name, seconds in () if self.changes.ended else self.changes.made.items():
            self.number += 1
            self.timeouts[name] = self.number
            made.append((name, self.number, seconds))
        return gone, made


def reopened(process: Definition, payload: bytes) -> Opened:
    """Raises ``UnreadableMessage`` for a state that does not fit the class any more."""
    try:
        kept = msgspec.json.decode(payload, type=Kept)
        state = msgspec.json.decode(kept.state, type=process.cls)
    except msgspec.DecodeError as error:
        raise UnreadableMessage(process.name, f"its stored state does not fit the class: {error}") from error
    return _opened(process, state, dict(kept.timeouts), kept.number)


def started(process: Definition, message: Any) -> Opened:
    given = {name: getattr(message, name) for name in _required(process.cls)}
    return _opened(process, process.cls(**given), {}, 0)


def _opened(process: Definition, state: Process, timeouts: dict[str, int], number: int) -> Opened:
    changes = Changes(frozenset(process.timeouts))
    state.__dict__["changes"] = changes
    return Opened(state, changes, timeouts, number)


def _required(cls: type[Process]) -> list[str]:
    return [field.name for field in msgspec.structs.fields(cls) if field.required]


def check_state(cls: type, where: str) -> None:
    if not issubclass(cls, Process) or cls is Process:
        raise ConfigurationError(f"{where}: the state of a process is a subclass of skald.Process")
    for name in cls.__struct_fields__:
        if name in ("timeout", "cancel", "end", "changes"):
            raise ConfigurationError(f"{where}: {cls.__name__}.{name} is what a process does, and cannot be a field")


def check_start(cls: type[Process], fields: Mapping[str, tuple[str, ...]], where: str) -> None:
    """``fields``: those of the messages that start it, by wire name."""
    for name, known in fields.items():
        missing = [field for field in _required(cls) if field not in known]
        if missing:
            raise ConfigurationError(
                f"{where}: {cls.__name__} needs {', '.join(missing)}, which {name} does not have: give the field a "
                "default, and set it in this function"
            )


F = TypeVar("F", bound=Callable[..., Any])
S = TypeVar("S", bound=Process)


class Registered(Generic[S]):
    """What ``Service.process`` returns: it takes the functions of a process.

    ``register`` makes a handler of a function, given the types of its messages, its role, and further options.
    """

    def __init__(
        self, definition: Definition, by: str, not_found: NotFound, register: Callable[..., Callable[[Any], Any]]
    ) -> None:
        self._definition, self._by, self._not_found, self._register = definition, by, not_found, register

    def starts(
        self, *types: type, by: str | None = None, retry: Policy | None = None, timeout: float = 30.0
    ) -> Callable[[F], F]:
        """A message that makes the process if it is not there; if it runs, the function is called with its state."""
        role = Role(self._definition, by or self._by, starts=True, not_found=self._not_found)
        return self._register(types, role, retry=retry, timeout=timeout)

    def on(
        self,
        *types: type,
        by: str | None = None,
        not_found: NotFound | None = None,
        retry: Policy | None = None,
        timeout: float = 30.0,
    ) -> Callable[[F], F]:
        """A message for a process that runs. ``retry`` and ``timeout`` are those of ``Service.on``."""
        wanted = not_found if not_found is not None else self._not_found
        role = Role(self._definition, by or self._by, not_found=wanted)
        return self._register(types, role, retry=retry, timeout=timeout)

    def on_timeout(self, name: str, *, retry: Policy | None = None, timeout: float = 30.0) -> Callable[[F], F]:
        """What is done when ``state.timeout(seconds, name)`` has run out; the function takes the state alone."""
        return self._register((TimeoutDue,), Role(self._definition, timeout=name), retry=retry, timeout=timeout)
