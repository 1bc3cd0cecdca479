CREATE TABLE shipments (
    order_id TEXT PRIMARY KEY,
    status   TEXT NOT NULL,
    label_id TEXT,
    reason   TEXT
);
