"""Bare PostgreSQL: asyncpg, one statement per group of whatever has gathered, and nothing else.

The ceiling writes the same rows into the library's own migrated tables, ids and indexes included; ``plain`` has one
table with two columns for its key and two more, which is as little as a journal can be.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import asyncpg
import msgspec

from benchmarks.harness.child import Channel
from benchmarks.spine.limits.rows import Row
from benchmarks.workflows.load import bare_group, by_hand, serve
from benchmarks.workflows.order import application

_TABLES = """
CREATE TABLE orders.plain (workflow text, position integer, name text, payload bytea, PRIMARY KEY (workflow, position));
CREATE FUNCTION orders.write_by_hand(
    s_run uuid[], s_id text[], s_workflow text[], s_input bytea[], s_time bigint[],
    j_run uuid[], j_position integer[], j_name text[], j_digest bytea[], j_time bigint[], j_payload bytea[],
    e_outcome bytea[], e_time bigint[], e_run uuid[]
) RETURNS void LANGUAGE plpgsql SET search_path = orders AS $$
BEGIN
    IF s_run IS NOT NULL THEN
        INSERT INTO skald_workflows (run, id, workflow, state, input, started_at)
        SELECT a.run, a.id, a.workflow, 'running', a.input, a.time
        FROM unnest(s_run, s_id, s_workflow, s_input, s_time) AS a (run, id, workflow, input, time);
    END IF;
    IF j_run IS NOT NULL THEN
        INSERT INTO skald_journal (run, position, kind, name, digest, occurrence, time, payload)
        SELECT a.run, a.position, 0, a.name, a.digest, 1, a.time, a.payload
        FROM unnest(j_run, j_position, j_name, j_digest, j_time, j_payload)
             AS a (run, position, name, digest, time, payload);
    END IF;
    IF e_run IS NOT NULL THEN
        UPDATE skald_workflows w SET state = 'completed', outcome = a.outcome, ended_at = a.time
        FROM unnest(e_outcome, e_time, e_run) AS a (outcome, time, run) WHERE w.run = a.run;
    END IF;
END $$;
"""
_WRITE = f"SELECT orders.write_by_hand({', '.join(f'${n}' for n in range(1, 15))})"
_PLAIN = "INSERT INTO orders.plain SELECT * FROM unnest($1::text[], $2::integer[], $3::text[], $4::bytea[])"


async def run(channel: Channel, url: str) -> None:
    await application(url).migrate()
    # As the library's own sessions are set: a plan made for empty tables must stay right when they are full.
    settings = {"jit": "off", "plan_cache_mode": "force_generic_plan", "enable_seqscan": "off"}
    connection: Any = await asyncpg.connect(url, server_settings=settings)
    await connection.execute(_TABLES)

    async def write(rows: Sequence[Row]) -> None:
        """Rows of any kind: a start, a step, or the last step with the end."""
        starts = _columns([row for row in rows if len(row) == 5], 5)
        steps = _columns([row[:6] for row in rows if len(row) >= 6], 6)
        ends = _columns([row[6:] for row in rows if len(row) == 9], 3)
        await connection.fetchrow(_WRITE, *starts, *steps, *ends)

    async def write_plain(rows: Sequence[Row]) -> None:
        await connection.fetchrow(_PLAIN, *zip(*rows, strict=True))

    encode = msgspec.json.Encoder().encode
    hand, plain = by_hand(encode)
    with bare_group(write) as group, bare_group(write_plain) as plain_group:
        await serve(channel, {"order": lambda n: hand(group, n), "plain": lambda n: plain(plain_group, n)})


def _columns(rows: Sequence[Row], count: int) -> Sequence[Any]:
    return list(zip(*rows, strict=True)) if rows else [None] * count
