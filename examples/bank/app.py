"""The bank: ``skald run examples.bank.app:app --migrate``."""

from __future__ import annotations

from pathlib import Path

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
from examples.bank.transfer import transfer
from skald import App, Service

bank = Service(
    "bank",
    publishes=[
        AccountOpened, AccountClosed, TransferInitiated, FundsDebited, FundsCredited, TransferCompleted, DebitReversed,
        TransferFailed,
    ],
    workflows=[transfer],
    migrations=Path(__file__).with_name("migrations"),
)  # fmt: skip
app = App(bank)
