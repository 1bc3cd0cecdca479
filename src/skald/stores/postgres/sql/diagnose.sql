-- name: settings
SELECT current_setting('fsync') AS fsync, current_setting('full_page_writes') AS full_page_writes,
       current_setting('synchronous_commit') AS synchronous_commit, current_setting('autovacuum') AS autovacuum,
       current_setting('server_version_num')::integer AS version,
       current_setting('max_connections')::integer AS allowed,
       (SELECT count(*)::integer FROM pg_stat_activity WHERE backend_type = 'client backend') AS used

-- name: has_log
SELECT to_regclass(quote_ident($1) || '.skald_events') IS NOT NULL

-- The transactions that have announced positions: readers stay at or below the lowest of them. A prepared one has no
-- process any more; the lock on its own transaction id, under the same virtual id, says which it is.
-- name: announcements
SELECT l.pid, p.gid, coalesce(a.usename, p.owner)::text AS owner, a.application_name AS application, a.state, a.query,
       (extract(epoch FROM clock_timestamp() - coalesce(a.xact_start, p.prepared)) * 1000000)::bigint AS age,
       s.last_value - (((l.classid::bigint & 65535) << 32) | l.objid::bigint) AS behind
FROM {schema}.skald_position s
JOIN pg_locks l ON l.locktype = 'advisory' AND l.objsubid = 1 AND l.classid::bigint >> 16 = {schema}.skald_tag()
LEFT JOIN pg_stat_activity a ON a.pid = l.pid
LEFT JOIN pg_locks t ON l.pid IS NULL AND t.pid IS NULL AND t.locktype = 'transactionid'
    AND t.mode = 'ExclusiveLock' AND t.virtualtransaction = l.virtualtransaction
LEFT JOIN pg_prepared_xacts p ON p.transaction = t.transactionid
WHERE l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
ORDER BY behind DESC LIMIT 20

-- Transactions that hold row locks in the tables that guards compare, for longer than a second.
-- name: heads
SELECT DISTINCT a.pid, a.usename::text AS owner, a.application_name AS application, a.state, a.query,
       (extract(epoch FROM clock_timestamp() - a.xact_start) * 1000000)::bigint AS age
FROM pg_locks l
JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.locktype = 'relation' AND l.mode = 'RowExclusiveLock' AND a.pid <> pg_backend_pid()
AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
AND l.relation IN ('{schema}.skald_heads'::regclass, '{schema}.skald_cursors'::regclass)
AND a.xact_start < clock_timestamp() - interval '1 second'
ORDER BY a.pid LIMIT 20
