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
SELECT id FROM skald_workflows WHERE id IN (SELECT value FROM json_each(?1))

-- name: start
INSERT INTO skald_workflows (run, id, workflow, state, owner, input, started_at)
VALUES (?1, ?2, ?3, 'running', ?4, ?5, ?6)

-- name: journal
INSERT INTO skald_journal (run, position, kind, name, digest, occurrence, time, payload)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)

-- name: end
UPDATE skald_workflows SET state = ?2, outcome = ?3, ended_at = ?4, owner = NULL WHERE run = ?1

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
