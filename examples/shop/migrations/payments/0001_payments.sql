CREATE TABLE payments (
    order_id  TEXT PRIMARY KEY,
    status    TEXT NOT NULL,
    amount    BIGINT NOT NULL,
    charge_id TEXT,
    refund_id TEXT,
    reason    TEXT
);

CREATE TABLE tasks (
    order_id   TEXT PRIMARY KEY,
    status     TEXT NOT NULL,
    what       TEXT NOT NULL,
    error      TEXT NOT NULL,
    message_id TEXT NOT NULL,
    opened_at  BIGINT NOT NULL
);
