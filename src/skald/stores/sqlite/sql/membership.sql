-- The leases of a group's processes, in a file of their own: a heartbeat waits for no transaction.

-- name: create_members
CREATE TABLE IF NOT EXISTS skald_members (
    id            TEXT PRIMARY KEY,
    group_name    TEXT NOT NULL,
    boot_id       TEXT NOT NULL,
    pid_namespace TEXT NOT NULL,
    pid           INTEGER NOT NULL,
    start_time    INTEGER NOT NULL,
    expires_at    INTEGER NOT NULL
) WITHOUT ROWID, STRICT

-- name: join
INSERT OR REPLACE INTO skald_members (id, group_name, boot_id, pid_namespace, pid, start_time, expires_at)
VALUES (?, ?, ?, ?, ?, ?, ?)

-- name: beat
UPDATE skald_members SET expires_at = ?2 WHERE id = ?1

-- name: members
SELECT id, group_name, boot_id, pid_namespace, pid, start_time, expires_at
FROM skald_members WHERE group_name = ?1 ORDER BY id

-- name: remove
DELETE FROM skald_members WHERE id = ?1
