CREATE TABLE shipments (
    order_id TEXT PRIMARY KEY,
    status   TEXT NOT NULL,
    label_id TEXT,
    reason   TEXT
);

CREATE TABLE pickups (
    order_id TEXT PRIMARY KEY,
    carrier  TEXT NOT NULL,
    round    BIGINT NOT NULL
);
