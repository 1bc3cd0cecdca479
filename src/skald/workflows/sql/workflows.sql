-- Portable SQL on workflows, their journals and their letters. {for_update} claims rows where several may write at once.
-- A row with an owner, one that is paused and one that has ended have no wake_at. Below 1 it is due at once.
-- {hears}: the letter l makes somebody take the workflow w.
-- A failed workflow that is no saga keeps the results of its steps (letters of kind 6), the places of answers (8) and the
-- answers (9) for a retry.

-- name: by_id
SELECT run, id, workflow, state, owner, parent, input, outcome, started_at, ended_at, style FROM skald_workflows
WHERE id = :id AND latest = 1

-- name: by_run
SELECT run, id, workflow, state, owner, parent, input, outcome, started_at, ended_at, style FROM skald_workflows
WHERE run = :run

-- name: open_children
SELECT id FROM skald_workflows WHERE parent = :run AND latest = 1 AND ended_at IS NULL ORDER BY id

-- name: poll
SELECT (SELECT min(wake_at) FROM skald_workflows WHERE wake_at IS NOT NULL) AS wake_at,
       (SELECT min(wake_at) FROM skald_workflows WHERE wake_at > 0) AS timer,
       CASE WHEN EXISTS (SELECT 1 FROM skald_letters l JOIN skald_workflows w ON w.run = l.to_run
                         WHERE l.to_run IS NOT NULL AND l.taken = 0 AND w.ended_at IS NULL)
              OR EXISTS (SELECT 1 FROM skald_letters WHERE to_id IS NOT NULL AND taken = 0)
              OR EXISTS (SELECT 1 FROM skald_letters WHERE to_key IS NOT NULL AND taken = 0)
            THEN 1 ELSE 0 END AS letters,
       CASE WHEN EXISTS (SELECT 1 FROM skald_letters WHERE kind > 9 AND kind = 10)
              OR EXISTS (SELECT 1 FROM skald_letters l WHERE l.kind > 9 AND l.kind = 11 AND NOT EXISTS (
                    SELECT 1 FROM skald_letters h JOIN skald_workflows w ON w.run = h.to_run AND w.ended_at IS NULL
                    WHERE h.kind > 9 AND h.kind = 12 AND h.name = l.name))
            THEN 1 ELSE 0 END AS locks

-- name: asleep
SELECT 1 AS one FROM skald_letters l JOIN skald_workflows w ON w.run = l.to_run
WHERE l.to_run IS NOT NULL AND l.taken = 0 AND l.kind <> 7 AND w.owner IS NULL AND w.ended_at IS NULL
AND {hears}
UNION ALL
SELECT 1 FROM skald_letters l JOIN skald_workflows w ON w.id = l.to_id AND w.latest = 1
WHERE l.to_id IS NOT NULL AND l.taken = 0 AND w.owner IS NULL AND w.ended_at IS NULL
AND {hears}
UNION ALL
SELECT 1 FROM skald_letters l JOIN skald_workflows w ON w.key = l.to_key AND w.ended_at IS NULL
WHERE l.to_key IS NOT NULL AND l.taken = 0 AND w.owner IS NULL
AND {hears}
LIMIT 1

-- name: fire
UPDATE skald_workflows SET wake_at = :token
WHERE run IN (
    SELECT run FROM skald_workflows WHERE wake_at > 0 AND wake_at <= :now AND state = 'running'
    ORDER BY wake_at LIMIT :most {for_update})

-- name: fired
-- The occurrence of 1 says that the workflow has yet to be told.
INSERT INTO skald_journal (run, position, kind, name, digest, occurrence, time, payload)
SELECT w.run, 1 + coalesce((SELECT max(j.position) FROM skald_journal j WHERE j.run = w.run), 0),
       2, '', :none, 1, :now, NULL
FROM skald_workflows w WHERE w.wake_at = :token

-- name: claim
-- Suspects wait (see workflows.suspects), from this moment on.
UPDATE skald_workflows
SET owner = :owner, wake_at = NULL, deaths = CASE WHEN deaths >= :suspicious THEN -deaths ELSE deaths END,
    started_at = CASE WHEN state = 'scheduled' THEN :now ELSE started_at END, state = 'running'
WHERE run IN (
    SELECT run FROM skald_workflows w WHERE wake_at <= :now AND (wake_at < 1 OR state = 'scheduled')
    AND (replace(:names, ',' || workflow || ',', '') <> :names
         OR EXISTS (SELECT 1 FROM skald_letters l WHERE l.kind = 3 AND l.taken = 0 AND l.to_run = w.run)
         OR EXISTS (SELECT 1 FROM skald_letters l WHERE l.kind = 3 AND l.taken = 0 AND l.to_id = w.id))
    ORDER BY wake_at LIMIT :most {for_update})
RETURNING run, id, workflow, parent, key, input, started_at, deaths, correlation

-- name: mine
SELECT run, id, workflow, parent, key, input, started_at, deaths, correlation FROM skald_workflows
WHERE run = :run AND owner = :owner AND ended_at IS NULL

-- name: hold
UPDATE skald_workflows SET deaths = -abs(deaths) WHERE run = :run AND owner = :owner

-- name: count
UPDATE skald_workflows SET deaths = abs(deaths) WHERE run = :run AND owner = :owner

-- name: clear
UPDATE skald_workflows SET deaths = 0 WHERE run = :run AND owner = :owner

-- name: journals
SELECT run, position, kind, name, digest, occurrence, time, payload FROM skald_journal
WHERE run IN ({runs}) ORDER BY run, position

-- name: journal
SELECT run, position, kind, name, digest, occurrence, time, payload FROM skald_journal
WHERE run = :run ORDER BY position

-- name: letters
SELECT l.id, l.kind, l.name, l.payload, l.time, w.run FROM skald_letters l JOIN skald_workflows w ON w.run = l.to_run
WHERE l.to_run IS NOT NULL AND l.taken = 0 AND w.owner = :owner
UNION ALL
SELECT l.id, l.kind, l.name, l.payload, l.time, w.run
FROM skald_letters l JOIN skald_workflows w ON w.id = l.to_id AND w.latest = 1
WHERE l.to_id IS NOT NULL AND l.taken = 0 AND w.owner = :owner
UNION ALL
SELECT l.id, l.kind, l.name, l.payload, l.time, w.run
FROM skald_letters l JOIN skald_workflows w ON w.key = l.to_key AND w.ended_at IS NULL
WHERE l.to_key IS NOT NULL AND l.taken = 0 AND w.owner = :owner
ORDER BY 5, 1

-- name: open_calls
SELECT id FROM skald_letters WHERE taken = 2 AND to_run IN ({runs})

-- name: wake_runs
UPDATE skald_workflows SET wake_at = 0
WHERE run IN (
    SELECT w.run FROM skald_letters l JOIN skald_workflows w ON w.run = l.to_run
    WHERE l.to_run IS NOT NULL AND l.taken = 0 AND l.kind <> 7 AND w.owner IS NULL AND w.ended_at IS NULL
    AND coalesce(w.wake_at, 1) > 0 AND {hears} {for_update})

-- name: wake_ids
UPDATE skald_workflows SET wake_at = 0
WHERE run IN (
    SELECT w.run FROM skald_letters l JOIN skald_workflows w ON w.id = l.to_id AND w.latest = 1
    WHERE l.to_id IS NOT NULL AND l.taken = 0 AND w.owner IS NULL AND w.ended_at IS NULL
    AND coalesce(w.wake_at, 1) > 0 AND {hears} {for_update})

-- name: wake_keys
UPDATE skald_workflows SET wake_at = 0
WHERE run IN (
    SELECT w.run FROM skald_letters l JOIN skald_workflows w ON w.key = l.to_key AND w.ended_at IS NULL
    WHERE l.to_key IS NOT NULL AND l.taken = 0 AND w.owner IS NULL
    AND coalesce(w.wake_at, 1) > 0 AND {hears} {for_update})

-- name: outcome
SELECT outcome FROM skald_letters WHERE id = :id

-- name: drop_letter
DELETE FROM skald_letters WHERE id = :id

-- name: resume
UPDATE skald_workflows SET state = 'running', wake_at = 0, outcome = NULL WHERE id = :id AND latest = 1 AND state = 'paused'

-- name: drop_pauses
DELETE FROM skald_letters WHERE kind = 4 AND taken = 0 AND to_id = :id

-- name: key_holder
SELECT o.key, o.id FROM skald_workflows w JOIN skald_workflows o ON o.key = w.key
WHERE w.run = :run AND w.latest = 1 AND w.state = 'failed' AND w.ended_at = :ended_at AND o.ended_at IS NULL

-- name: reopen
UPDATE skald_workflows SET state = 'running', wake_at = 0, outcome = NULL, ended_at = NULL
WHERE run = :run AND latest = 1 AND state = 'failed' AND ended_at = :ended_at

-- name: last_position
SELECT max(position) AS last FROM skald_journal WHERE run = :run

-- name: failures
SELECT position, kind, digest, payload FROM skald_journal WHERE run = :run AND kind IN (1, 7, 12) ORDER BY position DESC

-- name: forget_failure
UPDATE skald_journal SET kind = 14, digest = :forgotten WHERE run = :run AND position = :position

-- name: note_retry
INSERT INTO skald_journal (run, position, kind, name, digest, occurrence, time, payload)
VALUES (:run, :position, 14, :name, :forgotten, :occurrence, :now, NULL)

-- name: forget_told
DELETE FROM skald_letters WHERE to_id = :id AND taken = 0 AND kind BETWEEN 1 AND 4

-- name: last_run
SELECT 1 AS one FROM skald_workflows WHERE run = :run AND latest = 1 AND ended_at = :ended_at {for_update}

-- name: cancels
SELECT 1 AS one FROM skald_letters
WHERE to_id = :id AND taken = 0 AND kind = 2 AND payload = :reason AND time <= :retried_at LIMIT 1

-- name: withdraw
DELETE FROM skald_letters WHERE to_id = :id AND taken = 0 AND kind = 2 AND payload = :reason AND time <= :retried_at

-- name: choose
UPDATE skald_workflows SET wake_at = :token WHERE run IN (
    SELECT run FROM skald_workflows WHERE ended_at < :before ORDER BY ended_at LIMIT :most {for_update})

-- name: prune_journal
DELETE FROM skald_journal WHERE run IN (
    SELECT run FROM skald_workflows WHERE wake_at = :token AND ended_at IS NOT NULL)

-- name: choose_before
UPDATE skald_workflows AS w SET wake_at = :token WHERE latest = 0 AND state = 'continued' AND EXISTS (
    SELECT 1 FROM skald_workflows last
    WHERE last.id = w.id AND last.run > w.run AND last.wake_at = :token AND last.state <> 'continued')
    AND id IN (SELECT id FROM skald_workflows WHERE wake_at = :token AND state <> 'continued')

-- name: spare_first
UPDATE skald_workflows AS w SET wake_at = NULL, ended_at = :now WHERE wake_at = :token AND state = 'continued'
    AND EXISTS (SELECT 1 FROM skald_workflows last
                WHERE last.id = w.id AND last.latest = 1 AND (last.ended_at IS NULL OR last.ended_at >= :before))
    AND run = (SELECT run FROM skald_workflows f WHERE id = w.id AND latest = 0 AND {is_continued} ORDER BY run LIMIT 1)

-- name: prune_told
DELETE FROM skald_letters WHERE taken = 0 AND kind BETWEEN 1 AND 4 AND to_id IN (
    SELECT id FROM skald_workflows WHERE wake_at = :token AND ended_at IS NOT NULL AND latest = 1)

-- name: prune_kept
DELETE FROM skald_letters WHERE to_run IS NOT NULL AND taken = 0 AND to_run IN (
    SELECT run FROM skald_workflows WHERE wake_at = :token AND ended_at IS NOT NULL)

-- name: prune_places
DELETE FROM skald_letters WHERE taken = 2 AND kind = 8 AND to_run IN (
    SELECT run FROM skald_workflows WHERE wake_at = :token AND ended_at IS NOT NULL)

-- name: prune
DELETE FROM skald_workflows WHERE wake_at = :token AND ended_at IS NOT NULL

-- name: prune_letters
DELETE FROM skald_letters AS l WHERE time < :before AND (
    (taken = 1 AND outcome IS NOT NULL)
    OR (to_run IS NOT NULL AND NOT EXISTS (
        SELECT 1 FROM skald_workflows w WHERE w.run = l.to_run AND (w.ended_at IS NULL OR (
            l.kind IN (6, 8, 9) AND w.state = 'failed' AND w.latest = 1 AND w.style IS NULL))))
    OR EXISTS (SELECT 1 FROM skald_workflows w WHERE w.id = l.to_id AND w.latest = 1 AND w.ended_at IS NOT NULL)
    OR (time < :long_before AND to_run IS NULL
        AND NOT EXISTS (SELECT 1 FROM skald_workflows w WHERE w.id = l.to_id AND w.latest = 1 AND w.ended_at IS NULL)
        AND NOT EXISTS (SELECT 1 FROM skald_workflows w WHERE w.key = l.to_key AND w.ended_at IS NULL)))

-- name: owned
SELECT run FROM skald_workflows WHERE owner = :owner

-- name: started_with
SELECT 1 AS one FROM skald_workflows f
WHERE id = :id AND workflow = :workflow AND input = :input AND (latest = 1 OR (latest = 0 AND {is_continued})) LIMIT 1

-- name: inputs
SELECT DISTINCT input FROM skald_workflows f
WHERE id = :id AND workflow = :workflow AND (latest = 1 OR (latest = 0 AND {is_continued}))
