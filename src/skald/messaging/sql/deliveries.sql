-- Portable SQL on the deliveries: messages taken over and not finished.

-- name: heads
SELECT d.handler, d.lane, d.position, d.aggregateid, d.state, d.due
FROM skald_deliveries d
JOIN (
    SELECT handler, aggregateid, min(position) AS position
    FROM skald_deliveries
    WHERE group_name = :group AND origin = :origin AND state <> 'queued'
    GROUP BY handler, aggregateid
) first ON d.handler = first.handler AND d.position = first.position
WHERE d.group_name = :group AND d.origin = :origin
ORDER BY d.position

-- name: head
SELECT handler, origin, lane, state, attempts, due, error, owner, position, CAST(id AS TEXT) AS id, aggregatetype,
       aggregateid, slot, type, version, time, correlation_id, causation_id, traceparent, payload, priority, delay
FROM skald_deliveries
WHERE group_name = :group AND handler = :handler AND origin = :origin AND lane = :lane
  AND aggregateid = :key AND state <> 'queued'
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

-- name: owned_work
SELECT handler, origin, lane, state, attempts, due, error, owner, position, CAST(id AS TEXT) AS id, aggregatetype,
       aggregateid, slot, type, version, time, correlation_id, causation_id, traceparent, payload, priority, delay
FROM skald_deliveries
WHERE group_name = :group AND handler = :handler AND state = 'queued' AND owner = :owner

-- name: next_work
SELECT min(due) AS due
FROM skald_deliveries
WHERE group_name = :group AND handler = :handler AND state = 'queued' AND owner IS NULL
