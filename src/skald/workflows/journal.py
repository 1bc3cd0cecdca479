"""What is read of workflows, and what is written besides units: claims, timers that fire, and what operators do."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from skald import failpoints
from skald.errors import StoreError, WorkflowBusy, WorkflowKeyTaken, WorkflowUnknown
from skald.messaging.calls import decode_answer
from skald.sql import blocks
from skald.store import Row, Store, Transaction
from skald.unit import EntryKind, JournalEntry, LetterKind, Unit, WorkflowState
from skald.workflows.definition import Workflow
from skald.workflows.failure import BY_CALLER, End, Failure, decode_failure
from skald.workflows.forgetting import Forgotten
from skald.workflows.signature import identity_of

_HEARS = (
    "(w.state = 'running' OR l.kind = 3 OR (l.kind = 2 AND l.name = '' AND w.state = 'scheduled' AND w.parent IS NULL))"
)
"""A termination is heard in any state. A cancellation also by one that has not begun, but for a child, which the retry
of its parent may want to keep; and not one that is for the child of another (which it names)."""
_IS_CONTINUED = """f.state = 'continued' AND NOT EXISTS (SELECT 1 FROM skald_workflows other
    WHERE other.id = f.id AND other.latest = 0 AND other.state <> 'continued' AND other.run > f.run)"""
"""By the last run of its id, with any number of runs in between."""
SQL = {
    name: text.replace("{hears}", _HEARS).replace("{is_continued}", _IS_CONTINUED)
    for name, text in blocks("skald.workflows", "workflows").items()
}
SIZES = (1, 10, 50, 200)
"""Of the lists of runs whose journals are read at once."""
OPEN = (WorkflowState.SCHEDULED, WorkflowState.RUNNING, WorkflowState.PAUSED)


class Mail(msgspec.Struct, frozen=True):
    """A letter as its receiver reads it."""

    id: str
    kind: LetterKind
    name: str
    payload: bytes
    time: int


SUSPICIOUS = 2
"""Processes that have ended while they had a workflow: see ``suspects``."""


class Open(msgspec.Struct, frozen=True):
    """A workflow that has not ended."""

    run: str
    id: str
    workflow: str
    parent: str | None
    input: bytes
    started_at: int
    history: tuple[JournalEntry, ...] = ()
    first: bool = False
    """Nobody has run it before."""
    key: str | None = None
    deaths: int = 0
    """See ``suspects``."""
    correlation: str | None = None


class Known(msgspec.Struct, frozen=True):
    """A workflow that was started, by its id."""

    run: str
    id: str
    workflow: str
    state: WorkflowState
    owner: str | None
    parent: str | None
    input: bytes
    outcome: bytes | None
    started_at: int
    ended_at: int | None = None
    style: str | None = None

    @property
    def end(self) -> End | None:
        return None if self.state in OPEN else End(self.state, self.outcome or b"")


def _sql(store: Store, name: str) -> str:
    return SQL[name].replace("{for_update}", store.features.for_update)


def _text(value: object) -> str | None:
    return None if value is None else str(value)


async def by_id(store: Store, id: str) -> Known | None:
    """The last run of an id."""
    return _known(await store.fetch(SQL["by_id"], id=id))


async def by_run(store: Store, run: str) -> Known | None:
    return _known(await store.fetch(SQL["by_run"], run=run))


def _known(rows: list[Row]) -> Known | None:
    if not rows:
        return None
    row = rows[0]
    fixed = {"run": str(row["run"]), "parent": _text(row["parent"]), "state": WorkflowState(row["state"])}
    return Known(**{**row, **fixed})


async def open_children(store: Store, run: str) -> list[str]:
    """By id: those that a run has started, and that have not ended."""
    return [row["id"] for row in await store.fetch(SQL["open_children"], run=run)]


async def poll(store: Store) -> tuple[int | None, bool, bool, int | None]:
    """When the next workflow without an owner is due, whether there are any letters, and locks to be decided on; and
    when the next one is due that is not so at once."""
    [row] = await store.fetch(SQL["poll"])
    return row["wake_at"], bool(row["letters"]), bool(row["locks"]), row["timer"]


async def fire(store: Store, owner: str, most: int) -> int:
    """Journals that timers of workflows without an owner are due, by the database's clock; these can be claimed then.
    Returns how many."""
    token = -1 - secrets.randbits(60)
    async with store.transaction() as tx:
        await tx.apply(Unit(fence=owner))
        now = await tx.now()
        fired = await tx.execute(_sql(store, "fire"), token=token, now=now, most=most)
        if fired:
            await tx.execute(SQL["fired"], token=token, now=now, none=b"")
        failpoints.hit("workflows.firing")
    return fired


async def asleep(store: Store) -> bool:
    """Whether there are letters for workflows that nobody owns."""
    return bool(await store.fetch(SQL["asleep"]))


async def wake(store: Store, owner: str) -> bool:
    """Makes workflows without an owner for which there are letters claimable; false if there are none."""
    if not await asleep(store):
        return False
    async with store.transaction() as tx:
        await tx.apply(Unit(fence=owner))
        for name in ("wake_runs", "wake_ids", "wake_keys"):
            await tx.execute(_sql(store, name))
    return True


async def claim(store: Store, owner: str, names: Iterable[str], most: int) -> list[Open]:
    """Takes workflows of these names that nobody owns, and any that is to be terminated, with their histories. Raises
    ``Fenced`` if this process has lost its own."""
    async with store.transaction() as tx:
        await tx.apply(Unit(fence=owner))
        now = await tx.now()
        known = f",{','.join(names)},"
        rows = await tx.fetch(_sql(store, "claim"), owner=owner, most=most, now=now, names=known, suspicious=SUSPICIOUS)
        failpoints.hit("workflows.claiming")
    failpoints.hit("workflows.claimed")
    return await _with_histories(store, [{**row, "first": row["started_at"] == now} for row in rows])


async def owned(store: Store, owner: str) -> set[str]:
    """Runs that this process owns."""
    return {str(row["run"]) for row in await store.fetch(SQL["owned"], owner=owner)}


async def was_started_with(store: Store, id: str, workflow: Workflow[..., Any], given: bytes) -> bool:
    """Whether the last run of this id was, or one that it continues."""
    if await store.fetch(SQL["started_with"], id=id, workflow=workflow.name, input=given):
        return True
    if not workflow.signature.has_defaults:
        return False
    # By code that had other parameters, or other defaults.
    rows = await store.fetch(SQL["inputs"], id=id, workflow=workflow.name)
    return any(workflow.signature.agrees(given, row["input"]) for row in rows)


async def mine(store: Store, owner: str, runs: Iterable[str]) -> list[Open]:
    """Those of the runs that this process owns and that have not ended."""
    rows = [row for run in runs for row in await store.fetch(SQL["mine"], run=run, owner=owner)]
    return await _with_histories(store, rows)


async def letters(store: Store, owner: str) -> dict[str, list[Mail]]:
    """By run: what this process's workflows have not been told yet, in order."""
    found: dict[str, list[Mail]] = {}
    for row in await store.fetch(SQL["letters"], owner=owner):
        mail = Mail(row["id"], LetterKind(row["kind"]), row["name"], row["payload"], row["time"])
        found.setdefault(str(row["run"]), []).append(mail)
    return found


async def open_calls(store: Store, runs: Sequence[str]) -> frozenset[str]:
    """The commands that these runs have called, and that have no answer yet. To be read before the letters, for they
    become such."""
    if not runs:
        return frozenset()
    places = _places(runs)
    sql = SQL["open_calls"].replace("{runs}", ", ".join(f":{place}" for place in places))
    return frozenset([row["id"] for row in await store.fetch(sql, **places)])


async def history(store: Store, run: str) -> tuple[JournalEntry, ...]:
    return tuple(_entry(row) for row in await store.fetch(SQL["journal"], run=run))


def _places(runs: Sequence[str]) -> dict[str, str]:
    """One of a few sizes, filled up with the last run, so that there are only a few statements to prepare."""
    size = next((size for size in SIZES if size >= len(runs)), len(runs))
    return {f"r{n}": runs[min(n, len(runs) - 1)] for n in range(size)}


async def _with_histories(store: Store, rows: list[Row]) -> list[Open]:
    if not rows:
        return []
    histories: dict[str, list[JournalEntry]] = {str(row["run"]): [] for row in rows}
    places = _places(list(histories))
    sql = SQL["journals"].replace("{runs}", ", ".join(f":{place}" for place in places))
    for row in await store.fetch(sql, **places):
        histories[str(row["run"])].append(_entry(row))
    return [
        Open(
            **{**row, "run": run, "parent": _text(row["parent"]), "deaths": abs(row["deaths"])},
            history=tuple(histories[run]),
        )
        for row in rows
        for run in [str(row["run"])]
    ]


def _entry(row: Row) -> JournalEntry:
    return JournalEntry(**{**row, "run": str(row["run"]), "kind": EntryKind(row["kind"])})


# --- by operators -----------------------------------------------------------------------------------------------------


async def resume(store: Store, id: str) -> None:
    """Lets a paused workflow go on."""
    async with store.transaction() as tx:
        if await tx.execute(SQL["resume"], id=id):
            # Somebody may have asked for its pause twice.
            await tx.execute(SQL["drop_pauses"], id=id)
            return
    await _refuse(store, id, "paused")


async def retry(store: Store, id: str) -> None:
    """Reopens a failed workflow: the step, child or call that it failed because of is forgotten, and is run again; what
    becomes of children ``children`` says. What came after it stays where it is, and a replay passes over that part of
    it which nobody waits for without the failure. A call that had no answer in time is waited for anew. Where its own
    code has failed, the same history is replayed on what may be other code. A saga is undone by then, and cannot go
    on."""
    known = await by_id(store, id)
    if known is not None and known.style is not None and known.state == WorkflowState.FAILED:
        raise WorkflowBusy(f"saga {id!r} was compensated, and has nothing left to go on with: start it again")
    if known is not None:
        try:
            async with store.transaction() as tx:
                if await reopen(tx, known):
                    return
        except StoreError:
            async with store.transaction() as tx:
                await _ensure_key(tx, known)  # it may have been taken in the same moment
            raise
    await _refuse(store, id, "failed")


async def _ensure_key(tx: Transaction, known: Known) -> None:
    for row in await tx.fetch(SQL["key_holder"], run=known.run, ended_at=known.ended_at):
        raise WorkflowKeyTaken(row["key"], row["id"])


async def reopen(tx: Transaction, known: Known) -> bool:
    """``retry``, unless something has become of it since it was looked at. Raises ``WorkflowKeyTaken``, or the
    database's own error if the key is taken in the same moment."""
    await _ensure_key(tx, known)
    if not await tx.execute(SQL["reopen"], run=known.run, ended_at=known.ended_at):
        return False
    [row] = await tx.fetch(SQL["last_position"], run=known.run)
    now, last = max(await tx.now(), known.ended_at or 0), row["last"] or 0
    failure = decode_failure(known.outcome) if known.outcome else None
    failed = _entry_of(failure, await tx.fetch(SQL["failures"], run=known.run))
    if failed is not None:
        forgotten = Forgotten(last, now, digest=failed["digest"])
        given = {"position": failed["position"], "forgotten": forgotten.encode()}
        await tx.execute(SQL["forget_failure"], run=known.run, **given)
    else:
        name, occurrence, forgotten = "", 0, Forgotten(0, now)
        if failure is not None and failure.unanswered is not None:
            name, digest, occurrence = identity_of(failure.unanswered)
            forgotten = Forgotten(last, now, failure.entry or 0, digest)
        given = {"position": last + 1, "name": name, "occurrence": occurrence, "forgotten": forgotten.encode()}
        await tx.execute(SQL["note_retry"], run=known.run, now=now, **given)
    failpoints.hit("workflows.retrying")
    await tx.execute(SQL["forget_told"], id=known.id)  # by whoever did not know yet that it had failed
    return True


def _entry_of(failure: Failure | None, failures: list[Row]) -> Row | None:
    """That of what a workflow has failed because of; nothing, if that was its own code, or that time has passed."""
    if failure is None or failure.unanswered is not None:
        return None
    for row in failures:
        if row["position"] == failure.entry or (failure.entry is None and _is_that(failure, row)):
            return row
    return None


def _is_that(failure: Failure, row: Row) -> bool:
    """As far as one can see: older code wrote no more."""
    if row["kind"] == EntryKind.CALL_REJECTED:
        return decode_answer(row["payload"]).type == failure.type
    found = decode_failure(row["payload"])
    return (found.type, found.message) == (failure.type, failure.message)


async def is_last(tx: Transaction, store: Store, known: Known) -> bool:
    """Whether it is still so: the last run of its id, and ended. Nobody changes that before the transaction ends."""
    return bool(await tx.fetch(_sql(store, "last_run"), run=known.run, ended_at=known.ended_at))


async def keep(store: Store, id: str, retried_at: int) -> None:
    """Withdraws the cancellations that a workflow has asked for, of its own child, before it was retried."""
    which = {"id": id, "reason": BY_CALLER.encode(), "retried_at": retried_at}
    if await store.fetch(SQL["cancels"], **which):
        async with store.transaction() as tx:
            await tx.execute(SQL["withdraw"], **which)


async def _refuse(store: Store, id: str, wanted: str) -> None:
    known = await by_id(store, id)
    if known is None:
        raise WorkflowUnknown(f"no workflow with the id {id!r} was started")
    if known.state != wanted:  # otherwise somebody was quicker, and did the same
        raise WorkflowBusy(f"workflow {id!r} is {known.state.value}, and not {wanted}")


async def prune(store: Store, now: int, before: int, most: int) -> int:
    """Deletes workflows that ended before a time (microseconds), about so many; returns how many. Of one that goes on
    as new the first run stays as long as the last one, without its journal and as if it had ended now: it knows with
    what the id was started."""
    token = -1 - secrets.randbits(60)
    async with store.transaction() as tx:
        chosen = await tx.execute(_sql(store, "choose"), token=token, before=before, most=most)
        if chosen:
            await tx.execute(SQL["choose_before"], token=token)
            await tx.execute(SQL["prune_journal"], token=token)
            await tx.execute(SQL["spare_first"], token=token, before=before, now=now)
            await tx.execute(SQL["prune_told"], token=token)
            await tx.execute(SQL["prune_kept"], token=token)
            await tx.execute(SQL["prune_places"], token=token)
            await tx.execute(SQL["prune"], token=token)
    return chosen


async def prune_letters(store: Store, before: int, long_before: int) -> int:
    """Deletes letters older than ``before`` that nobody can receive any more, and all that are older than
    ``long_before``. What a workflow needs that may be retried goes with its row."""
    async with store.transaction() as tx:
        return await tx.execute(SQL["prune_letters"], before=before, long_before=long_before)
