-- One row per effect. ``seq`` counts the rows of its key and handler that were there before: it equals ``n``, the
-- number of the message within its key, exactly if every effect happened once and in order.
CREATE TABLE effects (
    id      TEXT NOT NULL,
    handler TEXT NOT NULL,
    key     TEXT NOT NULL,
    n       BIGINT NOT NULL,
    seq     BIGINT NOT NULL
);
CREATE INDEX effects_key ON effects (handler, key);
