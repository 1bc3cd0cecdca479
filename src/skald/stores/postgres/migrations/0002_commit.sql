-- compatible: 1
-- The commit of a group of units: one statement, one transaction, set-based. Its name carries a version, so that two
-- neighbouring versions of the code work side by side.
--
-- A unit is a number; every other row of the arguments names the unit it belongs to. A guard that fails puts its unit
-- into bad_unit, and every write leaves out the units in bad_unit. Codes: 1 conflict, 2 busy, 3 fenced, 4 cursor
-- moved, 5 delivery gone. An argument that is NULL is a section that nobody in this group uses.
--
-- The caller's session sets search_path, and keeps the planner from what is right for empty tables only (see
-- skald_apply_1): here those settings would be made and undone with every call.
--
-- Lock order: fences, cursors, deliveries, heads, the announcement. Rows that exist are locked with SKIP LOCKED: one
-- that somebody holds makes its unit busy and nobody waits. Only a key that is *new* can wait, for whoever inserts it
-- at the same time; the caller bounds that by lock_timeout, and then names the keys in `hot`, which are tried one by
-- one. Rejected: savepoints per unit (an xid each), EXISTS as a fence (sees a past state), one counter for all.

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

CREATE FUNCTION skald_commit_1(
    p_committer uuid, p_number bigint,   -- NULL: inside a transaction that somebody else commits
    hot text[],
    f_unit integer[], f_of integer[], f_process text[],          -- f_of: index into the distinct processes
    c_unit integer[], c_group text[], c_origin text[], c_lane integer[], c_owner text[],
    c_position bigint[], c_version bigint[], c_to bigint[], c_to_id text[],
    x_unit integer[], x_group text[], x_handler text[], x_origin text[], x_position bigint[], x_owner text[],
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
                        ELSE 5 END AS code
            FROM unnest(x_unit, x_group, x_handler, x_origin, x_position, x_owner)
                 AS a (unit, grp, handler, origin, position, owner)
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
