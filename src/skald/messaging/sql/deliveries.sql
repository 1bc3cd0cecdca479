-- Portable SQL on the deliveries: messages taken over and not finished.

-- name: blocked
SELECT handler, position, aggregateid, state, due
FROM skald_deliveries
WHERE group_name = :group AND origin = :origin AND lane = :lane AND state <> 'queued'
ORDER BY position

-- name: get
SELECT handler, origin, lane, state, attempts, due, error, owner, position, CAST(id AS TEXT) AS id, aggregatetype,
       aggregateid, slot, type, version, time, correlation_id, causation_id, traceparent, payload, priority, delay
FROM skald_deliveries
WHERE group_name = :group AND handler = :handler AND origin = :origin AND position = :position

-- name: next_waiting
SELECT position
FROM skald_deliveries
WHERE group_name = :group AND handler = :handler AND origin = :origin AND lane = :lane
  AND aggregateid = :key AND state = 'waiting'
ORDER BY position
LIMIT 1

-- name: claim_work
UPDATE skald_deliveries SET owner = :owner
WHERE owner IS NULL AND group_name = :group AND (handler, origin, position) IN (
    SELECT handler, origin, position
    FROM skald_deliveries
    WHERE group_name = :group AND handler = :handler AND state = 'queued' AND owner IS NULL AND due <= :now
    ORDER BY priority DESC, due, position
    LIMIT :limit {for_update}
)
RETURNING handler, origin, lane, state, attempts, due, error, owner, position, CAST(id AS TEXT) AS id, aggregatetype,
          aggregateid, slot, type, version, time, correlation_id, causation_id, traceparent, payload, priority, delay

-- name: next_work
SELECT min(due) AS due
FROM skald_deliveries
WHERE group_name = :group AND handler = :handler AND state = 'queued' AND owner IS NULL
