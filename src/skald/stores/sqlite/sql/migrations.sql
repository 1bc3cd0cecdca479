-- What was applied: 'skald' are the library's files, 'service' the user's.

-- name: create_migrations
CREATE TABLE IF NOT EXISTS skald_migrations (
    owner      TEXT NOT NULL,
    number     INTEGER NOT NULL,
    name       TEXT NOT NULL,
    checksum   TEXT NOT NULL,
    applied_at INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000000 AS INTEGER)),
    PRIMARY KEY (owner, number)
) WITHOUT ROWID, STRICT

-- name: has_migrations
SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'skald_migrations'

-- name: applied
SELECT number, name, checksum FROM skald_migrations WHERE owner = ?1 ORDER BY number

-- name: remember
INSERT INTO skald_migrations (owner, number, name, checksum, applied_at) VALUES (?, ?, ?, ?, ?)

-- name: compatible
SELECT value FROM skald_meta WHERE key = ?1

-- name: set_compatible
INSERT OR REPLACE INTO skald_meta (key, value) VALUES (?1, ?2)
