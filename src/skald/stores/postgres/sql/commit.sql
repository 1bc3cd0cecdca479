-- name: commit
SELECT * FROM {schema}.skald_commit_1({arguments}, {marks}, {workflows})

-- name: marks
ROW({columns})::{schema}.skald_mark_writes_1

-- name: workflows
ROW({columns})::{schema}.skald_workflow_writes_1

-- name: apply
SELECT {schema}.skald_apply_1($1::text::jsonb)::text

-- name: answer
SELECT coalesce(bad_unit, '{}') AS bad_unit, bad_code, bad_key, bad_actual, lo, hi, positions, versions
FROM {schema}.skald_commits WHERE committer = $1 AND number = $2

-- name: forget
DELETE FROM {schema}.skald_commits WHERE committer = $1 AND number < $2

-- name: forget_old
DELETE FROM {schema}.skald_commits WHERE at < now() - interval '1 day'

-- name: settings
SELECT current_setting('fsync') AS fsync, current_setting('full_page_writes') AS full_page_writes,
       current_setting('synchronous_commit') AS synchronous_commit, current_setting('lock_timeout') AS lock_timeout

-- name: now
SELECT floor(extract(epoch FROM clock_timestamp()) * 1000000)::bigint
