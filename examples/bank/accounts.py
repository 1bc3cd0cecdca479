"""The accounts: opened, closed and looked at by whoever holds a connected service."""

from __future__ import annotations

import msgspec

from examples.bank.messages import AccountClosed, AccountOpened
from skald import Service


class NotPossible(Exception):
    """There is such an account already, or none, or it is still in use."""


class Standing(msgspec.Struct, frozen=True):
    """All accounts at one moment, in cents. What the two come to together never changes by transfers."""

    balances: dict[str, int]
    in_flight: int

    @property
    def total(self) -> int:
        return sum(self.balances.values()) + self.in_flight


async def open_account(bank: Service, account: str, balance: int = 0) -> None:
    async with bank.transaction() as tx:
        new = await tx.execute(
            "INSERT INTO accounts (id, balance, is_open) VALUES (:id, :balance, 1) ON CONFLICT DO NOTHING",
            id=account, balance=balance,
        )  # fmt: skip
        if not new:
            raise NotPossible(f"there is an account {account!r} already")
        tx.publish(AccountOpened(account, balance))


async def close_account(bank: Service, account: str) -> None:
    """If it is empty, and nothing of it is in flight that may come back."""
    async with bank.transaction() as tx:
        # Before it is looked at: nobody debits it any more until this transaction ends.
        if not await tx.execute("UPDATE accounts SET is_open = 0 WHERE id = :id AND is_open = 1", id=account):
            raise NotPossible(f"there is no open account {account!r}")
        [found] = await tx.fetch(
            "SELECT balance, (SELECT count(*) FROM transfers WHERE source = :id AND state = 'DEBITED') AS moving"
            " FROM accounts WHERE id = :id",
            id=account,
        )
        if found["balance"] or found["moving"]:
            raise NotPossible(f"{account!r} has {found['balance']} and {found['moving']} transfers in flight")
        tx.publish(AccountClosed(account))


async def standing(bank: Service) -> Standing:
    """In one statement, so that it is one moment, whatever is transferred meanwhile."""
    rows = await bank.fetch(
        "SELECT id, balance FROM accounts"
        " UNION ALL SELECT NULL, CAST(coalesce(sum(amount), 0) AS BIGINT) FROM transfers WHERE state = 'DEBITED'"
    )
    balances = {row["id"]: row["balance"] for row in rows if row["id"] is not None}
    return Standing(balances, sum(row["balance"] for row in rows if row["id"] is None))
