-- The log: facts, which are kept, and messages (commands, replies), which are dropped below the slowest cursor.
-- They share one sequence of positions, so that one integer is a cursor; it is a row, because the highest position
-- in the tables falls back when retention deletes the end of the log.
CREATE TABLE skald_sequence (one INTEGER PRIMARY KEY CHECK (one = 1), position INTEGER NOT NULL) STRICT;
INSERT INTO skald_sequence VALUES (1, 0);

-- 'floor': retention has deleted positions at or below it.
CREATE TABLE skald_meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID, STRICT;
INSERT INTO skald_meta VALUES ('floor', '0');

CREATE TABLE skald_events (
    position       INTEGER PRIMARY KEY,
    id             TEXT NOT NULL,
    aggregatetype  TEXT NOT NULL,   -- the topic
    aggregateid    TEXT NOT NULL,   -- the key
    slot           INTEGER NOT NULL,
    type           TEXT NOT NULL,
    version        INTEGER NOT NULL,
    time           INTEGER NOT NULL,
    correlation_id TEXT NOT NULL,
    causation_id   TEXT,
    traceparent    TEXT,
    payload        BLOB NOT NULL,
    stream         TEXT,
    stream_version INTEGER
) STRICT;
CREATE UNIQUE INDEX skald_events_stream ON skald_events (stream, stream_version) WHERE stream IS NOT NULL;

CREATE TABLE skald_messages (
    position       INTEGER PRIMARY KEY,
    id             TEXT NOT NULL,
    aggregatetype  TEXT NOT NULL,
    aggregateid    TEXT NOT NULL,
    slot           INTEGER NOT NULL,
    type           TEXT NOT NULL,
    version        INTEGER NOT NULL,
    time           INTEGER NOT NULL,
    correlation_id TEXT NOT NULL,
    causation_id   TEXT,
    traceparent    TEXT,
    payload        BLOB NOT NULL,
    priority       INTEGER NOT NULL DEFAULT 0,
    delay          INTEGER NOT NULL DEFAULT 0
) STRICT;

-- Versions of streams ('stream:…') and tags ('tag:…'): the rows that guards compare and lock.
CREATE TABLE skald_heads (key TEXT PRIMARY KEY, version INTEGER NOT NULL) WITHOUT ROWID, STRICT;

-- A process may write as an owner as long as its row is here; a takeover deletes it.
CREATE TABLE skald_fences (process TEXT PRIMARY KEY) WITHOUT ROWID, STRICT;

-- The inbox: how far this service has handled each lane of each origin.
CREATE TABLE skald_cursors (
    group_name TEXT NOT NULL,
    origin     TEXT NOT NULL,
    lane       INTEGER NOT NULL,
    position   INTEGER NOT NULL,
    message_id TEXT,               -- of the message at that position; NULL at position 0
    version    INTEGER NOT NULL DEFAULT 0,   -- raised whenever the lane is changed by anyone but its own run
    owner      TEXT,
    takeovers  INTEGER NOT NULL DEFAULT 0,   -- without progress since
    stopped    TEXT,               -- why the lane does not run (a fork), or NULL
    PRIMARY KEY (group_name, origin, lane)
) WITHOUT ROWID, STRICT;

-- Messages taken over but not finished: delayed, waiting behind one, running long, parked, queued.
CREATE TABLE skald_deliveries (
    group_name     TEXT NOT NULL,
    handler        TEXT NOT NULL,
    origin         TEXT NOT NULL,
    position       INTEGER NOT NULL,
    lane           INTEGER NOT NULL,
    state          TEXT NOT NULL,
    attempts       INTEGER NOT NULL,
    due            INTEGER NOT NULL,
    error          TEXT,
    owner          TEXT,
    id             TEXT NOT NULL,
    aggregatetype  TEXT NOT NULL,
    aggregateid    TEXT NOT NULL,
    slot           INTEGER NOT NULL,
    type           TEXT NOT NULL,
    version        INTEGER NOT NULL,
    time           INTEGER NOT NULL,
    correlation_id TEXT NOT NULL,
    causation_id   TEXT,
    traceparent    TEXT,
    payload        BLOB NOT NULL,
    priority       INTEGER NOT NULL,
    delay          INTEGER NOT NULL,
    PRIMARY KEY (group_name, handler, origin, position)
) STRICT;
CREATE INDEX skald_deliveries_lane ON skald_deliveries (group_name, origin, lane, state);
CREATE INDEX skald_deliveries_queue ON skald_deliveries (group_name, handler, priority DESC, due)
    WHERE state = 'queued';

-- What is remembered of keys: facts that were handled ('once'), what handlers did that can be undone ('effect'), the
-- states of processes ('process').
CREATE TABLE skald_marks (
    kind           TEXT NOT NULL,
    name           TEXT NOT NULL,   -- of the handler or the process
    key            TEXT NOT NULL,
    version        INTEGER NOT NULL,
    state          TEXT NOT NULL,
    step           TEXT,            -- where a process is
    payload        BLOB NOT NULL,
    correlation_id TEXT,
    created_at     INTEGER NOT NULL,
    updated_at     INTEGER NOT NULL,
    PRIMARY KEY (kind, name, key)
) WITHOUT ROWID, STRICT;

-- What was done for a key, undone, or cancelled before it came; and the ids of messages that were refused for it.
CREATE VIEW skald_effects AS
SELECT name AS handler, key, state, json_extract(CAST(payload AS TEXT), '$.refused') AS refused, created_at, updated_at
FROM skald_marks WHERE kind = 'effect';

-- Answers of the HTTP face, by idempotency key, written with the effect.
CREATE TABLE skald_idempotency (
    scope      TEXT NOT NULL,
    key        TEXT NOT NULL,
    body_hash  TEXT NOT NULL,
    answer     BLOB NOT NULL,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (scope, key)
) WITHOUT ROWID, STRICT;

-- What was appended, readable by people.
CREATE VIEW skald_log AS
SELECT position, id, aggregatetype, aggregateid, slot, type, version, time, correlation_id, causation_id, traceparent,
       payload, stream, stream_version, 0 AS priority, 0 AS delay
FROM skald_events
UNION ALL
SELECT position, id, aggregatetype, aggregateid, slot, type, version, time, correlation_id, causation_id, traceparent,
       payload, NULL, NULL, priority, delay
FROM skald_messages;
