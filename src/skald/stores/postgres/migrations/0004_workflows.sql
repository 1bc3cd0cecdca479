-- compatible: 1
-- Workflows, and what each was told, in that order. A run is a UUIDv7, so that the rows of today stand together.
CREATE TABLE skald_workflows (
    run        uuid PRIMARY KEY,
    id         text NOT NULL,      -- the user's
    workflow   text NOT NULL,
    state      text NOT NULL,
    owner      text,               -- the process that runs it
    input      bytea NOT NULL,
    outcome    bytea,              -- the result, or the failure
    started_at bigint NOT NULL,
    ended_at   bigint
);
CREATE UNIQUE INDEX skald_workflows_id ON skald_workflows (id);
CREATE INDEX skald_workflows_open ON skald_workflows (owner, run) WHERE ended_at IS NULL;

CREATE TABLE skald_journal (
    run        uuid NOT NULL,
    position   integer NOT NULL,
    kind       smallint NOT NULL,  -- 0 a step's result, 1 its failure, 2 a timer
    name       text NOT NULL,
    digest     bytea NOT NULL,     -- of the arguments
    occurrence integer NOT NULL,   -- among the calls of equal name and digest
    time       bigint NOT NULL,
    payload    bytea,
    PRIMARY KEY (run, position)
);
