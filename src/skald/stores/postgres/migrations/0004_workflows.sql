-- compatible: 1
-- Workflows, and what each was told, in that order. A run is a UUIDv7, so that the rows of today stand together.
-- Fixed widths first, so that there are no gaps between them, and what the end of a run changes last, so that its WAL
-- need not repeat what comes before.
CREATE TABLE skald_workflows (
    run        uuid PRIMARY KEY,
    started_at bigint NOT NULL,
    latest     smallint NOT NULL DEFAULT 1, -- 1 for the last run of its id
    deaths     smallint NOT NULL DEFAULT 0, -- of processes that had it, since it last rested
    id         text COLLATE "C" NOT NULL,   -- the user's; several runs may have had it
    workflow   text COLLATE "C" NOT NULL,
    style      text,               -- of a saga; NULL for a workflow
    correlation text,              -- of what it was started because of; NULL: its id
    parent     uuid,               -- the run that called it
    key        text COLLATE "C",   -- by which others may address it
    input      bytea NOT NULL,
    wake_at    bigint,             -- without an owner: when somebody should take it; NULL: when there is a letter
    ended_at   bigint,
    state      text NOT NULL,
    owner      text COLLATE "C",   -- the process that runs it
    outcome    bytea               -- the result, the failure, or why it is paused
);
CREATE UNIQUE INDEX skald_workflows_id ON skald_workflows (id) WHERE latest = 1;
CREATE INDEX skald_workflows_before ON skald_workflows (id, run) WHERE latest = 0;
CREATE INDEX skald_workflows_anew ON skald_workflows (id, run) WHERE latest = 0 AND state <> 'continued';
CREATE UNIQUE INDEX skald_workflows_key ON skald_workflows (key) WHERE key IS NOT NULL AND ended_at IS NULL;
CREATE INDEX skald_workflows_owner ON skald_workflows (owner, run) WHERE owner IS NOT NULL;
CREATE INDEX skald_workflows_due ON skald_workflows (wake_at) WHERE wake_at IS NOT NULL;
CREATE INDEX skald_workflows_parent ON skald_workflows (parent) WHERE parent IS NOT NULL;
CREATE INDEX skald_workflows_ended ON skald_workflows (ended_at) WHERE ended_at IS NOT NULL;

CREATE TABLE skald_journal (
    run        uuid NOT NULL,
    time       bigint NOT NULL,
    position   integer NOT NULL,
    occurrence integer NOT NULL,   -- among the calls of equal name and digest
    kind       smallint NOT NULL,  -- see skald.unit.EntryKind
    name       text COLLATE "C" NOT NULL,
    digest     bytea NOT NULL,     -- of the arguments
    payload    bytea,
    PRIMARY KEY (run, position)
);

-- What workflows are to be told and have not been told yet, those that have yet to be started included.
CREATE TABLE skald_letters (
    id         text COLLATE "C" PRIMARY KEY,
    kind       smallint NOT NULL,  -- see skald.unit.LetterKind
    to_id      text COLLATE "C",   -- one of these three is whom it is for
    to_key     text COLLATE "C",
    to_run     uuid,
    name       text COLLATE "C" NOT NULL,
    payload    bytea NOT NULL,
    time       bigint NOT NULL,
    taken      smallint NOT NULL DEFAULT 0,
    outcome    bytea               -- the reply
);
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
       w.id AS saga_id, w.workflow AS name, to_char(to_timestamp(l.time / 1e6) AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS since, w.run
FROM skald_letters l JOIN skald_workflows w ON w.run = l.to_run AND w.ended_at IS NULL
WHERE l.kind > 9;

-- The sagas that this database owns, and the processes of its choreographies. Kinds of the journal: see
-- skald.unit.EntryKind; 10 is a change of status.
CREATE VIEW saga_state AS
SELECT s.id AS saga_id, s.workflow AS name, s.style,
       CASE WHEN s.ended_at IS NULL AND s.status IN ('NEEDS_ATTENTION', 'COMPENSATION_FAILED')
            -- Not as JSON, which PostgreSQL does not read if an error's text in it has a NUL.
            THEN coalesce(substring(convert_from(s.change, 'UTF8') FROM '^{"step":"([^"]*)"'), s.last_step)
            ELSE s.last_step END AS current_step,
       -- One that has failed, and not because it was compensated, is a defect: somebody should look.
       CASE WHEN s.state = 'completed' THEN 'COMPLETED' WHEN s.state = 'cancelled' THEN 'CANCELLED'
            WHEN s.state = 'terminated' THEN 'TERMINATED' WHEN s.state = 'paused' THEN 'NEEDS_ATTENTION'
            WHEN s.state = 'failed' AND coalesce(s.status, '') <> 'COMPENSATED' THEN 'NEEDS_ATTENTION'
            ELSE coalesce(s.status, 'IN_PROGRESS') END AS status,
       to_char(to_timestamp(s.started_at / 1e6) AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS created_at,
       to_char(to_timestamp(coalesce(s.ended_at, s.last_time, s.started_at) / 1e6) AT TIME ZONE 'UTC',
               'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS updated_at,
       (coalesce(s.ended_at / 1e6, extract(epoch FROM clock_timestamp())) - s.started_at / 1e6)::double precision
           AS age_seconds,
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
       to_char(to_timestamp(m.created_at / 1e6) AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'),
       to_char(to_timestamp(m.updated_at / 1e6) AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'),
       (CASE m.state WHEN 'running' THEN extract(epoch FROM clock_timestamp()) ELSE m.updated_at / 1e6 END
        - m.created_at / 1e6)::double precision, m.correlation_id,
       m.key, NULL::uuid
FROM skald_marks m WHERE m.kind = 'process';
