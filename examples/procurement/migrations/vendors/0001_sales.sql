CREATE TABLE sales (
    order_id TEXT PRIMARY KEY,
    vendor   TEXT NOT NULL,
    goods    TEXT NOT NULL,
    state    TEXT NOT NULL
);

CREATE TABLE scores (
    vendor    TEXT PRIMARY KEY,
    delivered BIGINT NOT NULL,
    returned  BIGINT NOT NULL
);
