-- Reading the log. The columns stand in the order of skald.message.Record.

-- name: read_log
SELECT position, id, aggregatetype, aggregateid, slot, type, version, time, correlation_id, causation_id, traceparent,
       payload, stream, stream_version, 0, 0
FROM skald_events WHERE position BETWEEN ?1 AND ?2
UNION ALL
SELECT position, id, aggregatetype, aggregateid, slot, type, version, time, correlation_id, causation_id, traceparent,
       payload, NULL, NULL, priority, delay
FROM skald_messages WHERE position BETWEEN ?1 AND ?2
ORDER BY position LIMIT ?3

-- Nothing if there are messages in this stretch too. Without the merge, a long log is read in nine tenths of the time.
-- name: read_events_alone
SELECT position, id, aggregatetype, aggregateid, slot, type, version, time, correlation_id, causation_id, traceparent,
       payload, stream, stream_version
FROM skald_events WHERE position BETWEEN ?1 AND ?2
  AND NOT EXISTS (SELECT 1 FROM skald_messages WHERE position BETWEEN ?1 AND ?2)
ORDER BY position LIMIT ?3

-- The payloads of types that nobody asked for are not even read from their pages.
-- name: read_log_of_types
SELECT position, id, aggregatetype, aggregateid, slot, type, version, time, correlation_id, causation_id, traceparent,
       CASE WHEN type IN (SELECT value FROM json_each(?4)) THEN payload END, stream, stream_version, 0, 0
FROM skald_events WHERE position BETWEEN ?1 AND ?2
UNION ALL
SELECT position, id, aggregatetype, aggregateid, slot, type, version, time, correlation_id, causation_id, traceparent,
       CASE WHEN type IN (SELECT value FROM json_each(?4)) THEN payload END, NULL, NULL, priority, delay
FROM skald_messages WHERE position BETWEEN ?1 AND ?2
ORDER BY position LIMIT ?3

-- name: read_stream
SELECT position, id, aggregatetype, aggregateid, slot, type, version, time, correlation_id, causation_id, traceparent,
       payload, stream, stream_version
FROM skald_events WHERE stream = ?1 AND stream_version > ?2 ORDER BY stream_version LIMIT ?3

-- name: read_stream_backwards
SELECT position, id, aggregatetype, aggregateid, slot, type, version, time, correlation_id, causation_id, traceparent,
       payload, stream, stream_version
FROM skald_events WHERE stream = ?1 AND stream_version < ?2 ORDER BY stream_version DESC LIMIT ?3

-- name: versions
SELECT key, version FROM skald_heads WHERE key IN (SELECT value FROM json_each(?1))

-- There is no index on ids, because no path that must be fast looks one up: this walks the log.
-- name: find
SELECT position, id, aggregatetype, aggregateid, slot, type, version, time, correlation_id, causation_id, traceparent,
       payload, stream, stream_version, priority, delay
FROM skald_log WHERE id = ?1 LIMIT 1

-- name: end
SELECT position, id FROM (
    SELECT * FROM (SELECT position, id FROM skald_events ORDER BY position DESC LIMIT 1)
    UNION ALL
    SELECT * FROM (SELECT position, id FROM skald_messages ORDER BY position DESC LIMIT 1)
) ORDER BY position DESC LIMIT 1

-- Times are the senders' and do not rise strictly, so there is nothing to search by halves: this walks the log.
-- name: position_at
SELECT position - 1 FROM (
    SELECT * FROM (SELECT position FROM skald_events WHERE time >= ?1 ORDER BY position LIMIT 1)
    UNION ALL
    SELECT * FROM (SELECT position FROM skald_messages WHERE time >= ?1 ORDER BY position LIMIT 1)
) ORDER BY position LIMIT 1

-- name: floor
SELECT value FROM skald_meta WHERE key = 'floor'

-- name: floor_of_types
SELECT max(CAST(m.value AS INTEGER))
FROM skald_meta m WHERE m.key IN (SELECT 'floor:' || t.value FROM json_each(?1) t)

-- name: is_log
SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'skald_events'
