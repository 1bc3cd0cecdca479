CREATE TABLE items (
    sku       TEXT PRIMARY KEY,
    name      TEXT NOT NULL,
    price     BIGINT NOT NULL,
    note      TEXT NOT NULL,
    version   BIGINT NOT NULL,
    received  BIGINT NOT NULL,
    available BIGINT NOT NULL CHECK (available >= 0)
);

CREATE TABLE reservations (
    order_id TEXT PRIMARY KEY,
    status   TEXT NOT NULL
);

CREATE TABLE reserved_items (
    order_id TEXT NOT NULL,
    sku      TEXT NOT NULL,
    quantity BIGINT NOT NULL,
    PRIMARY KEY (order_id, sku)
);

CREATE TABLE pick_lists (
    order_id TEXT PRIMARY KEY,
    lines    TEXT NOT NULL
);
