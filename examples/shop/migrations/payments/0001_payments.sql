CREATE TABLE payments (
    order_id  TEXT PRIMARY KEY,
    status    TEXT NOT NULL,
    amount    BIGINT NOT NULL,
    charge_id TEXT,
    refund_id TEXT,
    reason    TEXT
);
