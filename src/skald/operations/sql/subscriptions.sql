-- Portable SQL of an operator on cursors.

-- name: move
UPDATE skald_cursors
SET position = :position, message_id = :message_id, version = version + 1, takeovers = 0, stopped = NULL
WHERE group_name = :group AND origin = :origin AND lane = :lane

-- name: take_back
DELETE FROM skald_deliveries
WHERE group_name = :group AND origin = :origin AND lane = :lane AND position > :position

-- name: claimed
SELECT lane, position, message_id, version, owner, takeovers, stopped
FROM skald_cursors
WHERE group_name = :group AND origin = :origin
ORDER BY lane {for_update}

-- name: remove
DELETE FROM skald_cursors WHERE group_name = :group AND origin = :origin

-- name: insert
INSERT INTO skald_cursors (group_name, origin, lane, position, message_id, version)
VALUES (:group, :origin, :lane, :position, :message_id, :version)

-- name: rehome
UPDATE skald_deliveries SET lane = slot * CAST(:lanes AS integer) / 256
WHERE group_name = :group AND origin = :origin
