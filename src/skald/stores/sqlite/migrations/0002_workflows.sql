-- compatible: 1
-- Workflows, and what each was told, in that order. A run is a UUIDv7, so that the rows of today stand together.
CREATE TABLE skald_workflows (
    run        TEXT PRIMARY KEY,
    id         TEXT NOT NULL,      -- the user's; several runs may have had it
    latest     INTEGER NOT NULL DEFAULT 1,   -- 1 for the last run of its id
    workflow   TEXT NOT NULL,
    state      TEXT NOT NULL,
    owner      TEXT,               -- the process that runs it
    wake_at    INTEGER,            -- without an owner: when somebody should take it; NULL: when there is a letter
    parent     TEXT,               -- the run that called it
    key        TEXT,               -- by which others may address it
    input      BLOB NOT NULL,
    outcome    BLOB,               -- the result, the failure, or why it is paused
    started_at INTEGER NOT NULL,
    ended_at   INTEGER
) WITHOUT ROWID, STRICT;
CREATE UNIQUE INDEX skald_workflows_id ON skald_workflows (id) WHERE latest = 1;
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
