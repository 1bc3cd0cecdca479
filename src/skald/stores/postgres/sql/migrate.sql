-- name: begin
CREATE SCHEMA IF NOT EXISTS {schema};
CREATE TABLE IF NOT EXISTS {schema}.skald_migrations (
    owner      text NOT NULL,     -- 'skald' or 'service'
    number     integer NOT NULL,
    name       text NOT NULL,
    checksum   text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (owner, number)
)

-- name: lock
SELECT pg_advisory_lock(hashtext('skald migrate'), hashtext($1))

-- name: exists
SELECT to_regclass($1 || '.skald_migrations') IS NOT NULL

-- name: applied
SELECT number, name, checksum FROM {schema}.skald_migrations WHERE owner = $1 ORDER BY number

-- name: remember
INSERT INTO {schema}.skald_migrations (owner, number, name, checksum) VALUES ($1, $2, $3, $4)

-- name: note
INSERT INTO {schema}.skald_meta (key, value) VALUES ($1, $2)
ON CONFLICT (key) DO UPDATE SET value = excluded.value

-- name: compatible
SELECT value::integer FROM {schema}.skald_meta WHERE key = $1
