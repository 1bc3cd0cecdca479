-- Portable SQL on the cursors: one row per (group, origin, lane).

-- name: create
INSERT INTO skald_cursors (group_name, origin, lane, position, message_id)
VALUES (:group, :origin, :lane, :position, :message_id)
ON CONFLICT (group_name, origin, lane) DO NOTHING

-- name: lanes
SELECT origin, lane, position, message_id, version, owner, takeovers, stopped
FROM skald_cursors
WHERE group_name = :group
ORDER BY origin, lane

-- name: claim
UPDATE skald_cursors SET owner = :owner
WHERE group_name = :group AND origin = :origin AND lane = :lane AND (owner IS NULL OR owner = :owner)
  AND stopped IS NULL
RETURNING position, message_id, version, takeovers

-- name: owned
SELECT lane, position, message_id, version, takeovers
FROM skald_cursors
WHERE group_name = :group AND origin = :origin AND owner = :owner AND stopped IS NULL

-- As if an owner had died: whoever comes next must not take the messages for new.
-- name: begun
UPDATE skald_cursors SET takeovers = 1
WHERE group_name = :group AND origin = :origin AND lane = :lane AND owner = :owner AND takeovers = 0

-- name: release
UPDATE skald_cursors SET owner = NULL
WHERE group_name = :group AND origin = :origin AND lane = :lane AND owner = :owner

-- name: stop
UPDATE skald_cursors SET stopped = :reason, owner = NULL, version = version + 1
WHERE group_name = :group AND origin = :origin AND lane = :lane AND owner = :owner

-- name: slowest
SELECT min(position) AS position FROM skald_cursors WHERE group_name = :group AND origin = :origin

-- name: accept
INSERT INTO skald_meta (key, value) VALUES (:key, :position) ON CONFLICT (key) DO UPDATE SET value = excluded.value

-- name: accepted
SELECT value FROM skald_meta WHERE key = :key

-- name: fence
INSERT INTO skald_fences (process) VALUES (:process)

-- name: owners
SELECT process FROM skald_fences
UNION
SELECT owner FROM skald_cursors WHERE owner IS NOT NULL
UNION
SELECT DISTINCT owner FROM skald_workflows WHERE owner IS NOT NULL

-- name: unfence
DELETE FROM skald_fences WHERE process = :process

-- name: orphan_lanes
UPDATE skald_cursors SET owner = NULL, takeovers = takeovers + 1 WHERE owner = :process

-- name: hand_over_lanes
UPDATE skald_cursors SET owner = NULL WHERE owner = :process

-- name: orphan_deliveries
UPDATE skald_deliveries SET owner = NULL, attempts = attempts + 1, error = :error WHERE owner = :process

-- name: hand_over_deliveries
UPDATE skald_deliveries SET owner = NULL WHERE owner = :process

-- Those with a count below zero were not run: it becomes what it was.
-- name: orphan_workflows
UPDATE skald_workflows
SET owner = NULL, wake_at = 0, deaths = CASE WHEN deaths < 0 THEN -deaths ELSE deaths + 1 END WHERE owner = :process

-- name: hand_over_workflows
UPDATE skald_workflows SET owner = NULL, wake_at = 0 WHERE owner = :process
