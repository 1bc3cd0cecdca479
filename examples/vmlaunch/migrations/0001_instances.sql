CREATE TABLE instances (
    id     TEXT PRIMARY KEY,
    owner  TEXT NOT NULL,
    state  TEXT NOT NULL,
    charge BIGINT NOT NULL   -- in cents: for a failed one, what it has used by then
);

CREATE TABLE notices (
    instance TEXT PRIMARY KEY,
    text     TEXT NOT NULL
);
