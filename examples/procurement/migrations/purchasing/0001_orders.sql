-- In cents. What is committed is for orders that are open.
CREATE TABLE budgets (
    team      TEXT PRIMARY KEY,
    free      BIGINT NOT NULL CHECK (free >= 0),
    committed BIGINT NOT NULL CHECK (committed >= 0),
    spent     BIGINT NOT NULL CHECK (spent >= 0)
);

CREATE TABLE orders (
    id     TEXT PRIMARY KEY,
    team   TEXT NOT NULL,
    vendor TEXT NOT NULL,
    goods  TEXT NOT NULL,
    amount BIGINT NOT NULL CHECK (amount > 0),
    state  TEXT NOT NULL,
    reason TEXT
);

INSERT INTO budgets (team, free, committed, spent) VALUES ('office', 1000000, 0, 0);
