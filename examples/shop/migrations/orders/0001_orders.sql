CREATE TABLE orders (
    order_id     TEXT PRIMARY KEY,
    customer     TEXT NOT NULL,
    total        BIGINT NOT NULL,
    status       TEXT NOT NULL,
    reason       TEXT,
    label_id     TEXT,
    cancelling   BIGINT NOT NULL DEFAULT 0,
    handed_over  BIGINT NOT NULL DEFAULT 0,
    placed_at    BIGINT NOT NULL,
    confirmed_at BIGINT,
    payment      TEXT NOT NULL DEFAULT 'pending',
    payment_at   BIGINT,
    inventory    TEXT NOT NULL DEFAULT 'pending',
    inventory_at BIGINT,
    shipping     TEXT NOT NULL DEFAULT 'pending',
    shipping_at  BIGINT,
    revision     BIGINT NOT NULL DEFAULT 1
);

CREATE INDEX orders_by_customer ON orders (customer, order_id);

CREATE INDEX orders_pending ON orders (customer) WHERE status = 'PENDING';

CREATE TABLE prices (
    sku     TEXT PRIMARY KEY,
    name    TEXT NOT NULL,
    price   BIGINT NOT NULL,
    note    TEXT NOT NULL,
    version BIGINT NOT NULL
);
