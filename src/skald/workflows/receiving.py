"""Letters: how each kind of them reaches a workflow in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol
from uuid import UUID

import msgspec

from skald.unit import EntryKind, LetterKind, Reply, WorkflowState
from skald.workflows.calling import Asked
from skald.workflows.definition import Child
from skald.workflows.failure import End, Failure, encode, is_of_before
from skald.workflows.inbox import Answer
from skald.workflows.instance import Instance
from skald.workflows.journal import Mail
from skald.workflows.recorder import ChildEnd
from skald.workflows.replay import Machine
from skald.workflows.signature import Identity, identity_of

_child_end = msgspec.json.Decoder(ChildEnd).decode


class Teller(Protocol):
    """What turns workflows."""

    asked: dict[str, Instance]
    begin_child: Callable[[Instance, Child], None]

    def tell(self, instance: Instance, kind: EntryKind, identity: Identity, body: bytes | None) -> None: ...

    def after(self, instance: Instance) -> None: ...

    def put_away(self, instance: Instance, state: WorkflowState, note: bytes | None = None) -> None: ...


def receive(teller: Teller, instance: Instance, letter: Mail, now: int) -> None:
    """Brings a letter, once; it is taken with the unit that journals it."""
    machine = instance.machine
    if letter.id in instance.seen or instance.stopped or instance.rest or machine.end is not None:
        return
    if letter.kind == LetterKind.STEP and _is_early(machine, identity_of(letter.name)):
        return
    instance.seen.add(letter.id)
    if letter.kind == LetterKind.PROGRESS:
        instance.progress[identity_of(letter.name)] = letter.payload
        return
    if letter.kind == LetterKind.UPDATE:
        refusal = machine.inbox.refuses(letter.name, letter.payload, now)
        if refusal is not None:
            instance.replies.append(Reply(letter.id, encode(Answer(refusal))))
            teller.after(instance)
            return
    instance.taken.append(letter.id)
    match letter.kind:
        case LetterKind.TERMINATE:
            machine.terminate(terminated(letter))
            teller.after(instance)
        case LetterKind.PAUSE:
            teller.put_away(instance, WorkflowState.PAUSED, encode(Failure("Paused", _reason(letter))))
        case LetterKind.CHILD:
            _child_ended(teller, instance, letter)
        case LetterKind.STEP:
            identity = identity_of(letter.name)
            if identity not in machine.calls:
                teller.after(instance)  # it was given up, and done all the same
            else:
                teller.tell(instance, EntryKind.STEP_DONE, identity, letter.payload)
        case LetterKind.ANSWER:
            _answered(teller, instance, letter)
        case LetterKind.UPDATE:
            teller.tell(instance, EntryKind.UPDATE, (letter.name, UUID(letter.id).bytes, 0), letter.payload)
        case LetterKind.CANCEL if letter.name not in ("", instance.parent):
            teller.after(instance)  # for the child of another, which was never started
        case LetterKind.CANCEL:
            teller.tell(instance, EntryKind.CANCEL, ("", b"", 0), _reason(letter).encode())
        case _:
            teller.tell(instance, EntryKind.SIGNAL, (letter.name, b"", 0), letter.payload)


def _is_early(machine: Machine, identity: Identity) -> bool:
    """The result of a step that was given up, and is done all the same: a saga has yet to ask for it."""
    return identity not in machine.calls and machine.conductor is not None and machine.conductor.looks_for(identity)


def terminated(letter: Mail) -> bytes:
    """The outcome of one that was terminated by a letter."""
    return encode(Failure("Terminated", _reason(letter)))


def _reason(letter: Mail) -> str:
    return letter.payload.decode(errors="replace")


def _answered(teller: Teller, instance: Instance, letter: Mail) -> None:
    ask = instance.machine.calls.get(identity_of(letter.name))
    if isinstance(ask, Asked) and ask.is_answered_by(letter.id):
        teller.asked.pop(ask.id, None)  # the letter may be another one: of before a retry, or that a lock is granted
        teller.tell(instance, ask.verdict(letter.payload), ask.identity, letter.payload)
    else:
        teller.after(instance)  # it was given up


def _child_ended(teller: Teller, instance: Instance, letter: Mail) -> None:
    machine, found = instance.machine, _child_end(letter.payload)
    end = End(found.state, found.body)
    for child in [call for call in machine.calls.values() if isinstance(call, Child) and call.id == letter.name]:
        if instance.stopped or not machine.awaits(child):
            continue  # since the one before it was told
        given_up = child.id in machine.given_up
        if is_of_before(end, letter.time, machine.retried_at, given_up=given_up) and not child.is_let_go:
            teller.begin_child(instance, child)
        else:
            kind = EntryKind.CHILD_DONE if end.state == WorkflowState.COMPLETED else EntryKind.CHILD_FAILED
            teller.tell(instance, kind, child.identity, end.body)
    teller.after(instance)  # nobody may wait for it any more
