-- Portable SQL of an operator on sagas. A selection's conditions are joined to it. Sagas and processes are read apart,
-- because each has an order of its own that needs no sorting.

-- name: list
SELECT saga_id AS id, name AS saga, style, status, current_step, created_at, updated_at, age_seconds, key,
       CAST(run AS TEXT) AS run
FROM saga_state
WHERE style <> 'process' AND {conditions}
ORDER BY run DESC
LIMIT :limit

-- name: processes
SELECT saga_id AS id, name AS saga, style, status, current_step, created_at, updated_at, age_seconds, key,
       CAST(run AS TEXT) AS run
FROM saga_state
WHERE style = 'process' AND {conditions}
ORDER BY created_at DESC, saga_id
LIMIT :limit

-- name: process
SELECT payload FROM skald_marks WHERE kind = 'process' AND name = :name AND key = :key

-- name: timeouts
SELECT payload, due, state FROM skald_deliveries WHERE group_name = :service AND origin = :origin ORDER BY due, position

-- name: effects
SELECT handler, key, state, refused, created_at, updated_at FROM skald_effects WHERE key = :key ORDER BY created_at, handler

-- name: locks
SELECT key, state, place, saga_id AS id, name AS saga, since, CAST(run AS TEXT) AS run
FROM skald_locks
WHERE {conditions}
ORDER BY key, place
LIMIT :limit

-- name: answers
SELECT l.payload FROM skald_letters l JOIN skald_workflows w ON w.run = l.to_run
WHERE w.id = :id AND w.latest = 1 AND l.taken = 0 AND l.name = :name
