"""PURE. The arguments of ``skald_commit_1`` as columns; the first one of each section names the unit."""

from __future__ import annotations

INTS, BIGINTS, SMALLINTS, BOOLEANS, TEXTS, UUIDS, BYTES = (
    "integer", "bigint", "smallint", "boolean", "text", "uuid", "bytea",
)  # fmt: skip
OR_NULL = " or null"
"""Said of what is sent as text; a number and bytes may be missing anyway."""
TEXTS_OR_NULL, UUIDS_OR_NULL = TEXTS + OR_NULL, UUIDS + OR_NULL

FENCES = {"f_unit": INTS, "f_of": INTS, "f_process": TEXTS}
CURSORS = {
    "c_unit": INTS, "c_group": TEXTS, "c_origin": TEXTS, "c_lane": INTS, "c_owner": TEXTS_OR_NULL,
    "c_position": BIGINTS, "c_version": BIGINTS, "c_to": BIGINTS, "c_to_id": TEXTS_OR_NULL,
}  # fmt: skip
RESOLVES = {
    "x_unit": INTS, "x_group": TEXTS, "x_handler": TEXTS, "x_origin": TEXTS, "x_position": BIGINTS,
    "x_owner": TEXTS_OR_NULL, "x_required": BOOLEANS,
}  # fmt: skip
NEW_HEADS = {"n_unit": INTS, "n_key": TEXTS, "n_bump": INTS}
HEADS = {"h_unit": INTS, "h_key": TEXTS, "h_expected": BIGINTS, "h_bump": INTS}
BODY = {
    "id": UUIDS, "topic": TEXTS, "key": TEXTS, "slot": SMALLINTS, "type": TEXTS, "version": INTS, "time": BIGINTS,
    "correlation": TEXTS, "causation": TEXTS_OR_NULL, "traceparent": TEXTS_OR_NULL, "payload": BYTES,
}  # fmt: skip
PLACES = {"r_unit": INTS, "r_kind": INTS, "r_stream": TEXTS_OR_NULL, "r_head": INTS, "r_seq": INTS}
RECORDS = {f"r_{name}": kind for name, kind in BODY.items()}
QUEUEING = {"r_priority": INTS, "r_delay": BIGINTS}
DELIVERIES = {
    "d_unit": INTS, "d_group": TEXTS, "d_handler": TEXTS, "d_origin": TEXTS, "d_lane": INTS, "d_state": TEXTS,
    "d_attempts": INTS, "d_due": BIGINTS, "d_error": TEXTS_OR_NULL, "d_owner": TEXTS_OR_NULL, "d_position": BIGINTS,
    **{f"d_{name}": kind for name, kind in BODY.items()}, "d_priority": INTS, "d_delay": BIGINTS,
}  # fmt: skip
ARGUMENTS = FENCES | CURSORS | RESOLVES | NEW_HEADS | HEADS | PLACES | RECORDS | QUEUEING | DELIVERIES
"""After ``p_committer, p_number, hot``, in the order of the function, with what their columns hold."""

STARTS = {
    "w_unit": INTS, "w_run": UUIDS, "w_id": TEXTS, "w_workflow": TEXTS, "w_owner": TEXTS_OR_NULL, "w_wake_at": BIGINTS,
    "w_parent": UUIDS_OR_NULL, "w_key": TEXTS_OR_NULL, "w_input": BYTES, "w_time": BIGINTS, "w_again": BOOLEANS,
    "w_style": TEXTS_OR_NULL, "w_correlation": TEXTS_OR_NULL, "w_latest": SMALLINTS, "w_state": TEXTS,
    "w_outcome": BYTES, "w_ended_at": BIGINTS,
}  # fmt: skip
JOURNAL = {
    "j_unit": INTS, "j_run": UUIDS, "j_position": INTS, "j_kind": SMALLINTS, "j_name": TEXTS, "j_digest": BYTES,
    "j_occurrence": INTS, "j_time": BIGINTS, "j_payload": BYTES,
}  # fmt: skip
ENDS = {"e_unit": INTS, "e_run": UUIDS, "e_state": TEXTS, "e_outcome": BYTES, "e_time": BIGINTS}
RESTS = {"s_unit": INTS, "s_run": UUIDS, "s_state": TEXTS, "s_wake_at": BIGINTS, "s_note": BYTES}
LETTERS = {
    "l_unit": INTS, "l_id": TEXTS, "l_kind": SMALLINTS, "l_to_id": TEXTS_OR_NULL, "l_to_key": TEXTS_OR_NULL,
    "l_to_run": UUIDS_OR_NULL, "l_name": TEXTS, "l_payload": BYTES, "l_time": BIGINTS,
}  # fmt: skip
TAKEN = {"t_unit": INTS, "t_id": TEXTS}
REPLIES = {"p_unit": INTS, "p_letter": TEXTS, "p_outcome": BYTES}
WORKFLOWS = STARTS | JOURNAL | ENDS | RESTS | LETTERS | TAKEN | REPLIES
"""The fields of the last argument, which is one record."""
MARKS = {
    "m_unit": INTS, "m_kind": TEXTS, "m_name": TEXTS, "m_key": TEXTS, "m_expected": BIGINTS, "m_state": TEXTS,
    "m_time": BIGINTS, "m_payload": BYTES, "m_step": TEXTS_OR_NULL, "m_correlation": TEXTS_OR_NULL,
}  # fmt: skip
"""The fields of the argument before it, which is one record too."""
