-- Portable SQL on the deliveries: messages taken over and not finished.

-- name: heads
SELECT d.handler, d.lane, d.position, d.aggregateid AS key, d.state, d.attempts, d.due, d.error
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

-- Materialized: as a mere subquery, PostgreSQL runs the SELECT again and again, and takes more than the limit.
-- name: claim_work
WITH chosen AS MATERIALIZED (
    SELECT handler, origin, position
    FROM skald_deliveries
    WHERE group_name = :group AND handler = :handler AND state = 'queued' AND owner IS NULL AND due <= :now
      AND CASE WHEN error LIKE :suspicious THEN 1 ELSE 0 END = :suspects
    ORDER BY priority DESC, due, position
    LIMIT :limit {for_update}
)
UPDATE skald_deliveries SET owner = :owner
WHERE owner IS NULL AND group_name = :group
  AND (handler, origin, position) IN (SELECT handler, origin, position FROM chosen)
RETURNING handler, origin, lane, state, attempts, due, error, owner, position, CAST(id AS TEXT) AS id, aggregatetype,
          aggregateid, slot, type, version, time, correlation_id, causation_id, traceparent, payload, priority, delay

-- name: owned_work
SELECT handler, origin, lane, state, attempts, due, error, owner, position, CAST(id AS TEXT) AS id, aggregatetype,
       aggregateid, slot, type, version, time, correlation_id, causation_id, traceparent, payload, priority, delay
FROM skald_deliveries
WHERE group_name = :group AND handler = :handler AND state = 'queued' AND owner = :owner

-- name: next_work
SELECT min(due) AS due, coalesce(sum(CASE WHEN error LIKE :suspicious THEN 1 ELSE 0 END), 0) AS suspects
FROM skald_deliveries
WHERE group_name = :group AND handler = :handler AND state = 'queued' AND owner IS NULL
