CREATE TABLE charges (order_id text PRIMARY KEY, amount bigint NOT NULL);
