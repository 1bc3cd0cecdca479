CREATE TABLE arrivals (
    order_id TEXT PRIMARY KEY,
    vendor   TEXT NOT NULL,
    goods    TEXT NOT NULL,
    state    TEXT NOT NULL
);
