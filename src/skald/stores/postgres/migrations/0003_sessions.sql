-- compatible: 1
-- What other sessions, languages and frameworks call inside transactions of their own.

-- A UUIDv7 (RFC 9562): 48 bits of milliseconds, the rest random.
CREATE FUNCTION skald_uuid7() RETURNS uuid LANGUAGE sql VOLATILE AS $$
    SELECT encode(set_bit(set_bit(overlay(
        uuid_send(gen_random_uuid())
        PLACING substring(int8send(floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3) FROM 1 FOR 6
    ), 52, 1), 53, 1), 'hex')::uuid
$$;

-- Appends one event inside the caller's transaction and returns its position. The slot is the first byte of the key's
-- SHA-256, as everywhere. NOTIFY inside a transaction takes a lock of the whole cluster while it commits: switch it
-- off for hot paths with SET skald.notify = off, readers then see the event at their next poll.
CREATE FUNCTION skald_publish(
    type text, key text, payload jsonb, topic text DEFAULT NULL, correlation_id text DEFAULT NULL,
    causation_id text DEFAULT NULL, traceparent text DEFAULT NULL, version integer DEFAULT 1
) RETURNS bigint LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
#variable_conflict use_column
DECLARE
    event uuid := skald_uuid7();
    correlation text := coalesce(skald_publish.correlation_id, event::text);
    trace text := replace(correlation, '-', '');
    drawn bigint;
BEGIN
    IF trace !~ '^[0-9a-f]{32}$' THEN
        trace := left(encode(sha256(convert_to(correlation, 'UTF8')), 'hex'), 32);
    END IF;
    PERFORM skald_announce();
    INSERT INTO skald_events AS s
    VALUES (
        nextval('skald_position'), event,
        coalesce(skald_publish.topic, (SELECT m.value FROM skald_meta m WHERE m.key = 'service'), current_schema()),
        skald_publish.key, get_byte(sha256(convert_to(skald_publish.key, 'UTF8')), 0), skald_publish.type,
        skald_publish.version, floor(extract(epoch FROM clock_timestamp()) * 1000000)::bigint, correlation,
        skald_publish.causation_id,
        coalesce(skald_publish.traceparent, '00-' || trace || '-' || right(replace(event::text, '-', ''), 16) || '-01'),
        convert_to(skald_publish.payload::text, 'UTF8'))
    RETURNING s.position INTO drawn;
    IF coalesce(current_setting('skald.notify', true), 'on') <> 'off' THEN
        PERFORM pg_notify('skald_' || current_schema(), '');
    END IF;
    RETURN drawn;
END
$$;

-- Strict, so that an argument that nobody gives costs nothing: there are over a hundred.
CREATE FUNCTION skald_texts(list jsonb) RETURNS text[] LANGUAGE sql IMMUTABLE STRICT AS $$
    SELECT CASE WHEN jsonb_typeof(list) = 'array' THEN ARRAY(
        SELECT e.value FROM jsonb_array_elements_text(list) WITH ORDINALITY AS e (value, ord) ORDER BY e.ord) END
$$;

CREATE FUNCTION skald_bytes(list jsonb) RETURNS bytea[] LANGUAGE sql IMMUTABLE STRICT AS $$
    SELECT CASE WHEN jsonb_typeof(list) = 'array' THEN ARRAY(
        SELECT decode(e.value, 'base64')
        FROM jsonb_array_elements_text(list) WITH ORDINALITY AS e (value, ord) ORDER BY e.ord) END
$$;

-- Commits units inside the caller's transaction, all or none, and never leaves it broken: what a failed guard had
-- locked is released, and the answer says which it was. The argument holds the arguments of skald_commit_1 by name
-- (in Python: units_to_json), bytes as base64. Apply last: the locks of the heads last until the transaction ends.
CREATE FUNCTION skald_apply_1(units jsonb) RETURNS jsonb LANGUAGE plpgsql
SET search_path FROM CURRENT
SET lock_timeout = '50ms'
-- A plan made while the tables were empty, or made again for every call, costs more than all the rest.
SET plan_cache_mode = force_generic_plan
SET jit = off
SET enable_seqscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
AS $$
DECLARE
    answer record;
    violated text;
    started boolean;
BEGIN
    SELECT * INTO answer FROM skald_commit_1(
        NULL, NULL, NULL,
        skald_texts(units->'f_unit')::integer[], skald_texts(units->'f_of')::integer[],
        skald_texts(units->'f_process'),
        skald_texts(units->'c_unit')::integer[], skald_texts(units->'c_group'), skald_texts(units->'c_origin'),
        skald_texts(units->'c_lane')::integer[], skald_texts(units->'c_owner'),
        skald_texts(units->'c_position')::bigint[], skald_texts(units->'c_version')::bigint[],
        skald_texts(units->'c_to')::bigint[], skald_texts(units->'c_to_id'),
        skald_texts(units->'x_unit')::integer[], skald_texts(units->'x_group'), skald_texts(units->'x_handler'),
        skald_texts(units->'x_origin'), skald_texts(units->'x_position')::bigint[], skald_texts(units->'x_owner'),
        skald_texts(units->'x_required')::boolean[],
        skald_texts(units->'n_unit')::integer[], skald_texts(units->'n_key'), skald_texts(units->'n_bump')::integer[],
        skald_texts(units->'h_unit')::integer[], skald_texts(units->'h_key'),
        skald_texts(units->'h_expected')::bigint[], skald_texts(units->'h_bump')::integer[],
        skald_texts(units->'r_unit')::integer[], skald_texts(units->'r_kind')::integer[],
        skald_texts(units->'r_stream'), skald_texts(units->'r_head')::integer[],
        skald_texts(units->'r_seq')::integer[], skald_texts(units->'r_id')::uuid[], skald_texts(units->'r_topic'),
        skald_texts(units->'r_key'), skald_texts(units->'r_slot')::smallint[], skald_texts(units->'r_type'),
        skald_texts(units->'r_version')::integer[], skald_texts(units->'r_time')::bigint[],
        skald_texts(units->'r_correlation'), skald_texts(units->'r_causation'), skald_texts(units->'r_traceparent'),
        skald_bytes(units->'r_payload'), skald_texts(units->'r_priority')::integer[],
        skald_texts(units->'r_delay')::bigint[],
        skald_texts(units->'d_unit')::integer[], skald_texts(units->'d_group'), skald_texts(units->'d_handler'),
        skald_texts(units->'d_origin'), skald_texts(units->'d_lane')::integer[], skald_texts(units->'d_state'),
        skald_texts(units->'d_attempts')::integer[], skald_texts(units->'d_due')::bigint[],
        skald_texts(units->'d_error'), skald_texts(units->'d_owner'), skald_texts(units->'d_position')::bigint[],
        skald_texts(units->'d_id')::uuid[], skald_texts(units->'d_topic'), skald_texts(units->'d_key'),
        skald_texts(units->'d_slot')::smallint[], skald_texts(units->'d_type'),
        skald_texts(units->'d_version')::integer[], skald_texts(units->'d_time')::bigint[],
        skald_texts(units->'d_correlation'), skald_texts(units->'d_causation'), skald_texts(units->'d_traceparent'),
        skald_bytes(units->'d_payload'), skald_texts(units->'d_priority')::integer[],
        skald_texts(units->'d_delay')::bigint[],
        CASE WHEN units ? 'm_unit' THEN ROW(
            skald_texts(units->'m_unit')::integer[], skald_texts(units->'m_kind'), skald_texts(units->'m_name'),
            skald_texts(units->'m_key'), skald_texts(units->'m_expected')::bigint[], skald_texts(units->'m_state'),
            skald_texts(units->'m_time')::bigint[], skald_bytes(units->'m_payload'), skald_texts(units->'m_step'),
            skald_texts(units->'m_correlation')
        )::skald_mark_writes_1 END,
        CASE WHEN units ?| '{w_unit,j_unit,e_unit,s_unit,l_unit,t_unit,p_unit}' THEN ROW(
            skald_texts(units->'w_unit')::integer[], skald_texts(units->'w_run')::uuid[], skald_texts(units->'w_id'),
            skald_texts(units->'w_workflow'), skald_texts(units->'w_owner'), skald_texts(units->'w_wake_at')::bigint[],
            skald_texts(units->'w_parent')::uuid[], skald_texts(units->'w_key'), skald_bytes(units->'w_input'),
            skald_texts(units->'w_time')::bigint[], skald_texts(units->'w_again')::boolean[],
            skald_texts(units->'w_style'), skald_texts(units->'w_correlation'),
            skald_texts(units->'w_latest')::smallint[], skald_texts(units->'w_state'), skald_bytes(units->'w_outcome'),
            skald_texts(units->'w_ended_at')::bigint[],
            skald_texts(units->'j_unit')::integer[], skald_texts(units->'j_run')::uuid[],
            skald_texts(units->'j_position')::integer[], skald_texts(units->'j_kind')::smallint[],
            skald_texts(units->'j_name'), skald_bytes(units->'j_digest'),
            skald_texts(units->'j_occurrence')::integer[], skald_texts(units->'j_time')::bigint[],
            skald_bytes(units->'j_payload'),
            skald_texts(units->'e_unit')::integer[], skald_texts(units->'e_run')::uuid[], skald_texts(units->'e_state'),
            skald_bytes(units->'e_outcome'), skald_texts(units->'e_time')::bigint[],
            skald_texts(units->'s_unit')::integer[], skald_texts(units->'s_run')::uuid[], skald_texts(units->'s_state'),
            skald_texts(units->'s_wake_at')::bigint[], skald_bytes(units->'s_note'),
            skald_texts(units->'l_unit')::integer[], skald_texts(units->'l_id'),
            skald_texts(units->'l_kind')::smallint[], skald_texts(units->'l_to_id'), skald_texts(units->'l_to_key'),
            skald_texts(units->'l_to_run')::uuid[], skald_texts(units->'l_name'), skald_bytes(units->'l_payload'),
            skald_texts(units->'l_time')::bigint[],
            skald_texts(units->'t_unit')::integer[], skald_texts(units->'t_id'),
            skald_texts(units->'p_unit')::integer[], skald_texts(units->'p_letter'), skald_bytes(units->'p_outcome')
        )::skald_workflow_writes_1 END);
    IF answer.bad_unit <> '{}' THEN
        -- Only an exception undoes what the others wrote and lets go of the locks; plain variables outlive it.
        RAISE EXCEPTION 'rejected' USING ERRCODE = 'SK002';
    END IF;
    RETURN to_jsonb(answer);
EXCEPTION
    WHEN SQLSTATE 'SK002' THEN
        RETURN to_jsonb(answer);
    WHEN SQLSTATE 'SK001' OR lock_not_available OR deadlock_detected THEN
        RETURN jsonb_build_object('bad_unit', jsonb_build_array(0), 'bad_code', jsonb_build_array(2),
            'bad_key', jsonb_build_array(
                coalesce(units->'n_key'->>0, units->'h_key'->>0, 'mark:' || (units->'m_key'->>0),
                         'workflow:' || (units->'w_id'->>0), '?')),
            'bad_actual', jsonb_build_array(NULL));
    WHEN data_exception OR integrity_constraint_violation OR program_limit_exceeded THEN
        GET STACKED DIAGNOSTICS violated = CONSTRAINT_NAME;
        -- A workflow that was started elsewhere after the guard had looked, which will see it the next time.
        started := violated IN ('skald_workflows_id', 'skald_workflows_key');
        RETURN jsonb_build_object('bad_unit', jsonb_build_array(0),
            'bad_code', jsonb_build_array(CASE WHEN started THEN 2 ELSE 9 END),
            'bad_key', jsonb_build_array(CASE WHEN started THEN 'workflow:' || (units->'w_id'->>0) ELSE SQLERRM END),
            'bad_actual', jsonb_build_array(NULL));
    WHEN serialization_failure THEN
        -- The caller's snapshot is older than what somebody has committed: the actual version cannot be seen here.
        RETURN jsonb_build_object('bad_unit', jsonb_build_array(0), 'bad_code', jsonb_build_array(1),
            'bad_key', jsonb_build_array(coalesce(units->'h_key'->>0, units->'n_key'->>0, '?')),
            'bad_actual', jsonb_build_array(-1));
END
$$;
