-- Guards and writes of units. All of it runs inside BEGIN IMMEDIATE, so what a guard has seen stays true.

-- name: head
SELECT version FROM skald_heads WHERE key = ?1

-- name: heads
SELECT key, version FROM skald_heads WHERE key IN (SELECT value FROM json_each(?1))

-- name: set_head
INSERT INTO skald_heads (key, version) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET version = excluded.version

-- name: fence
SELECT 1 FROM skald_fences WHERE process = ?1

-- name: cursor
SELECT position, version, owner FROM skald_cursors WHERE group_name = ?1 AND origin = ?2 AND lane = ?3

-- name: move_cursor
UPDATE skald_cursors SET position = ?4, message_id = ?5, takeovers = 0
WHERE group_name = ?1 AND origin = ?2 AND lane = ?3

-- name: delivery_owner
SELECT owner FROM skald_deliveries WHERE group_name = ?1 AND handler = ?2 AND origin = ?3 AND position = ?4

-- name: resolve
DELETE FROM skald_deliveries WHERE group_name = ?1 AND handler = ?2 AND origin = ?3 AND position = ?4

-- name: deliver
INSERT OR REPLACE INTO skald_deliveries (
    group_name, handler, origin, lane, state, attempts, due, error, owner,
    position, id, aggregatetype, aggregateid, slot, type, version, time, correlation_id, causation_id, traceparent,
    payload, priority, delay
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)

-- name: mark
SELECT version FROM skald_marks WHERE kind = ?1 AND name = ?2 AND key = ?3

-- name: set_mark
INSERT INTO skald_marks (kind, name, key, version, state, created_at, updated_at, payload, step, correlation_id)
VALUES (?1, ?2, ?3, ?4 + 1, ?5, ?6, ?6, ?7, ?8, ?9)
ON CONFLICT (kind, name, key) DO UPDATE SET
    version = excluded.version, state = excluded.state, updated_at = excluded.updated_at, payload = excluded.payload,
    step = excluded.step

-- name: started
SELECT run, id, key, ended_at IS NULL AS open FROM skald_workflows
WHERE latest = 1 AND id IN (SELECT value FROM json_each(?1))

-- name: keys_in_use
SELECT run, id, key FROM skald_workflows
WHERE key IN (SELECT value FROM json_each(?1)) AND key IS NOT NULL AND ended_at IS NULL

-- name: forget_told
DELETE FROM skald_letters WHERE to_id = ?1 AND taken = 0 AND kind BETWEEN 1 AND 4
AND EXISTS (SELECT 1 FROM skald_workflows WHERE id = ?1 AND latest = 1 AND state <> 'continued')

-- name: supersede
UPDATE skald_workflows SET latest = 0 WHERE id = ?1 AND latest = 1

-- name: start
INSERT INTO skald_workflows (
    run, id, workflow, owner, wake_at, parent, key, input, started_at, latest, state, outcome, ended_at, style,
    correlation
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)

-- name: journal
INSERT INTO skald_journal (run, position, kind, name, digest, occurrence, time, payload)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)

-- name: end
UPDATE skald_workflows SET state = ?2, outcome = ?3, ended_at = ?4, owner = NULL, wake_at = NULL WHERE run = ?1

-- name: rest
UPDATE skald_workflows SET state = ?2, wake_at = ?3, outcome = ?4, owner = NULL, deaths = 0 WHERE run = ?1

-- name: letter
INSERT INTO skald_letters (id, kind, to_id, to_key, to_run, name, payload, time, taken)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, CASE WHEN ?2 IN (8, 10) THEN 2 ELSE 0 END)
ON CONFLICT (id) DO UPDATE SET payload = excluded.payload, time = excluded.time WHERE kind = 7

-- name: take
DELETE FROM skald_letters WHERE id = ?1 AND kind <> 1

-- name: take_update
UPDATE skald_letters SET taken = 1 WHERE id = ?1

-- name: reply
UPDATE skald_letters
SET taken = CASE kind WHEN 8 THEN 0 ELSE 1 END, payload = CASE kind WHEN 8 THEN ?2 ELSE payload END,
    outcome = CASE kind WHEN 8 THEN NULL ELSE ?2 END, kind = CASE kind WHEN 8 THEN 9 ELSE kind END
WHERE id = ?1 AND kind <> 9

-- name: last_position
SELECT position FROM skald_sequence

-- name: draw_positions
UPDATE skald_sequence SET position = ?1

-- name: append_events
INSERT INTO skald_events (
    position, id, aggregatetype, aggregateid, slot, type, version, time, correlation_id, causation_id, traceparent,
    payload, stream, stream_version
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)

-- name: append_messages
INSERT INTO skald_messages (
    position, id, aggregatetype, aggregateid, slot, type, version, time, correlation_id, causation_id, traceparent,
    payload, priority, delay
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
