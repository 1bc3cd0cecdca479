CREATE TABLE orders_per_minute (
    minute BIGINT PRIMARY KEY,
    placed BIGINT NOT NULL
);

CREATE TABLE revenue_per_day (
    day   BIGINT PRIMARY KEY,
    cents BIGINT NOT NULL
);

CREATE TABLE outcomes_per_day (
    day       BIGINT PRIMARY KEY,
    confirmed BIGINT NOT NULL,
    cancelled BIGINT NOT NULL
);
