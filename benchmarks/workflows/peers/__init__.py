"""The peers: the same order workflow as users of DBOS and of Restate write it.

Both come from their package registries, into a virtual environment and a folder of their own under ``.skald/peers``,
when they are first asked for. What runs on that Python (``on_dbos``, ``on_restate``, ``callers``) imports nothing of
ours but the harness, which needs the standard library alone.
"""
