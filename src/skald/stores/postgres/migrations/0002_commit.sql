-- compatible: 1
-- The commit of a group of units: one statement, one transaction, set-based. Its name carries a version, so that two
-- neighbouring versions of the code work side by side.
--
-- A unit is a number; every other row of the arguments names the unit it belongs to. A guard that fails puts its unit
-- into bad_unit, and every write leaves out the units in bad_unit. Codes: 1 conflict, 2 busy, 3 fenced, 4 cursor
-- moved, 5 delivery gone, 6 workflow exists, 7 its key is taken, 8 mark moved. An argument that is NULL is a section that nobody in
-- this group uses.
--
-- The caller's session sets search_path, and keeps the planner from what is right for empty tables only (see
-- skald_apply_1): here those settings would be made and undone with every call.
--
-- Lock order: fences, cursors, deliveries, marks, heads, workflows, the announcement. Rows that exist are locked with SKIP
-- LOCKED: one that somebody holds makes its unit busy and nobody waits. Only a key that is *new* can wait, for whoever
-- inserts it at the same time; the caller bounds that by lock_timeout and then names the keys in `hot`, which are tried
-- one by one. Workflows are not locked when they are compared: of two that start with the same id or key at the same
-- time, the second one to write waits and then fails on the unique index with its whole group, which is run again.
-- Rejected: savepoints per unit (an xid each), EXISTS as a fence (sees a past state), one counter for all.

-- Announces that this transaction is about to draw positions above the last one drawn. Readers stay at or below every
-- announced position; the lock goes with the transaction, after its rows are visible. A prepared one keeps it.
CREATE FUNCTION skald_announce() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    mine text := 'skald.announced_' || skald_tag();
BEGIN
    -- Once per transaction: the first announcement is the lowest. Rolling back to a savepoint undoes both together.
    IF coalesce(current_setting(mine, true), '') <> 'yes' THEN
        PERFORM pg_advisory_xact_lock_shared((skald_tag() << 48) | (SELECT last_value FROM skald_position));
        PERFORM set_config(mine, 'yes', true);
    END IF;
END
$$;

-- Tries the keys that somebody may be inserting right now, each for a millisecond, and returns those that are held.
-- What it leaves behind is a version of 0, which means the same as no row.
CREATE FUNCTION skald_held_1(hot text[]) RETURNS text[] LANGUAGE plpgsql AS $$
DECLARE
    bound text := current_setting('lock_timeout');
    held text[] := '{}';
    k text;
BEGIN
    PERFORM set_config('lock_timeout', '1ms', true);
    FOREACH k IN ARRAY hot LOOP
        CONTINUE WHEN EXISTS (SELECT FROM skald_heads WHERE key = k);
        BEGIN
            INSERT INTO skald_heads (key, version) VALUES (k, 0) ON CONFLICT (key) DO NOTHING;
        EXCEPTION WHEN lock_not_available THEN
            held := held || k;
        END;
    END LOOP;
    PERFORM set_config('lock_timeout', bound, true);
    RETURN held;
END
$$;

-- What a group writes of marks.
CREATE TYPE skald_mark_writes_1 AS (
    m_unit integer[], m_kind text[], m_name text[], m_key text[], m_expected bigint[], m_state text[], m_time bigint[],
    m_payload bytea[], m_step text[], m_correlation text[]
);

-- What a group writes of workflows. A record, because a function has at most 100 arguments.
CREATE TYPE skald_workflow_writes_1 AS (
    w_unit integer[], w_run uuid[], w_id text[], w_workflow text[], w_owner text[], w_wake_at bigint[], w_parent uuid[],
    w_key text[], w_input bytea[], w_time bigint[], w_again boolean[], w_style text[], w_correlation text[], w_latest smallint[],
    w_state text[], w_outcome bytea[], w_ended_at bigint[],                              -- starts, some of which have ended at once
    j_unit integer[], j_run uuid[], j_position integer[], j_kind smallint[], j_name text[], j_digest bytea[],
    j_occurrence integer[], j_time bigint[], j_payload bytea[],          -- the journal
    e_unit integer[], e_run uuid[], e_state text[], e_outcome bytea[], e_time bigint[],     -- ends
    s_unit integer[], s_run uuid[], s_state text[], s_wake_at bigint[], s_note bytea[],     -- rests
    l_unit integer[], l_id text[], l_kind smallint[], l_to_id text[], l_to_key text[], l_to_run uuid[],
    l_name text[], l_payload bytea[], l_time bigint[],                   -- letters
    t_unit integer[], t_id text[],                                       -- letters that were taken
    p_unit integer[], p_letter text[], p_outcome bytea[]                 -- replies
);

CREATE FUNCTION skald_commit_1(
    p_committer uuid, p_number bigint,   -- NULL: inside a transaction that somebody else commits
    hot text[],
    f_unit integer[], f_of integer[], f_process text[],          -- f_of: index into the distinct processes
    c_unit integer[], c_group text[], c_origin text[], c_lane integer[], c_owner text[],
    c_position bigint[], c_version bigint[], c_to bigint[], c_to_id text[],
    x_unit integer[], x_group text[], x_handler text[], x_origin text[], x_position bigint[], x_owner text[],
    x_required boolean[],
    n_unit integer[], n_key text[], n_bump integer[],            -- heads that must be at version 0
    h_unit integer[], h_key text[], h_expected bigint[], h_bump integer[],   -- all other heads; NULL: any version
    r_unit integer[], r_kind integer[], r_stream text[], r_head integer[], r_seq integer[],   -- r_kind 2: message
    r_id uuid[], r_topic text[], r_key text[], r_slot smallint[], r_type text[], r_version integer[], r_time bigint[],
    r_correlation text[], r_causation text[], r_traceparent text[], r_payload bytea[],
    r_priority integer[], r_delay bigint[],                      -- NULL: no record is a message
    d_unit integer[], d_group text[], d_handler text[], d_origin text[], d_lane integer[], d_state text[],
    d_attempts integer[], d_due bigint[], d_error text[], d_owner text[], d_position bigint[],
    d_id uuid[], d_topic text[], d_key text[], d_slot smallint[], d_type text[], d_version integer[], d_time bigint[],
    d_correlation text[], d_causation text[], d_traceparent text[], d_payload bytea[],
    d_priority integer[], d_delay bigint[],
    marks skald_mark_writes_1,
    workflows skald_workflow_writes_1,
    OUT bad_unit integer[], OUT bad_code smallint[], OUT bad_key text[], OUT bad_actual bigint[],
    OUT lo bigint, OUT hi bigint, OUT positions bigint[], OUT versions bigint[]
)
LANGUAGE plpgsql AS $$
DECLARE
    units integer[];
    codes smallint[];
    keys text[];
    actuals bigint[];
    held text[];
    fresh text[];
    ended uuid[];
    wanted bigint;
    written bigint;
BEGIN
    bad_unit := '{}';

    IF f_process IS NOT NULL THEN
        held := ARRAY(SELECT s.process FROM skald_fences s WHERE s.process = ANY (f_process)
                      ORDER BY s.process FOR KEY SHARE SKIP LOCKED);
        IF cardinality(held) < cardinality(f_process) THEN
            SELECT array_agg(a.unit), array_agg('fence:' || f_process[a.of]),
                   array_agg(CASE WHEN EXISTS (SELECT FROM skald_fences s WHERE s.process = f_process[a.of])
                             THEN 2 ELSE 3 END)
            INTO units, keys, codes
            FROM unnest(f_unit, f_of) AS a (unit, of) WHERE f_process[a.of] <> ALL (held);
            bad_unit := bad_unit || units;
            bad_code := bad_code || codes;
            bad_key := bad_key || keys;
            bad_actual := bad_actual || array_fill(NULL::bigint, ARRAY[cardinality(units)]);
        END IF;
    END IF;

    IF c_unit IS NOT NULL THEN
        SELECT array_agg(v.unit), array_agg(v.key), array_agg(v.code), array_agg(v.position)
        INTO units, keys, codes, actuals
        FROM (
            SELECT a.unit, 'cursor:' || a.grp || ':' || a.origin || ':' || a.lane AS key, c.position,
                   CASE WHEN c.position = a.position AND c.version = a.version AND c.owner IS NOT DISTINCT FROM a.owner
                        THEN 0
                        WHEN c.position IS NULL AND EXISTS (
                            SELECT FROM skald_cursors s
                            WHERE s.group_name = a.grp AND s.origin = a.origin AND s.lane = a.lane) THEN 2
                        ELSE 4 END AS code
            FROM unnest(c_unit, c_group, c_origin, c_lane, c_owner, c_position, c_version)
                 AS a (unit, grp, origin, lane, owner, position, version)
            LEFT JOIN LATERAL (
                SELECT s.position, s.version, s.owner FROM skald_cursors s
                WHERE s.group_name = a.grp AND s.origin = a.origin AND s.lane = a.lane
                FOR NO KEY UPDATE SKIP LOCKED
            ) c ON true
            OFFSET 0
        ) v
        WHERE v.code > 0;
        IF units IS NOT NULL THEN
            bad_unit := bad_unit || units;
            bad_code := bad_code || codes;
            bad_key := bad_key || keys;
            bad_actual := bad_actual || actuals;
        END IF;
    END IF;

    IF x_unit IS NOT NULL THEN
        SELECT array_agg(v.unit), array_agg(v.key), array_agg(v.code), array_agg(NULL::bigint)
        INTO units, keys, codes, actuals
        FROM (
            SELECT a.unit, 'delivery:' || a.grp || ':' || a.handler || ':' || a.origin || ':' || a.position AS key,
                   CASE WHEN d.here AND (a.owner IS NULL OR d.owner = a.owner) THEN 0
                        WHEN d.here IS NULL AND EXISTS (
                            SELECT FROM skald_deliveries s WHERE s.group_name = a.grp AND s.handler = a.handler
                            AND s.origin = a.origin AND s.position = a.position) THEN 2
                        WHEN NOT a.required THEN 0
                        ELSE 5 END AS code
            FROM unnest(x_unit, x_group, x_handler, x_origin, x_position, x_owner, x_required)
                 AS a (unit, grp, handler, origin, position, owner, required)
            LEFT JOIN LATERAL (
                SELECT s.owner, true AS here FROM skald_deliveries s
                WHERE s.group_name = a.grp AND s.handler = a.handler
                AND s.origin = a.origin AND s.position = a.position
                FOR UPDATE SKIP LOCKED
            ) d ON true
            OFFSET 0
        ) v
        WHERE v.code > 0;
        IF units IS NOT NULL THEN
            bad_unit := bad_unit || units;
            bad_code := bad_code || codes;
            bad_key := bad_key || keys;
            bad_actual := bad_actual || actuals;
        END IF;
    END IF;

    IF marks.m_unit IS NOT NULL THEN
        SELECT array_agg(v.unit), array_agg(v.key), array_agg(v.code), array_agg(v.version)
        INTO units, keys, codes, actuals
        FROM (
            SELECT a.unit, 'mark:' || a.kind || ':' || a.name || ':' || a.key AS key, m.version,
                   CASE WHEN m.version = a.expected THEN 0
                        WHEN m.version IS NOT NULL THEN 8
                        WHEN EXISTS (SELECT FROM skald_marks s
                                     WHERE s.kind = a.kind AND s.name = a.name AND s.key = a.key) THEN 2
                        WHEN a.expected = 0 THEN 0
                        ELSE 8 END AS code
            FROM unnest(marks.m_unit, marks.m_kind, marks.m_name, marks.m_key, marks.m_expected)
                 AS a (unit, kind, name, key, expected)
            LEFT JOIN LATERAL (
                SELECT s.version FROM skald_marks s
                WHERE s.kind = a.kind AND s.name = a.name AND s.key = a.key
                FOR NO KEY UPDATE SKIP LOCKED
            ) m ON true
            OFFSET 0
        ) v
        WHERE v.code > 0;
        IF units IS NOT NULL THEN
            bad_unit := bad_unit || units;
            bad_code := bad_code || codes;
            bad_key := bad_key || keys;
            bad_actual := bad_actual || actuals;
        END IF;
    END IF;

    IF workflows.w_unit IS NOT NULL THEN
        ended := ARRAY(SELECT a.run FROM unnest(workflows.e_unit, workflows.e_run) AS a (unit, run)
                       WHERE a.unit <> ALL (bad_unit));
        -- OFFSET 0 keeps it a look into the index per start: joined, an empty table is read whole, and so it stays.
        SELECT array_agg(v.unit), array_agg(v.key), array_agg(v.code), array_agg(NULL::bigint)
        INTO units, keys, codes, actuals
        FROM (
            SELECT a.unit, 6 AS code, a.id AS key
            FROM unnest(workflows.w_unit, workflows.w_id, workflows.w_again) AS a (unit, id, again)
            CROSS JOIN LATERAL (
                SELECT w.run, w.ended_at FROM skald_workflows w WHERE w.id = a.id AND w.latest = 1 OFFSET 0) s
            WHERE NOT (a.again AND (s.ended_at IS NOT NULL OR s.run = ANY (ended)))
            UNION ALL
            SELECT a.unit, 7, jsonb_build_array(a.key, s.id)::text
            FROM unnest(workflows.w_unit, workflows.w_key) AS a (unit, key)
            CROSS JOIN LATERAL (
                SELECT w.run, w.id FROM skald_workflows w WHERE w.key = a.key AND w.ended_at IS NULL OFFSET 0) s
            WHERE s.run <> ALL (ended)
        ) v;
        IF units IS NOT NULL THEN
            bad_unit := bad_unit || units;
            bad_code := bad_code || codes;
            bad_key := bad_key || keys;
            bad_actual := bad_actual || actuals;
        END IF;
    END IF;

    IF hot IS NOT NULL THEN
        held := skald_held_1(hot);
        SELECT array_agg(a.unit), array_agg(a.key), array_agg(2), array_agg(NULL::bigint)
        INTO units, keys, codes, actuals
        FROM unnest(n_unit || h_unit, n_key || h_key) AS a (unit, key) WHERE a.key = ANY (held);
        IF units IS NOT NULL THEN
            bad_unit := bad_unit || units;
            bad_code := bad_code || codes;
            bad_key := bad_key || keys;
            bad_actual := bad_actual || actuals;
        END IF;
    END IF;

    -- New keys are inserted without looking first; those that exist already join the ones to be compared.
    IF n_key IS NOT NULL THEN
        WITH won AS (
            INSERT INTO skald_heads AS s (key, version)
            SELECT a.key, a.bump FROM unnest(n_unit, n_key, n_bump) AS a (unit, key, bump)
            WHERE a.unit <> ALL (bad_unit)
            ON CONFLICT (key) DO NOTHING RETURNING s.key
        )
        SELECT coalesce(array_agg(won.key), '{}') INTO fresh FROM won;
        IF cardinality(fresh) < cardinality(n_key) THEN
            SELECT h_unit || array_agg(a.unit), h_key || array_agg(a.key),
                   h_expected || array_agg(0::bigint), h_bump || array_agg(a.bump)
            INTO h_unit, h_key, h_expected, h_bump
            FROM unnest(n_unit, n_key, n_bump) AS a (unit, key, bump)
            WHERE a.unit <> ALL (bad_unit) AND a.key <> ALL (fresh);
        END IF;
    END IF;

    IF h_key IS NOT NULL THEN
        SELECT array_agg(v.version), array_agg(v.unit) FILTER (WHERE v.code > 0),
               array_agg(v.key) FILTER (WHERE v.code > 0), array_agg(v.code) FILTER (WHERE v.code > 0),
               array_agg(coalesce(v.version, 0)) FILTER (WHERE v.code > 0)
        INTO versions, units, keys, codes, actuals
        FROM (
            SELECT a.unit, a.key, h.version,
                   CASE WHEN h.version = a.expected OR (a.expected IS NULL AND h.version IS NOT NULL) THEN 0
                        WHEN h.version IS NOT NULL THEN 1
                        WHEN EXISTS (SELECT FROM skald_heads s WHERE s.key = a.key) THEN 2
                        WHEN coalesce(a.expected, 0) = 0 THEN 0
                        ELSE 1 END AS code
            FROM unnest(h_unit, h_key, h_expected) AS a (unit, key, expected)
            LEFT JOIN LATERAL (
                SELECT s.version FROM skald_heads s WHERE s.key = a.key FOR NO KEY UPDATE SKIP LOCKED
            ) h ON true
            OFFSET 0
        ) v;
        IF units IS NOT NULL THEN
            bad_unit := bad_unit || units;
            bad_code := bad_code || codes;
            bad_key := bad_key || keys;
            bad_actual := bad_actual || actuals;
        END IF;

        SELECT count(*) INTO wanted FROM unnest(h_unit, versions) AS a (unit, version)
        WHERE a.version IS NULL AND a.unit <> ALL (bad_unit);
        IF wanted > 0 THEN
            INSERT INTO skald_heads AS s (key, version)
            SELECT a.key, a.bump FROM unnest(h_unit, h_key, h_bump, versions) AS a (unit, key, bump, version)
            WHERE a.version IS NULL AND a.unit <> ALL (bad_unit)
            ORDER BY a.key
            ON CONFLICT (key) DO NOTHING;
            GET DIAGNOSTICS written = ROW_COUNT;
            IF written < wanted THEN
                RAISE EXCEPTION 'a key was created meanwhile: run the group again' USING ERRCODE = 'SK001';
            END IF;
        END IF;
        UPDATE skald_heads s SET version = a.version + a.bump
        FROM unnest(h_unit, h_key, h_bump, versions) AS a (unit, key, bump, version)
        WHERE s.key = a.key AND a.bump > 0 AND a.version IS NOT NULL AND a.unit <> ALL (bad_unit);
    END IF;

    IF bad_unit <> '{}' AND fresh <> '{}' THEN
        DELETE FROM skald_heads s USING unnest(n_unit, n_key) AS a (unit, key)
        WHERE s.key = a.key AND a.unit = ANY (bad_unit) AND a.key = ANY (fresh);
    END IF;

    IF marks.m_unit IS NOT NULL THEN
        SELECT count(*) INTO wanted FROM unnest(marks.m_unit, marks.m_expected) AS a (unit, expected)
        WHERE a.expected = 0 AND a.unit <> ALL (bad_unit);
        IF wanted > 0 THEN
            INSERT INTO skald_marks AS s (
                kind, name, key, version, state, step, payload, correlation_id, created_at, updated_at)
            SELECT a.kind, a.name, a.key, 1, a.state, a.step, a.payload, a.correlation, a.time, a.time
            FROM unnest(marks.m_unit, marks.m_kind, marks.m_name, marks.m_key, marks.m_expected, marks.m_state,
                        marks.m_time, marks.m_payload, marks.m_step, marks.m_correlation)
                 AS a (unit, kind, name, key, expected, state, time, payload, step, correlation)
            WHERE a.expected = 0 AND a.unit <> ALL (bad_unit)
            ORDER BY a.kind, a.name, a.key
            ON CONFLICT (kind, name, key) DO NOTHING;
            GET DIAGNOSTICS written = ROW_COUNT;
            IF written < wanted THEN
                RAISE EXCEPTION 'a mark was made meanwhile: run the group again' USING ERRCODE = 'SK001';
            END IF;
        END IF;
        UPDATE skald_marks s
        SET version = a.expected + 1, state = a.state, step = a.step, payload = a.payload, updated_at = a.time
        FROM unnest(marks.m_unit, marks.m_kind, marks.m_name, marks.m_key, marks.m_expected, marks.m_state,
                    marks.m_time, marks.m_payload, marks.m_step)
             AS a (unit, kind, name, key, expected, state, time, payload, step)
        WHERE a.expected > 0 AND s.kind = a.kind AND s.name = a.name AND s.key = a.key AND a.unit <> ALL (bad_unit);
    END IF;

    IF workflows.e_unit IS NOT NULL THEN
        UPDATE skald_workflows s
        SET state = a.state, outcome = a.outcome, ended_at = a.time, owner = NULL, wake_at = NULL
        FROM unnest(workflows.e_unit, workflows.e_run, workflows.e_state, workflows.e_outcome, workflows.e_time)
             AS a (unit, run, state, outcome, time)
        WHERE s.run = a.run AND a.unit <> ALL (bad_unit);
    END IF;
    IF workflows.w_unit IS NOT NULL THEN
        -- Only a run that has ended: one that was started after the comparison must stop this group.
        IF true = ANY (workflows.w_again) THEN
            DELETE FROM skald_letters s
            WHERE s.taken = 0 AND s.kind BETWEEN 1 AND 4 AND s.to_id = ANY (ARRAY(
                SELECT a.id FROM unnest(workflows.w_unit, workflows.w_id, workflows.w_again) AS a (unit, id, again)
                CROSS JOIN LATERAL (
                    SELECT w.state FROM skald_workflows w WHERE w.id = a.id AND w.latest = 1 OFFSET 0) l
                WHERE a.again AND a.unit <> ALL (bad_unit) AND l.state <> 'continued'));
            UPDATE skald_workflows s SET latest = 0
            WHERE s.ended_at IS NOT NULL AND s.run = ANY (ARRAY(
                SELECT l.run FROM unnest(workflows.w_unit, workflows.w_id, workflows.w_again) AS a (unit, id, again)
                CROSS JOIN LATERAL (
                    SELECT w.run FROM skald_workflows w WHERE w.id = a.id AND w.latest = 1 OFFSET 0) l
                WHERE a.again AND a.unit <> ALL (bad_unit)));
        END IF;
        INSERT INTO skald_workflows AS s (
            run, id, latest, workflow, style, correlation, state, owner, wake_at, parent, key, input, outcome, started_at,
            ended_at)
        SELECT a.run, a.id, a.latest, a.workflow, a.style, a.correlation, a.state, a.owner, a.wake_at, a.parent, a.key, a.input,
               a.outcome, a.time, a.ended_at
        FROM unnest(workflows.w_unit, workflows.w_run, workflows.w_id, workflows.w_latest, workflows.w_workflow,
                    workflows.w_state, workflows.w_owner, workflows.w_wake_at, workflows.w_parent, workflows.w_key,
                    workflows.w_input, workflows.w_outcome, workflows.w_time, workflows.w_ended_at,
                    workflows.w_style, workflows.w_correlation)
             AS a (unit, run, id, latest, workflow, state, owner, wake_at, parent, key, input, outcome, time, ended_at,
                   style, correlation)
        WHERE a.unit <> ALL (bad_unit)
        ORDER BY a.id;
    END IF;
    IF workflows.j_unit IS NOT NULL THEN
        INSERT INTO skald_journal AS s (run, position, kind, name, digest, occurrence, time, payload)
        SELECT a.run, a.position, a.kind, a.name, a.digest, a.occurrence, a.time, a.payload
        FROM unnest(workflows.j_unit, workflows.j_run, workflows.j_position, workflows.j_kind, workflows.j_name,
                    workflows.j_digest, workflows.j_occurrence, workflows.j_time, workflows.j_payload)
             AS a (unit, run, position, kind, name, digest, occurrence, time, payload)
        WHERE a.unit <> ALL (bad_unit);
    END IF;
    IF workflows.s_unit IS NOT NULL THEN
        UPDATE skald_workflows s SET state = a.state, wake_at = a.wake_at, outcome = a.note, owner = NULL, deaths = 0
        FROM unnest(workflows.s_unit, workflows.s_run, workflows.s_state, workflows.s_wake_at, workflows.s_note)
             AS a (unit, run, state, wake_at, note)
        WHERE s.run = a.run AND a.unit <> ALL (bad_unit);
    END IF;
    IF workflows.l_unit IS NOT NULL THEN
        INSERT INTO skald_letters AS s (id, kind, to_id, to_key, to_run, name, payload, time, taken)
        SELECT DISTINCT ON (a.id) a.id, a.kind, a.to_id, a.to_key, a.to_run, a.name, a.payload, a.time,
               CASE WHEN a.kind IN (8, 10) THEN 2 ELSE 0 END
        FROM unnest(workflows.l_unit, workflows.l_id, workflows.l_kind, workflows.l_to_id, workflows.l_to_key,
                    workflows.l_to_run, workflows.l_name, workflows.l_payload, workflows.l_time) WITH ORDINALITY
             AS a (unit, id, kind, to_id, to_key, to_run, name, payload, time, ord)
        WHERE a.unit <> ALL (bad_unit)
        ORDER BY a.id, CASE WHEN a.kind = 7 THEN -a.ord ELSE a.ord END   -- the last of a progress, else the first
        ON CONFLICT (id) DO UPDATE SET payload = excluded.payload, time = excluded.time WHERE s.kind = 7;
    END IF;
    IF workflows.t_unit IS NOT NULL THEN
        DELETE FROM skald_letters s USING unnest(workflows.t_unit, workflows.t_id) AS a (unit, id)
        WHERE s.id = a.id AND s.kind <> 1 AND a.unit <> ALL (bad_unit);
        UPDATE skald_letters s SET taken = 1 FROM unnest(workflows.t_unit, workflows.t_id) AS a (unit, id)
        WHERE s.id = a.id AND a.unit <> ALL (bad_unit);
    END IF;
    IF workflows.p_unit IS NOT NULL THEN
        -- Of several answers to one call the first one counts.
        UPDATE skald_letters s
        SET taken = CASE s.kind WHEN 8 THEN 0 ELSE 1 END,
            payload = CASE s.kind WHEN 8 THEN a.outcome ELSE s.payload END,
            outcome = CASE s.kind WHEN 8 THEN NULL ELSE a.outcome END, kind = CASE s.kind WHEN 8 THEN 9 ELSE s.kind END
        FROM (SELECT DISTINCT ON (r.letter) r.letter, r.outcome
              FROM unnest(workflows.p_unit, workflows.p_letter, workflows.p_outcome) WITH ORDINALITY
                   AS r (unit, letter, outcome, ord)
              WHERE r.unit <> ALL (bad_unit)
              ORDER BY r.letter, r.ord) AS a
        WHERE s.id = a.letter AND s.kind <> 9;
    END IF;

    -- Everything is locked and compared: only now may positions be drawn, and only after the announcement. The
    -- positions of rejected units are left out.
    IF r_unit IS NOT NULL
       AND (bad_unit = '{}' OR EXISTS (SELECT FROM unnest(r_unit) AS a (unit) WHERE a.unit <> ALL (bad_unit))) THEN
        IF p_number IS NULL THEN
            PERFORM skald_announce();
        ELSE
            PERFORM pg_advisory_xact_lock_shared((skald_tag() << 48) | (SELECT last_value FROM skald_position));
        END IF;
        positions := ARRAY(SELECT nextval('skald_position') FROM generate_series(1, cardinality(r_unit)));
        INSERT INTO skald_events AS s
        SELECT positions[a.ord], a.id, a.topic, a.key, a.slot, a.type, a.version, a.time,
               a.correlation, a.causation, a.traceparent, a.payload, a.stream,
               CASE WHEN a.stream IS NOT NULL THEN coalesce(versions[a.head], 0) + a.seq END
        FROM unnest(r_unit, r_kind, r_stream, r_head, r_seq, r_id, r_topic, r_key, r_slot, r_type, r_version, r_time,
                    r_correlation, r_causation, r_traceparent, r_payload) WITH ORDINALITY
             AS a (unit, kind, stream, head, seq, id, topic, key, slot, type, version, time,
                   correlation, causation, traceparent, payload, ord)
        WHERE a.kind IS DISTINCT FROM 2 AND a.unit <> ALL (bad_unit);
        IF r_priority IS NOT NULL THEN
            INSERT INTO skald_messages AS s
            SELECT positions[a.ord], a.id, a.topic, a.key, a.slot, a.type, a.version, a.time,
                   a.correlation, a.causation, a.traceparent, a.payload, a.priority, a.delay
            FROM unnest(r_unit, r_kind, r_id, r_topic, r_key, r_slot, r_type, r_version, r_time,
                        r_correlation, r_causation, r_traceparent, r_payload, r_priority, r_delay) WITH ORDINALITY
                 AS a (unit, kind, id, topic, key, slot, type, version, time,
                       correlation, causation, traceparent, payload, priority, delay, ord)
            WHERE a.kind = 2 AND a.unit <> ALL (bad_unit);
        END IF;
        lo := positions[1];
        hi := positions[cardinality(positions)];
        IF hi - lo + 1 = cardinality(positions) THEN
            positions := NULL;
        END IF;
    END IF;

    IF x_unit IS NOT NULL THEN
        DELETE FROM skald_deliveries s
        USING unnest(x_unit, x_group, x_handler, x_origin, x_position) AS a (unit, grp, handler, origin, position)
        WHERE s.group_name = a.grp AND s.handler = a.handler AND s.origin = a.origin AND s.position = a.position
        AND a.unit <> ALL (bad_unit);
    END IF;
    IF d_unit IS NOT NULL THEN
        INSERT INTO skald_deliveries AS s
        SELECT DISTINCT ON (a.grp, a.handler, a.origin, a.position)
               a.grp, a.handler, a.origin, a.position, a.lane, a.state, a.attempts, a.due, a.error, a.owner,
               a.id, a.topic, a.key, a.slot, a.type, a.version, a.time, a.correlation, a.causation, a.traceparent,
               a.payload, a.priority, a.delay
        FROM unnest(d_unit, d_group, d_handler, d_origin, d_lane, d_state, d_attempts, d_due, d_error, d_owner,
                    d_position, d_id, d_topic, d_key, d_slot, d_type, d_version, d_time, d_correlation, d_causation,
                    d_traceparent, d_payload, d_priority, d_delay) WITH ORDINALITY
             AS a (unit, grp, handler, origin, lane, state, attempts, due, error, owner, position, id, topic, key,
                   slot, type, version, time, correlation, causation, traceparent, payload, priority, delay, ord)
        WHERE a.unit <> ALL (bad_unit)
        ORDER BY a.grp, a.handler, a.origin, a.position, a.ord DESC   -- of two, the last one stays
        ON CONFLICT (group_name, handler, origin, position) DO UPDATE SET
            lane = excluded.lane, state = excluded.state, attempts = excluded.attempts, due = excluded.due,
            error = excluded.error, owner = excluded.owner, id = excluded.id, aggregatetype = excluded.aggregatetype,
            aggregateid = excluded.aggregateid, slot = excluded.slot, type = excluded.type,
            version = excluded.version, time = excluded.time, correlation_id = excluded.correlation_id,
            causation_id = excluded.causation_id, traceparent = excluded.traceparent, payload = excluded.payload,
            priority = excluded.priority, delay = excluded.delay;
    END IF;
    IF c_unit IS NOT NULL THEN
        UPDATE skald_cursors s SET position = a.target, message_id = a.target_id,
               takeovers = CASE WHEN a.target > s.position THEN 0 ELSE s.takeovers END
        FROM unnest(c_unit, c_group, c_origin, c_lane, c_to, c_to_id) AS a (unit, grp, origin, lane, target, target_id)
        WHERE s.group_name = a.grp AND s.origin = a.origin AND s.lane = a.lane AND a.unit <> ALL (bad_unit);
    END IF;

    -- Last, and always: a second run under the same number fails here and undoes itself.
    IF p_number IS NOT NULL THEN
        INSERT INTO skald_commits AS s VALUES (
            p_committer, p_number, nullif(bad_unit, '{}'), bad_code, bad_key, bad_actual, lo, hi, positions, versions);
    END IF;
END
$$;
