-- Portable SQL on the marks: what handlers remember of keys.

-- name: one
SELECT key, version, state, payload FROM skald_marks WHERE kind = :kind AND name = :name AND key = :key

-- name: many
SELECT key, version, state, payload FROM skald_marks WHERE kind = :kind AND name = :name AND key IN ({keys})

-- What a handler has not finished for a key, wherever its messages come from; not what runs at this moment.
-- name: unfinished
SELECT 1 AS found
FROM skald_deliveries
WHERE group_name = :group AND handler = :handler AND aggregateid = :key AND state <> 'running' AND state <> 'queued'
LIMIT 1

-- name: discard
DELETE FROM skald_deliveries
WHERE group_name = :group AND handler = :handler AND aggregateid = :key AND state <> 'running' AND state <> 'queued'
RETURNING origin, lane, position, CAST(id AS TEXT) AS id, attempts, error, type, payload

-- What of a handler's is before a message of the same key, and not finished.
-- name: before
SELECT state, due
FROM skald_deliveries
WHERE group_name = :group AND handler = :handler AND origin = :origin AND aggregateid = :key AND position < :position
ORDER BY position
LIMIT 1

-- The process that owns the lane reads it again.
-- name: bump
UPDATE skald_cursors SET version = version + 1 WHERE group_name = :group AND origin = :origin AND lane = :lane
