"""What the bank tells: every movement of money, in the transaction that moves it. Amounts are in cents."""

from __future__ import annotations

from skald import Event


class AccountOpened(Event, key="account"):
    account: str
    balance: int


class AccountClosed(Event, key="account"):
    account: str


class TransferInitiated(Event, key="transfer"):
    transfer: str
    source: str
    target: str
    amount: int


class FundsDebited(Event, key="transfer"):
    transfer: str
    account: str
    amount: int


class FundsCredited(Event, key="transfer"):
    transfer: str
    account: str
    amount: int


class TransferCompleted(Event, key="transfer"):
    transfer: str


class DebitReversed(Event, key="transfer"):
    """The money is back where it came from."""

    transfer: str
    account: str
    amount: int


class TransferFailed(Event, key="transfer"):
    transfer: str
    reason: str
