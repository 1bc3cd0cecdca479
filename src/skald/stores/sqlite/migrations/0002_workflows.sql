-- compatible: 1
-- Workflows, and what each was told, in that order. A run is a UUIDv7, so that the rows of today stand together.
CREATE TABLE skald_workflows (
    run        TEXT PRIMARY KEY,
    id         TEXT NOT NULL,      -- the user's; several runs may have had it
    latest     INTEGER NOT NULL DEFAULT 1,   -- 1 for the last run of its id
    workflow   TEXT NOT NULL,
    style      TEXT,               -- of a saga; NULL for a workflow
    correlation TEXT,              -- of what it was started because of; NULL: its id
    state      TEXT NOT NULL,
    owner      TEXT,               -- the process that runs it
    deaths     INTEGER NOT NULL DEFAULT 0,   -- of processes that had it, since it last rested
    wake_at    INTEGER,            -- without an owner: when somebody should take it; NULL: when there is a letter
    parent     TEXT,               -- the run that called it
    key        TEXT,               -- by which others may address it
    input      BLOB NOT NULL,
    outcome    BLOB,               -- the result, the failure, or why it is paused
    started_at INTEGER NOT NULL,
    ended_at   INTEGER
) WITHOUT ROWID, STRICT;
CREATE UNIQUE INDEX skald_workflows_id ON skald_workflows (id) WHERE latest = 1;
CREATE INDEX skald_workflows_before ON skald_workflows (id, run) WHERE latest = 0;
CREATE INDEX skald_workflows_anew ON skald_workflows (id, run) WHERE latest = 0 AND state <> 'continued';
CREATE UNIQUE INDEX skald_workflows_key ON skald_workflows (key) WHERE key IS NOT NULL AND ended_at IS NULL;
CREATE INDEX skald_workflows_owner ON skald_workflows (owner, run) WHERE owner IS NOT NULL;
CREATE INDEX skald_workflows_due ON skald_workflows (wake_at) WHERE wake_at IS NOT NULL;
CREATE INDEX skald_workflows_parent ON skald_workflows (parent) WHERE parent IS NOT NULL;
CREATE INDEX skald_workflows_ended ON skald_workflows (ended_at) WHERE ended_at IS NOT NULL;

CREATE TABLE skald_journal (
    run        TEXT NOT NULL,
    position   INTEGER NOT NULL,
    kind       INTEGER NOT NULL,   -- see skald.unit.EntryKind
    name       TEXT NOT NULL,
    digest     BLOB NOT NULL,      -- of the arguments
    occurrence INTEGER NOT NULL,   -- among the calls of equal name and digest
    time       INTEGER NOT NULL,
    payload    BLOB,
    PRIMARY KEY (run, position)
) WITHOUT ROWID, STRICT;

-- What workflows are to be told and have not been told yet, those that have yet to be started included.
CREATE TABLE skald_letters (
    id         TEXT PRIMARY KEY,
    kind       INTEGER NOT NULL,   -- see skald.unit.LetterKind
    to_id      TEXT,               -- one of these three is whom it is for
    to_key     TEXT,
    to_run     TEXT,
    name       TEXT NOT NULL,
    payload    BLOB NOT NULL,
    time       INTEGER NOT NULL,
    taken      INTEGER NOT NULL DEFAULT 0,
    outcome    BLOB                -- the reply
) WITHOUT ROWID, STRICT;
CREATE INDEX skald_letters_id ON skald_letters (to_id) WHERE to_id IS NOT NULL AND taken = 0;
CREATE INDEX skald_letters_key ON skald_letters (to_key) WHERE to_key IS NOT NULL AND taken = 0;
CREATE INDEX skald_letters_run ON skald_letters (to_run) WHERE to_run IS NOT NULL AND taken = 0;
CREATE INDEX skald_letters_open ON skald_letters (to_run) WHERE taken = 2; -- calls that have no answer yet
CREATE INDEX skald_letters_locks ON skald_letters (kind, name) WHERE kind > 9;
CREATE UNIQUE INDEX skald_letters_holder ON skald_letters (name) WHERE kind = 12; -- one saga has a lock at a time
INSERT INTO skald_heads (key, version) VALUES ('locks', 0); -- taken by the process that decides who gets one

-- Locks, who has each (place 0) and who waits for it.
CREATE VIEW skald_locks AS
SELECT l.name AS key, CASE l.kind WHEN 12 THEN 'held' ELSE 'waits' END AS state,
       CASE l.kind WHEN 12 THEN 0
            ELSE row_number() OVER (PARTITION BY l.name, CASE l.kind WHEN 12 THEN 1 ELSE 0 END
                                    ORDER BY l.kind DESC, l.time, l.to_run) END AS place,
       w.id AS saga_id, w.workflow AS name, strftime('%Y-%m-%dT%H:%M:%fZ', l.time / 1e6, 'unixepoch') AS since, w.run
FROM skald_letters l JOIN skald_workflows w ON w.run = l.to_run AND w.ended_at IS NULL
WHERE l.kind > 9;

-- The sagas that this database owns, and the processes of its choreographies. Kinds of the journal: see
-- skald.unit.EntryKind; 10 is a change of status.
CREATE VIEW saga_state AS
SELECT s.id AS saga_id, s.workflow AS name, s.style,
       CASE WHEN s.ended_at IS NULL AND s.status IN ('NEEDS_ATTENTION', 'COMPENSATION_FAILED')
            THEN coalesce(json_extract(CAST(s.change AS TEXT), '$.step'), s.last_step)
            ELSE s.last_step END AS current_step,
       -- One that has failed, and not because it was compensated, is a defect: somebody should look.
       CASE WHEN s.state = 'completed' THEN 'COMPLETED' WHEN s.state = 'cancelled' THEN 'CANCELLED'
            WHEN s.state = 'terminated' THEN 'TERMINATED' WHEN s.state = 'paused' THEN 'NEEDS_ATTENTION'
            WHEN s.state = 'failed' AND coalesce(s.status, '') <> 'COMPENSATED' THEN 'NEEDS_ATTENTION'
            ELSE coalesce(s.status, 'IN_PROGRESS') END AS status,
       strftime('%Y-%m-%dT%H:%M:%fZ', s.started_at / 1e6, 'unixepoch') AS created_at,
       strftime('%Y-%m-%dT%H:%M:%fZ', coalesce(s.ended_at, s.last_time, s.started_at) / 1e6, 'unixepoch') AS updated_at,
       coalesce(s.ended_at / 1e6, unixepoch('subsec')) - s.started_at / 1e6 AS age_seconds,
       coalesce(s.correlation, s.id) AS correlation_id, s.key, s.run
FROM (
    SELECT w.*,
           (SELECT j.name FROM skald_journal j WHERE j.run = w.run AND j.kind = 10
            ORDER BY j.position DESC LIMIT 1) AS status,
           (SELECT j.payload FROM skald_journal j WHERE j.run = w.run AND j.kind = 10
            ORDER BY j.position DESC LIMIT 1) AS change,
           (SELECT j.name FROM skald_journal j WHERE j.run = w.run AND j.kind IN (0, 1, 3, 11, 12, 13)
            ORDER BY j.position DESC LIMIT 1) AS last_step,
           (SELECT j.time FROM skald_journal j WHERE j.run = w.run ORDER BY j.position DESC LIMIT 1) AS last_time
    FROM skald_workflows w WHERE w.style IS NOT NULL AND w.latest = 1
) s
UNION ALL
SELECT m.key, m.name, 'process', m.step, CASE m.state WHEN 'running' THEN 'IN_PROGRESS' ELSE 'COMPLETED' END,
       strftime('%Y-%m-%dT%H:%M:%fZ', m.created_at / 1e6, 'unixepoch'),
       strftime('%Y-%m-%dT%H:%M:%fZ', m.updated_at / 1e6, 'unixepoch'),
       CASE m.state WHEN 'running' THEN unixepoch('subsec') ELSE m.updated_at / 1e6 END - m.created_at / 1e6, m.correlation_id,
       m.key, NULL
FROM skald_marks m WHERE m.kind = 'process';
