-- Portable SQL on workflows and their journal.

-- name: by_id
SELECT run, id, workflow, state, owner, input, outcome FROM skald_workflows WHERE id = :id

-- name: claim
UPDATE skald_workflows SET owner = :owner
WHERE run IN (SELECT run FROM skald_workflows WHERE owner IS NULL AND ended_at IS NULL ORDER BY run LIMIT :most)
RETURNING run, id, workflow, input, started_at

-- name: mine
SELECT run, id, workflow, input, started_at FROM skald_workflows
WHERE run = :run AND owner = :owner AND ended_at IS NULL

-- name: journal
SELECT j.run, j.position, j.kind, j.name, j.digest, j.occurrence, j.time, j.payload
FROM skald_workflows w JOIN skald_journal j ON j.run = w.run
WHERE w.owner = :owner AND w.ended_at IS NULL AND w.run BETWEEN :first AND :last
ORDER BY j.run, j.position
