-- Portable SQL of retention. Every statement touches a bounded stretch of a primary key.

-- name: events
SELECT position, type, time, length(payload) AS size
FROM skald_events
WHERE position > :after
ORDER BY position LIMIT :limit

-- name: messages
SELECT position, type, time, length(payload) AS size
FROM skald_messages
WHERE position > :after
ORDER BY position LIMIT :limit

-- name: delete_events
DELETE FROM skald_events WHERE position BETWEEN :first AND :last AND type = :type AND time < :before

-- name: delete_messages
DELETE FROM skald_messages WHERE position BETWEEN :first AND :last AND type = :type AND time < :before

-- Floors never fall, whoever prunes at the same time.
-- name: raise_floor
INSERT INTO skald_meta (key, value) VALUES (:key, :position)
ON CONFLICT (key) DO UPDATE SET value = excluded.value
WHERE CAST(skald_meta.value AS bigint) < CAST(excluded.value AS bigint)

-- name: floors
SELECT key, value FROM skald_meta WHERE key LIKE 'floor:%'

-- name: idempotency
SELECT scope, key, created_at
FROM skald_idempotency
WHERE (scope, key) > (:scope, :key)
ORDER BY scope, key LIMIT :limit

-- name: delete_idempotency
DELETE FROM skald_idempotency
WHERE (scope, key) > (:scope, :key) AND (scope, key) <= (:last_scope, :last_key) AND created_at < :before

-- name: marks
SELECT key, updated_at
FROM skald_marks
WHERE kind = :kind AND name = :name AND key > :key
ORDER BY key LIMIT :limit

-- What still runs is kept, however old it is.
-- name: delete_marks
DELETE FROM skald_marks
WHERE kind = :kind AND name = :name AND key > :key AND key <= :last AND updated_at < :before AND state <> 'running'
