-- name: mark
-- ① the last position drawn, ② then the lowest announcement: correlated, so that it cannot be read before ①. The rows
-- below the lower one are read by a later statement, whose snapshot is newer than both.
SELECT s.last_value, (
    SELECT min(((l.classid::bigint & 65535) << 32) | l.objid::bigint)
    FROM pg_locks l
    WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.classid::bigint >> 16 = {schema}.skald_tag()
    AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND s.last_value >= 0
)
FROM (SELECT last_value FROM {schema}.skald_position OFFSET 0) s

-- Each branch is limited by itself: a plan for the sum alone sorts the whole rest of the log for every read.

-- name: read
(SELECT position, id::text, aggregatetype, aggregateid, slot, type, version, time, correlation_id, causation_id,
        traceparent, payload, stream, stream_version, 0, 0::bigint
 FROM {schema}.skald_events WHERE position >= $1 AND position <= $2 ORDER BY position LIMIT $3)
UNION ALL
(SELECT position, id::text, aggregatetype, aggregateid, slot, type, version, time, correlation_id, causation_id,
        traceparent, payload, NULL, NULL, priority, delay
 FROM {schema}.skald_messages WHERE position >= $1 AND position <= $2 ORDER BY position LIMIT $3)
ORDER BY 1 LIMIT $3

-- name: read_types
(SELECT position, id::text, aggregatetype, aggregateid, slot, type, version, time, correlation_id, causation_id,
        traceparent, CASE WHEN type = ANY ($4::text[]) THEN payload END, stream, stream_version, 0, 0::bigint
 FROM {schema}.skald_events WHERE position >= $1 AND position <= $2 ORDER BY position LIMIT $3)
UNION ALL
(SELECT position, id::text, aggregatetype, aggregateid, slot, type, version, time, correlation_id, causation_id,
        traceparent, CASE WHEN type = ANY ($4::text[]) THEN payload END, NULL, NULL, priority, delay
 FROM {schema}.skald_messages WHERE position >= $1 AND position <= $2 ORDER BY position LIMIT $3)
ORDER BY 1 LIMIT $3

-- name: read_anew
SELECT * FROM {schema}.skald_read_1($1, $2, $3, $4, $5)

-- name: read_stream
SELECT position, id::text, aggregatetype, aggregateid, slot, type, version, time, correlation_id, causation_id,
       traceparent, payload, stream, stream_version, 0, 0
FROM {schema}.skald_events
WHERE stream = $1 AND stream_version > $2
ORDER BY stream_version LIMIT $3

-- name: read_stream_backwards
SELECT position, id::text, aggregatetype, aggregateid, slot, type, version, time, correlation_id, causation_id,
       traceparent, payload, stream, stream_version, 0, 0
FROM {schema}.skald_events
WHERE stream = $1 AND stream_version < $2
ORDER BY stream_version DESC LIMIT $3

-- name: versions
SELECT key, version FROM {schema}.skald_heads WHERE key = ANY ($1::text[])

-- There is no index on ids, because no path that must be fast looks one up: this walks the log.
-- name: find
SELECT position, id::text, aggregatetype, aggregateid, slot, type, version, time, correlation_id, causation_id,
       traceparent, payload, stream, stream_version, 0, 0
FROM {schema}.skald_events WHERE id = $1::text::uuid
UNION ALL
SELECT position, id::text, aggregatetype, aggregateid, slot, type, version, time, correlation_id, causation_id,
       traceparent, payload, NULL, NULL, priority, delay
FROM {schema}.skald_messages WHERE id = $1::text::uuid
LIMIT 1

-- name: end
(SELECT position, id::text FROM {schema}.skald_events WHERE position <= $1 ORDER BY position DESC LIMIT 1)
UNION ALL
(SELECT position, id::text FROM {schema}.skald_messages WHERE position <= $1 ORDER BY position DESC LIMIT 1)
ORDER BY 1 DESC LIMIT 1

-- Times are the senders' and do not rise strictly, so there is nothing to search by halves: this walks the log.
-- name: position_at
(SELECT position - 1 FROM {schema}.skald_events WHERE time >= $1 AND position <= $2 ORDER BY position LIMIT 1)
UNION ALL
(SELECT position - 1 FROM {schema}.skald_messages WHERE time >= $1 AND position <= $2 ORDER BY position LIMIT 1)
ORDER BY 1 LIMIT 1

-- name: floor
SELECT value::bigint FROM {schema}.skald_meta WHERE key = 'floor'

-- name: floor_of_types
SELECT max(value::bigint) FROM {schema}.skald_meta
WHERE key = ANY (SELECT 'floor:' || t.name FROM unnest($1::text[]) AS t (name))
