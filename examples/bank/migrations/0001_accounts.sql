-- In cents. The check is the rule; that a debit asks first only makes a better error of it.
CREATE TABLE accounts (
    id      TEXT PRIMARY KEY,
    balance BIGINT NOT NULL CHECK (balance >= 0),
    is_open BIGINT NOT NULL
);

-- INITIATED, DEBITED, CREDITED, COMPLETED, or FAILED. What is DEBITED is in flight: it is on neither account.
CREATE TABLE transfers (
    id     TEXT PRIMARY KEY,
    source TEXT NOT NULL,
    target TEXT NOT NULL,
    amount BIGINT NOT NULL CHECK (amount > 0),
    state  TEXT NOT NULL,
    reason TEXT
);
CREATE INDEX transfers_in_flight ON transfers (source) WHERE state = 'DEBITED';

CREATE TABLE notices (
    transfer TEXT NOT NULL,
    account  TEXT NOT NULL,
    text     TEXT NOT NULL,
    PRIMARY KEY (transfer, account)
);
