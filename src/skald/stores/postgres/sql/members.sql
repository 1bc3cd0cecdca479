-- name: join
INSERT INTO {schema}.skald_members (id, group_name, boot_id, pid_namespace, pid, start_time, expires_at)
VALUES ($1, $2, $3, $4, $5, $6, floor(extract(epoch FROM clock_timestamp()) * 1000000)::bigint + $7::bigint)
ON CONFLICT (id) DO UPDATE SET
    group_name = excluded.group_name, boot_id = excluded.boot_id, pid_namespace = excluded.pid_namespace,
    pid = excluded.pid, start_time = excluded.start_time, expires_at = excluded.expires_at

-- name: beat
UPDATE {schema}.skald_members
SET expires_at = floor(extract(epoch FROM clock_timestamp()) * 1000000)::bigint + $2::bigint
WHERE id = $1

-- name: members
SELECT floor(extract(epoch FROM clock_timestamp()) * 1000000)::bigint, id, group_name, boot_id, pid_namespace, pid,
       start_time, expires_at
FROM (SELECT 1) one LEFT JOIN {schema}.skald_members ON group_name = $1
ORDER BY id

-- name: remove
DELETE FROM {schema}.skald_members WHERE id = $1
