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

-- name: started
SELECT run, id, key, ended_at IS NULL AS open FROM skald_workflows
WHERE latest = 1 AND id IN (SELECT value FROM json_each(?1))

-- name: keys_in_use
SELECT run, id, key FROM skald_workflows
WHERE key IN (SELECT value FROM json_each(?1)) AND key IS NOT NULL AND ended_at IS NULL

-- name: supersede
UPDATE skald_workflows SET latest = 0 WHERE id = ?1 AND latest = 1

-- name: start
INSERT INTO skald_workflows (
    run, id, workflow, owner, wake_at, parent, key, input, started_at, latest, state, outcome, ended_at
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)

-- name: journal
INSERT INTO skald_journal (run, position, kind, name, digest, occurrence, time, payload)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)

-- name: end
UPDATE skald_workflows SET state = ?2, outcome = ?3, ended_at = ?4, owner = NULL, wake_at = NULL WHERE run = ?1

-- name: rest
UPDATE skald_workflows SET state = ?2, wake_at = ?3, outcome = ?4, owner = NULL WHERE run = ?1

-- name: letter
INSERT INTO skald_letters (id, kind, to_id, to_key, to_run, name, payload, time) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE SET payload = excluded.payload, time = excluded.time WHERE kind = 7

-- name: take
DELETE FROM skald_letters WHERE id = ?1 AND kind <> 1

-- name: take_update
UPDATE skald_letters SET taken = 1 WHERE id = ?1

-- name: reply
UPDATE skald_letters SET taken = 1, outcome = ?2 WHERE id = ?1

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
