"""The saga: INITIATED → DEBITED → CREDITED → COMPLETED, or FAILED, with the debit given back.

Every step is transactional: the rows that it changes, the event that tells of it, and the result that the saga goes on
with are one commit. So money moves exactly once, whatever crashes, and what is in flight is a row like any other. Once
it is credited there is no way back: the rest is tried until it is done.

Each transaction writes to one account at most, so that no two transfers ever wait for each other in a circle.
"""

from __future__ import annotations

import msgspec

from examples.bank.messages import (
    DebitReversed,
    FundsCredited,
    FundsDebited,
    TransferCompleted,
    TransferFailed,
    TransferInitiated,
)
from skald import NEVER, Backoff, FailedExecution, Transaction, compensation, saga, step, workflows
from skald.retry import Policy


class Refused(Exception):
    """The bank will not do it, however often it is asked."""


PATIENTLY: Policy = {Refused: NEVER, "*": Backoff(first=0.1, longest=60, attempts=20)}


class Transfer(msgspec.Struct, frozen=True):
    id: str
    source: str
    target: str
    amount: int
    """In cents."""


# --- what undoes steps ------------------------------------------------------------------------------------------------


@compensation(guarantee="exactly_once", transactional=True, retry=PATIENTLY)
async def reverse(order: Transfer) -> None:
    """Also to an account that was closed: the money is its owner's."""
    tx = workflows.transaction()
    await _add(tx, order.source, order.amount)
    await _move(tx, order, "DEBITED", "INITIATED")
    tx.publish(DebitReversed(order.id, order.source, order.amount))


@compensation(guarantee="exactly_once", transactional=True, retry=PATIENTLY)
async def fail(order: Transfer, failed: FailedExecution) -> None:
    tx = workflows.transaction()
    await _move(tx, order, "INITIATED", "FAILED", failed.message)
    await _tell(tx, order, order.source, f"{order.amount} to {order.target} were not transferred: {failed.message}")
    tx.publish(TransferFailed(order.id, failed.message))


# --- the steps --------------------------------------------------------------------------------------------------------


@step(transactional=True, retry=PATIENTLY, compensate=fail)
async def initiate(order: Transfer) -> None:
    if order.amount <= 0 or order.source == order.target:
        raise Refused(f"{order.amount} from {order.source} to {order.target}: more than nothing, to somebody else")
    tx = workflows.transaction()
    new = await tx.execute(
        "INSERT INTO transfers (id, source, target, amount, state)"
        " VALUES (:id, :source, :target, :amount, 'INITIATED') ON CONFLICT DO NOTHING",
        id=order.id, source=order.source, target=order.target, amount=order.amount,
    )  # fmt: skip
    if not new:
        raise Refused(f"there is a transfer {order.id!r} already")
    tx.publish(TransferInitiated(order.id, order.source, order.target, order.amount))


@step(transactional=True, retry=PATIENTLY, compensate=reverse)
async def debit(order: Transfer) -> None:
    tx = workflows.transaction()
    debited = await tx.execute(
        "UPDATE accounts SET balance = balance - :amount WHERE id = :id AND is_open = 1 AND balance >= :amount",
        id=order.source, amount=order.amount,
    )  # fmt: skip
    if not debited:
        raise Refused(f"{order.source} does not have {order.amount}")
    await _move(tx, order, "INITIATED", "DEBITED")
    tx.publish(FundsDebited(order.id, order.source, order.amount))


@step(transactional=True, retry=PATIENTLY, pivot=True)
async def credit(order: Transfer) -> None:
    tx = workflows.transaction()
    if not await _add(tx, order.target, order.amount, only_open=True):
        raise Refused(f"{order.target} takes no money")
    await _move(tx, order, "DEBITED", "CREDITED")
    tx.publish(FundsCredited(order.id, order.target, order.amount))


@step(transactional=True, forward=True)
async def complete(order: Transfer) -> None:
    tx = workflows.transaction()
    await _move(tx, order, "CREDITED", "COMPLETED")
    await _tell(tx, order, order.source, f"{order.amount} were transferred to {order.target}")
    await _tell(tx, order, order.target, f"{order.amount} came from {order.source}")
    tx.publish(TransferCompleted(order.id))


async def _add(tx: Transaction, account: str, amount: int, only_open: bool = False) -> int:
    also = " AND is_open = 1" if only_open else ""
    return await tx.execute(
        f"UPDATE accounts SET balance = balance + :amount WHERE id = :id{also}", id=account, amount=amount
    )


async def _move(tx: Transaction, order: Transfer, before: str, after: str, reason: str | None = None) -> None:
    moved = await tx.execute(
        "UPDATE transfers SET state = :after, reason = :reason WHERE id = :id AND state = :before",
        id=order.id, before=before, after=after, reason=reason,
    )  # fmt: skip
    if not moved:
        raise Refused(f"{order.id} is not {before}")


async def _tell(tx: Transaction, order: Transfer, account: str, text: str) -> None:
    await tx.execute(
        "INSERT INTO notices (transfer, account, text) VALUES (:transfer, :account, :text)",
        transfer=order.id, account=account, text=text,
    )  # fmt: skip


# --- the saga ---------------------------------------------------------------------------------------------------------


@saga
async def transfer(order: Transfer) -> None:
    await initiate(order)
    await debit(order)
    await credit(order)
    await complete(order)
