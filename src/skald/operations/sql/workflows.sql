-- Portable SQL of an operator on workflows. A selection's conditions are joined to it.

-- name: list
SELECT CAST(w.run AS TEXT) AS run, w.id, w.workflow, w.state, w.owner, w.wake_at, w.key, w.started_at, w.ended_at,
       CASE WHEN w.state IN ('failed', 'paused') THEN w.outcome END AS outcome
FROM skald_workflows w
WHERE {conditions}
ORDER BY w.run DESC
LIMIT :limit

-- name: by_key
SELECT id FROM skald_workflows WHERE key = :key AND ended_at IS NULL

-- name: letters
SELECT id, kind, name, payload, time FROM skald_letters WHERE taken = 2 AND to_run = :run
UNION ALL
SELECT id, kind, name, payload, time FROM skald_letters WHERE taken = 0 AND to_run = :run
UNION ALL
SELECT id, kind, name, payload, time FROM skald_letters WHERE taken = 0 AND to_id = :id
UNION ALL
SELECT id, kind, name, payload, time FROM skald_letters WHERE taken = 0 AND to_key = :key
ORDER BY 5, 1

-- name: open
SELECT run, id, workflow, parent, input, started_at FROM skald_workflows
WHERE ended_at IS NULL AND run > :after
ORDER BY run
LIMIT :most

-- Of those that have ended since they were listed nothing is wanted any more.
-- name: journals
SELECT j.run, j.position, j.kind, j.name, j.digest, j.occurrence, j.time, j.payload
FROM skald_workflows w JOIN skald_journal j ON j.run = w.run
WHERE w.ended_at IS NULL AND w.run BETWEEN :first AND :last
ORDER BY j.run, j.position
