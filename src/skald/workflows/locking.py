"""PURE. ``lock``: a saga has a business key for itself, up to its end.

reserved = await lock(f"account {source}", timeout=30)
seen = await lock(f"seat {number}", conflict="proceed")
if seen.dirty: ...                                  # seen.holder may yet undo what can be read now

What is asked for is a letter that is written in the unit of the entry because of which it was asked, as that of a call
is. Whoever has it decided (see ``granting``) answers by a letter, and that is journalled. The letter stays as long as
the saga waits for the lock or has it. It is deleted in the unit in which the saga gives up waiting, or ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Literal, cast, get_args

import msgspec

from skald.errors import LockDeadlock, LockTaken, LockTimeout, WorkflowError
from skald.unit import AddressKind, EntryKind, Letter, LetterKind
from skald.workflows.calling import Asked
from skald.workflows.letters import MAX_NAME
from skald.workflows.loop import running, user_line
from skald.workflows.replay import Machine
from skald.workflows.signature import digest_of, identity_text

Conflict = Literal["wait", "fail", "proceed"]
_CONFLICTS = get_args(Conflict)
_LOCKS = "locks"
"""Of ``Machine.local``."""


class Lock(msgspec.Struct, frozen=True):
    """What asking for a lock has come to."""

    key: str
    holder: str | None = None
    """The id of the saga that has it, if that is another one: only with ``conflict="proceed"``."""

    @property
    def dirty(self) -> bool:
        """What is read of this key may be tentative: another saga is at work on it, and may undo it."""
        return self.holder is not None


class Request(msgspec.Struct, frozen=True):
    """What the letter says beside the key, which is its name. ``call`` names the one that is to be answered."""

    call: str
    conflict: Conflict = "wait"


class Verdict(msgspec.Struct, frozen=True, omit_defaults=True):
    """The answer, as it is journalled: who has the lock, id and name, if the one who has asked has it not."""

    holder: str | None = None
    saga: str | None = None
    chain: tuple[str, ...] = ()
    """Of a deadlock: ids of sagas that each would wait for the next one."""


decode_request = msgspec.json.Decoder(Request).decode
decode_verdict = msgspec.json.Decoder(Verdict).decode
encode = msgspec.json.Encoder().encode


class Locks:
    """Of one saga in memory."""

    def __init__(self) -> None:
        self.held: dict[str, str] = {}
        """By key: the letter's id."""
        self._turns: dict[str, asyncio.Lock] = {}

    def turn(self, key: str) -> asyncio.Lock:
        """One branch of a saga asks for a key at a time; the next one finds that the saga has it."""
        return self._turns.setdefault(key, asyncio.Lock())


def granted(ticket: str) -> str:
    """The id of the letter that says so, beside the one that stays."""
    return f"{ticket}+"


class Want(Asked, eq=False, kw_only=True):
    """A lock that a saga has asked for."""

    key: str
    conflict: Conflict
    locks: Locks

    @property
    def letters(self) -> tuple[str, ...]:
        return self.id, granted(self.id)

    def place(self, time: int) -> Letter:
        body = encode(Request(identity_text(self.identity), self.conflict))
        return Letter(self.id, LetterKind.LOCK, AddressKind.RUN, self.run, self.key, body, time)

    def verdict(self, payload: bytes) -> EntryKind:
        found = decode_verdict(payload)
        refused = found.holder is not None and (self.conflict == "fail" or bool(found.chain))
        return EntryKind.CALL_REJECTED if refused else EntryKind.CALL_DONE

    def settle(self, kind: EntryKind, payload: bytes) -> None:
        found = decode_verdict(payload)
        if kind == EntryKind.CALL_DONE:
            if found.holder is None:
                self.locks.held.setdefault(self.key, self.id)
            self.future.set_result(Lock(self.key, found.holder))
        elif found.chain:
            self.future.set_exception(LockDeadlock(self.key, found.holder or "", found.chain))
        else:
            self.future.set_exception(LockTaken(self.key, found.holder or "", found.saga or ""))


def lock(key: str, *, conflict: Conflict = "wait", timeout: float | None = None) -> Coroutine[object, None, Lock]:
    """Takes the lock of a business key for this saga, which keeps it up to its end, whatever that is. Of the sagas of a
    service one has a key at a time; one that has it already gets it again.

    Where another saga has it: ``"wait"`` waits for that one's end, in the order of asking; up to ``timeout`` seconds,
    and then raises TimeoutError. Of sagas that would wait for each other for ever, the last one to ask gets
    ``LockDeadlock``. ``"fail"`` raises ``LockTaken``, which names the other one. ``"proceed"`` goes on without the
    lock: the result is ``dirty`` then.
    """
    loop = running()
    if loop is None:
        raise WorkflowError(f"{user_line()}: lock() is for the code of sagas: call it there, and not in a step")
    machine = cast("Machine", loop.host)
    machine.ensure_alive("a lock")
    if machine.conductor is None:
        raise WorkflowError(f"{user_line()}: lock() is for sagas, which keep it to their end: declare this with @saga")
    if not _is_key(key):
        shown = repr(key)[:MAX_NAME]
        raise WorkflowError(f"{user_line()}: lock({shown}): a key is a text of 1 to {MAX_NAME} printable characters")
    if conflict not in _CONFLICTS:
        raise WorkflowError(f"{user_line()}: lock(conflict={conflict!r}): use one of {', '.join(_CONFLICTS)}")
    if timeout is not None and (conflict != "wait" or not timeout > 0):
        raise WorkflowError(
            f"{user_line()}: lock(conflict={conflict!r}, timeout={timeout}): a number of seconds above 0, and only "
            "where it waits"
        )
    _ensure_open(machine, key)
    return _taken(machine, key, conflict, timeout)


def _ensure_open(machine: Machine, key: str) -> None:
    if machine.conductor is not None and machine.conductor.is_closed:
        raise WorkflowError(f"the saga {machine.id!r} is being compensated, and takes no lock {key!r}")


def _is_key(key: object) -> bool:
    return isinstance(key, str) and 1 <= len(key) <= MAX_NAME and key.isprintable()


async def _taken(machine: Machine, key: str, conflict: Conflict, timeout: float | None) -> Lock:
    locks: Locks = machine.local.setdefault(_LOCKS, Locks())
    want: Want | None = None
    try:
        async with asyncio.timeout(timeout) as limit:
            async with locks.turn(key):
                if key in locks.held:
                    return Lock(key)
                _ensure_open(machine, key)  # it may have waited for its turn
                want = _want(machine, locks, key, conflict)
                return cast("Lock", await machine.outcome(want))
    except TimeoutError:
        if not limit.expired():
            raise
        if want is not None and want.future.done() and not want.future.cancelled():
            return cast("Lock", want.future.result())  # it has come in the same moment
        raise LockTimeout(key, timeout or 0.0) from None


def _want(machine: Machine, locks: Locks, key: str, conflict: Conflict) -> Want:
    name, digest = f"lock {key}", digest_of(key.encode())
    identity = name, digest, machine.count(name, digest)
    future = asyncio.get_running_loop().create_future()
    return Want(identity=identity, future=future, run=machine.run, key=key, conflict=conflict, locks=locks)


def close(machine: Machine) -> None:
    """The code has ended, and the saga wants no further locks; branches that nobody has awaited may wait for some."""
    for call in tuple(machine.calls.values()):
        if isinstance(call, Want):
            call.future.cancel()


def held(machine: Machine) -> tuple[str, ...]:
    """The letters of the locks that a saga has; they are deleted when it ends."""
    locks = machine.local.get(_LOCKS)
    return tuple(locks.held.values()) if isinstance(locks, Locks) else ()
