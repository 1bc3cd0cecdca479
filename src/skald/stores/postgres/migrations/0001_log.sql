-- compatible: 1
-- The log: facts, which are kept, and messages (commands, replies), which are dropped below the slowest cursor.
-- They share one sequence of positions, so that one integer is a cursor. Indexed text is compared bytewise: it is
-- faster, and an upgrade of the system's collations cannot damage the indexes.

-- CACHE 1 and a first value of 0, already drawn: last_value is always a position that has been drawn, which is what
-- an appender announces (see 0002).
CREATE SEQUENCE skald_position MINVALUE 0 START 0 CACHE 1;
SELECT nextval('skald_position');

-- 'floor': retention has deleted positions at or below it. 'compatible': the oldest migration whose code may run.
CREATE TABLE skald_meta (key text PRIMARY KEY, value text NOT NULL);
INSERT INTO skald_meta VALUES ('floor', '0');

CREATE TABLE skald_events (
    position       bigint PRIMARY KEY,
    id             uuid NOT NULL,
    aggregatetype  text NOT NULL,   -- the topic
    aggregateid    text NOT NULL,   -- the key
    slot           smallint NOT NULL,
    type           text NOT NULL,
    version        integer NOT NULL,
    time           bigint NOT NULL,
    correlation_id text NOT NULL,
    causation_id   text,
    traceparent    text,
    payload        bytea NOT NULL,
    stream         text COLLATE "C",
    stream_version bigint
);
CREATE UNIQUE INDEX skald_events_stream ON skald_events (stream, stream_version) WHERE stream IS NOT NULL;

CREATE TABLE skald_messages (
    position       bigint PRIMARY KEY,
    id             uuid NOT NULL,
    aggregatetype  text NOT NULL,
    aggregateid    text NOT NULL,
    slot           smallint NOT NULL,
    type           text NOT NULL,
    version        integer NOT NULL,
    time           bigint NOT NULL,
    correlation_id text NOT NULL,
    causation_id   text,
    traceparent    text,
    payload        bytea NOT NULL,
    priority       integer NOT NULL DEFAULT 0,
    delay          bigint NOT NULL DEFAULT 0
);

-- Versions of streams ('stream:…') and tags ('tag:…'): the rows that guards compare and lock.
CREATE TABLE skald_heads (key text COLLATE "C" PRIMARY KEY, version bigint NOT NULL) WITH (fillfactor = 85);

-- A process may write as an owner as long as its row is here; a takeover deletes it.
CREATE TABLE skald_fences (process text COLLATE "C" PRIMARY KEY);

-- The inbox: how far this service has handled each lane of each origin.
CREATE TABLE skald_cursors (
    group_name text COLLATE "C" NOT NULL,
    origin     text COLLATE "C" NOT NULL,
    lane       integer NOT NULL,
    position   bigint NOT NULL,
    message_id text,               -- of the message at that position; NULL at position 0
    version    bigint NOT NULL DEFAULT 0,   -- raised whenever the lane is changed by anyone but its own run
    owner      text,
    takeovers  integer NOT NULL DEFAULT 0,  -- without progress since
    stopped    text,               -- why the lane does not run (a fork), or NULL
    PRIMARY KEY (group_name, origin, lane)
) WITH (fillfactor = 50);

-- Messages taken over but not finished: delayed, waiting behind one, running long, parked, queued.
CREATE TABLE skald_deliveries (
    group_name     text COLLATE "C" NOT NULL,
    handler        text COLLATE "C" NOT NULL,
    origin         text COLLATE "C" NOT NULL,
    position       bigint NOT NULL,
    lane           integer NOT NULL,
    state          text NOT NULL,
    attempts       integer NOT NULL,
    due            bigint NOT NULL,
    error          text,
    owner          text,
    id             uuid NOT NULL,
    aggregatetype  text NOT NULL,
    aggregateid    text NOT NULL,
    slot           smallint NOT NULL,
    type           text NOT NULL,
    version        integer NOT NULL,
    time           bigint NOT NULL,
    correlation_id text NOT NULL,
    causation_id   text,
    traceparent    text,
    payload        bytea NOT NULL,
    priority       integer NOT NULL,
    delay          bigint NOT NULL,
    PRIMARY KEY (group_name, handler, origin, position)
);
CREATE INDEX skald_deliveries_lane ON skald_deliveries (group_name, origin, lane, state);
CREATE INDEX skald_deliveries_queue ON skald_deliveries (group_name, handler, priority DESC, due)
    WHERE state = 'queued';

-- What is remembered of keys: facts that were handled ('once'), what handlers did that can be undone ('effect'), the
-- states of processes ('process').
CREATE TABLE skald_marks (
    kind           text COLLATE "C" NOT NULL,
    name           text COLLATE "C" NOT NULL,   -- of the handler or the process
    key            text COLLATE "C" NOT NULL,
    version        bigint NOT NULL,
    state          text NOT NULL,
    step           text,            -- where a process is
    payload        bytea NOT NULL,
    correlation_id text,
    created_at     bigint NOT NULL,
    updated_at     bigint NOT NULL,
    PRIMARY KEY (kind, name, key)
) WITH (fillfactor = 85);

-- What was done for a key, undone, or cancelled before it came; and the ids of messages that were refused for it.
CREATE VIEW skald_effects AS
SELECT name AS handler, key, state, convert_from(payload, 'UTF8')::jsonb ->> 'refused' AS refused, created_at, updated_at
FROM skald_marks WHERE kind = 'effect';

-- Answers of the HTTP face, by idempotency key, written with the effect.
CREATE TABLE skald_idempotency (
    scope      text COLLATE "C" NOT NULL,
    key        text COLLATE "C" NOT NULL,
    body_hash  text NOT NULL,
    answer     bytea NOT NULL,
    created_at bigint NOT NULL,
    PRIMARY KEY (scope, key)
);

-- The answer of each group of units, under the number that its committer gave it: who lost the reply finds it here.
CREATE TABLE skald_commits (
    committer  uuid NOT NULL,
    number     bigint NOT NULL,
    bad_unit   integer[],           -- the rejected units and why, see 0002; NULL if there are none
    bad_code   smallint[],
    bad_key    text[],
    bad_actual bigint[],
    lo         bigint,              -- the first and the last position
    hi         bigint,
    positions  bigint[],            -- NULL if they have no gap
    versions   bigint[],
    at         timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (committer, number)
);

-- The processes of each group and their leases, by this database's clock (microseconds since 1970).
CREATE TABLE skald_members (
    id            text COLLATE "C" PRIMARY KEY,
    group_name    text NOT NULL,
    boot_id       text NOT NULL,
    pid_namespace text NOT NULL,
    pid           bigint NOT NULL,
    start_time    bigint NOT NULL,
    expires_at    bigint NOT NULL
) WITH (fillfactor = 50);

-- What was appended, readable by people.
CREATE VIEW skald_log AS
SELECT position, id, aggregatetype, aggregateid, slot, type, version, time, correlation_id, causation_id, traceparent,
       convert_from(payload, 'UTF8') AS payload, stream, stream_version, 0 AS priority, 0::bigint AS delay
FROM skald_events
UNION ALL
SELECT position, id, aggregatetype, aggregateid, slot, type, version, time, correlation_id, causation_id, traceparent,
       convert_from(payload, 'UTF8'), NULL, NULL, priority, delay
FROM skald_messages;

-- The tag of this schema's announcements: 15 bits that no other log in this database uses, as a function of a
-- constant, because that is inlined. Who creates it waits for the others who do, until the transaction ends.
DO $do$
DECLARE
    tag integer := 1 + abs(hashtext(current_schema())) % 32000;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('skald_tag'));
    WHILE EXISTS (SELECT FROM pg_proc WHERE proname = 'skald_tag' AND prosrc = format('SELECT %s::bigint', tag)) LOOP
        tag := tag % 32000 + 1;
    END LOOP;
    EXECUTE format('CREATE FUNCTION skald_tag() RETURNS bigint LANGUAGE sql IMMUTABLE PARALLEL SAFE AS %L',
                   format('SELECT %s::bigint', tag));
END
$do$;

-- A stretch of the log up to its low-water mark, in one go: ① the last position drawn, ② then the lowest announcement
-- (correlated, so that it cannot be read before ①), ③ then the rows below both, by a statement whose snapshot is newer:
-- in a volatile function each has its own. The first row tells ① as position and ② as delay. `known` was below the mark
-- once, and stays readable unless the log is another one.
CREATE FUNCTION skald_read_1(known bigint, first bigint, most integer, upto bigint, wanted text[]) RETURNS TABLE (
    "position" bigint, id text, aggregatetype text, aggregateid text, slot smallint, type text, version integer,
    "time" bigint, correlation_id text, causation_id text, traceparent text, payload bytea, stream text,
    stream_version bigint, priority integer, delay bigint
) LANGUAGE plpgsql VOLATILE SET search_path FROM CURRENT AS $$
#variable_conflict use_column
DECLARE
    drawn bigint;
    announced bigint;
    mark bigint;
BEGIN
    SELECT s.last_value, (
        SELECT min(((l.classid::bigint & 65535) << 32) | l.objid::bigint)
        FROM pg_locks l
        WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.classid::bigint >> 16 = skald_tag()
        AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND s.last_value >= 0
    ) INTO drawn, announced
    FROM (SELECT last_value FROM skald_position OFFSET 0) s;
    mark := least(drawn, announced);
    IF known <= drawn THEN
        mark := greatest(mark, known);
    END IF;
    mark := least(mark, upto);
    RETURN QUERY SELECT
        drawn, NULL::text, NULL::text, NULL::text, NULL::smallint, NULL::text, NULL::integer, NULL::bigint, NULL::text,
        NULL::text, NULL::text, NULL::bytea, NULL::text, NULL::bigint, NULL::integer, announced;
    IF mark < first THEN
        RETURN;
    END IF;
    RETURN QUERY
    (SELECT e.position, e.id::text, e.aggregatetype, e.aggregateid, e.slot, e.type, e.version, e.time,
            e.correlation_id, e.causation_id, e.traceparent,
            CASE WHEN wanted IS NULL OR e.type = ANY (wanted) THEN e.payload END,
            e.stream COLLATE "default", e.stream_version, 0, 0::bigint
     FROM skald_events e WHERE e.position >= first AND e.position <= mark ORDER BY e.position LIMIT most)
    UNION ALL
    (SELECT m.position, m.id::text, m.aggregatetype, m.aggregateid, m.slot, m.type, m.version, m.time,
            m.correlation_id, m.causation_id, m.traceparent,
            CASE WHEN wanted IS NULL OR m.type = ANY (wanted) THEN m.payload END,
            NULL, NULL, m.priority, m.delay
     FROM skald_messages m WHERE m.position >= first AND m.position <= mark ORDER BY m.position LIMIT most)
    ORDER BY 1 LIMIT most;
END
$$;
