-- compatible: 1
-- Workflows, and what each was told, in that order. A run is a UUIDv7, so that the rows of today stand together.
CREATE TABLE skald_workflows (
    run        uuid PRIMARY KEY,
    id         text COLLATE "C" NOT NULL,   -- the user's; several runs may have had it
    latest     smallint NOT NULL DEFAULT 1, -- 1 for the last run of its id
    workflow   text COLLATE "C" NOT NULL,
    state      text NOT NULL,
    owner      text COLLATE "C",   -- the process that runs it
    wake_at    bigint,             -- without an owner: when somebody should take it; NULL: when there is a letter
    parent     uuid,               -- the run that called it
    key        text COLLATE "C",   -- by which others may address it
    input      bytea NOT NULL,
    outcome    bytea,              -- the result, the failure, or why it is paused
    started_at bigint NOT NULL,
    ended_at   bigint
);
CREATE UNIQUE INDEX skald_workflows_id ON skald_workflows (id) WHERE latest = 1;
CREATE UNIQUE INDEX skald_workflows_key ON skald_workflows (key) WHERE key IS NOT NULL AND ended_at IS NULL;
CREATE INDEX skald_workflows_owner ON skald_workflows (owner, run) WHERE owner IS NOT NULL;
CREATE INDEX skald_workflows_due ON skald_workflows (wake_at) WHERE wake_at IS NOT NULL;
CREATE INDEX skald_workflows_parent ON skald_workflows (parent) WHERE parent IS NOT NULL;
CREATE INDEX skald_workflows_ended ON skald_workflows (ended_at) WHERE ended_at IS NOT NULL;

CREATE TABLE skald_journal (
    run        uuid NOT NULL,
    position   integer NOT NULL,
    kind       smallint NOT NULL,  -- see skald.unit.EntryKind
    name       text COLLATE "C" NOT NULL,
    digest     bytea NOT NULL,     -- of the arguments
    occurrence integer NOT NULL,   -- among the calls of equal name and digest
    time       bigint NOT NULL,
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
