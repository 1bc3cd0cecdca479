-- Portable SQL of an operator on deliveries. The conditions of a selection are joined to it.

-- name: of_message
SELECT handler, state, error
FROM skald_deliveries
WHERE group_name = :group AND origin = :origin AND position = :position

-- name: count
SELECT count(*) AS n FROM skald_deliveries WHERE group_name = :group AND state = 'parked' {conditions}

-- name: places
SELECT handler, origin, lane, position, aggregateid
FROM skald_deliveries
WHERE group_name = :group AND state = 'parked' {conditions}
ORDER BY origin, lane, position, handler

-- Whom each one holds up is counted only for those that are shown.
-- name: list
SELECT p.*, (
    SELECT count(*)
    FROM skald_deliveries w
    WHERE w.group_name = :group AND w.origin = p.origin AND w.lane = p.lane AND w.state = 'waiting'
      AND w.handler = p.handler AND w.aggregateid = p.aggregateid
) AS waiting
FROM (
    SELECT handler, origin, lane, state, attempts, due, error, owner, position, CAST(id AS TEXT) AS id, aggregatetype,
           aggregateid, slot, type, version, time, correlation_id, causation_id, traceparent, payload, priority, delay
    FROM skald_deliveries
    WHERE group_name = :group AND state = 'parked' {conditions}
    ORDER BY origin, position, handler
    LIMIT :limit
) p
ORDER BY p.origin, p.position, p.handler

-- name: bump
UPDATE skald_cursors SET version = version + 1 WHERE group_name = :group AND origin = :origin AND lane = :lane

-- name: of_lane
SELECT handler, aggregateid, min(position) AS first
FROM skald_deliveries
WHERE group_name = :group AND origin = :origin AND lane = :lane AND state <> 'queued'
GROUP BY handler, aggregateid

-- It was parked when it was due last, so it is due now.
-- name: redrive
UPDATE skald_deliveries SET state = :state, attempts = 0, owner = NULL
WHERE group_name = :group AND handler = :handler AND origin = :origin AND position = :position AND state = 'parked'

-- name: discard
DELETE FROM skald_deliveries
WHERE group_name = :group AND handler = :handler AND origin = :origin AND position = :position AND state = 'parked'

-- name: state
SELECT state, attempts, error, lane, aggregateid
FROM skald_deliveries
WHERE group_name = :group AND handler = :handler AND origin = :origin AND position = :position

-- name: parked_before
SELECT min(position) AS position
FROM skald_deliveries
WHERE group_name = :group AND origin = :origin AND lane = :lane AND state = 'parked'
  AND handler = :handler AND aggregateid = :key AND position < :position
