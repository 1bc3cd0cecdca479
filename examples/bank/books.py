"""The books: what the bank has told, added up event by event, with no look at its tables.

A second opinion. At every position the balances and what is in flight come to what was paid in, no balance is below
zero, and no transfer is debited, credited or reversed twice; at the end they are what the tables say.
"""

from __future__ import annotations

import msgspec

from examples.bank.messages import (
    AccountClosed,
    AccountOpened,
    DebitReversed,
    FundsCredited,
    FundsDebited,
    TransferCompleted,
    TransferFailed,
    TransferInitiated,
)

OfTransfer = TransferInitiated | FundsDebited | FundsCredited | TransferCompleted | DebitReversed | TransferFailed
Told = AccountOpened | AccountClosed | OfTransfer
_AFTER: dict[type, tuple[str | None, str]] = {
    TransferInitiated: (None, "INITIATED"),
    FundsDebited: ("INITIATED", "DEBITED"),
    FundsCredited: ("DEBITED", "CREDITED"),
    TransferCompleted: ("CREDITED", "COMPLETED"),
    DebitReversed: ("DEBITED", "INITIATED"),
    TransferFailed: ("INITIATED", "FAILED"),
}
"""In which state a transfer was, and which it is in then."""


class WrongBooks(Exception):
    """What was told cannot be true."""


class Books(msgspec.Struct):
    paid_in: int = 0
    balances: dict[str, int] = msgspec.field(default_factory=dict)
    in_flight: dict[str, int] = msgspec.field(default_factory=dict)
    """By transfer."""
    transfers: dict[str, str] = msgspec.field(default_factory=dict)
    """Their states."""

    def add(self, event: Told) -> None:
        if isinstance(event, AccountOpened):
            self.balances[event.account] = event.balance
            self.paid_in += event.balance
        elif isinstance(event, AccountClosed):
            if self.balances[event.account]:
                raise WrongBooks(f"{event.account} was closed with {self.balances[event.account]}")
        else:
            self._add_of_transfer(event)
        if sum(self.balances.values()) + sum(self.in_flight.values()) != self.paid_in:
            raise WrongBooks(f"after {event} they do not come to {self.paid_in}")

    def _add_of_transfer(self, event: OfTransfer) -> None:
        (before, after), id = _AFTER[type(event)], event.transfer
        if self.transfers.get(id) != before:
            raise WrongBooks(f"{event} of one that is {self.transfers.get(id)}")
        self.transfers[id] = after
        if isinstance(event, FundsDebited):
            self.in_flight[id] = event.amount
            self._book(event.account, -event.amount)
        elif isinstance(event, FundsCredited | DebitReversed):
            if self.in_flight.pop(id) != event.amount:
                raise WrongBooks(f"{event} is not what was debited")
            self._book(event.account, event.amount)

    def _book(self, account: str, amount: int) -> None:
        self.balances[account] += amount
        if self.balances[account] < 0:
            raise WrongBooks(f"{account} is at {self.balances[account]}")
