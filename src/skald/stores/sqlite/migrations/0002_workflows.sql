-- compatible: 1
-- Workflows, and what each was told, in that order. A run is a UUIDv7, so that the rows of today stand together.
CREATE TABLE skald_workflows (
    run        TEXT PRIMARY KEY,
    id         TEXT NOT NULL,      -- the user's
    workflow   TEXT NOT NULL,
    state      TEXT NOT NULL,
    owner      TEXT,               -- the process that runs it
    input      BLOB NOT NULL,
    outcome    BLOB,               -- the result, or the failure
    started_at INTEGER NOT NULL,
    ended_at   INTEGER
) WITHOUT ROWID, STRICT;
CREATE UNIQUE INDEX skald_workflows_id ON skald_workflows (id);
CREATE INDEX skald_workflows_open ON skald_workflows (owner, run) WHERE ended_at IS NULL;

CREATE TABLE skald_journal (
    run        TEXT NOT NULL,
    position   INTEGER NOT NULL,
    kind       INTEGER NOT NULL,   -- 0 a step's result, 1 its failure, 2 a timer
    name       TEXT NOT NULL,
    digest     BLOB NOT NULL,      -- of the arguments
    occurrence INTEGER NOT NULL,   -- among the calls of equal name and digest
    time       INTEGER NOT NULL,
    payload    BLOB,
    PRIMARY KEY (run, position)
) WITHOUT ROWID, STRICT;
