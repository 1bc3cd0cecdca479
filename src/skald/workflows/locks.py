"""Locks in the database: decides for all that ask, in one transaction, and lets them be told.

Any process of the service does it, whenever it looks around and finds that there is something to decide: somebody asks,
or somebody waits for a lock whose holder has ended, however that came. So no wake-up hangs on a process or on a commit.
"""

from __future__ import annotations

from skald import failpoints
from skald.sql import blocks
from skald.store import Row, Store, Transaction
from skald.unit import AddressKind, Letter, LetterKind, Unit, WorkflowWrites
from skald.workflows.granting import Claim, decide
from skald.workflows.locking import Verdict, decode_request, encode, granted

_SQL = blocks("skald.workflows", "locks")
_HAS_IT = encode(Verdict())


async def settle(store: Store) -> bool:
    """Decides everything that can be decided now; false if another process is just doing it."""
    async with store.transaction() as tx:
        if not await tx.fetch(_SQL["turn"].replace("{for_update}", store.features.for_update)):
            return False
        now = await tx.now()
        made = decide([_claim(row) for row in await tx.fetch(_SQL["claims"])], now)
        for gone in made.gone:
            await tx.execute(_SQL["drop"], ticket=gone.ticket)
        for claim, place in made.queued:
            await tx.execute(_SQL["queue"], ticket=claim.ticket, time=place)
        for claim, verdict in made.told:
            await tx.execute(_SQL["answer"], ticket=claim.ticket, call=claim.call, answer=encode(verdict))
        letters = [letter for claim in made.granted if (letter := await _grant(tx, claim, now)) is not None]
        if letters:
            await tx.apply(Unit(workflows=WorkflowWrites(letters=tuple(letters))))
        failpoints.hit("locks.settling")
    failpoints.hit("locks.settled")
    if made.told:
        store.workflows.ring()
    return True


async def _grant(tx: Transaction, claim: Claim, now: int) -> Letter | None:
    """What the saga is told; ``None`` if it waits no more."""
    if not await tx.execute(_SQL["grant"], ticket=claim.ticket, now=now):
        return None
    return Letter(granted(claim.ticket), LetterKind.ANSWER, AddressKind.RUN, claim.run, claim.call, _HAS_IT, now)


def _claim(row: Row) -> Claim:
    request = decode_request(row.pop("payload"))
    known = {"kind": LetterKind(row["kind"]), "open": bool(row["open"])}
    return Claim(**{**row, **known}, call=request.call, conflict=request.conflict)
