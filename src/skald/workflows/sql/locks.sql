-- Portable SQL on locks, which are letters: 10 asks for the lock of its name, 11 waits for it, 12 has it. There are
-- indexes for kinds above 9, and one of them says that each name has one holder.

-- One process decides at a time: two that do not see each other's decisions could let two sagas wait for each other.
-- Nobody waits for one that stands still with it.
-- name: turn
SELECT key FROM skald_heads WHERE key = 'locks' {for_update}

-- name: claims
SELECT l.id AS ticket, l.name AS key, l.kind, l.time, CAST(l.to_run AS TEXT) AS run, l.payload,
       coalesce(w.id, '') AS saga, coalesce(w.workflow, '') AS name,
       CASE WHEN w.run IS NULL OR w.ended_at IS NOT NULL THEN 0 ELSE 1 END AS open
FROM skald_letters l LEFT JOIN skald_workflows w ON w.run = l.to_run
WHERE l.kind > 9 AND (l.kind < 12 OR l.name IN (SELECT o.name FROM skald_letters o WHERE o.kind > 9 AND o.kind < 12))

-- name: drop
DELETE FROM skald_letters WHERE id = :ticket AND kind > 9

-- Of one that gives up in this moment nothing is found.
-- name: grant
UPDATE skald_letters SET kind = 12, time = :now WHERE id = :ticket AND kind IN (10, 11)

-- name: queue
UPDATE skald_letters SET kind = 11, time = :time WHERE id = :ticket AND kind = 10

-- The letter itself becomes the answer, so that asking once more does nothing.
-- name: answer
UPDATE skald_letters SET kind = 9, taken = 0, name = :call, payload = :answer WHERE id = :ticket AND kind = 10
