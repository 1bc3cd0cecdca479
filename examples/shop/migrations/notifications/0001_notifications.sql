CREATE TABLE sent (
    reference TEXT PRIMARY KEY,
    order_id  TEXT NOT NULL,
    channel   TEXT NOT NULL,
    text      TEXT NOT NULL
);

CREATE INDEX sent_by_order ON sent (order_id);
