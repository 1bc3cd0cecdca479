"""Publishes ``Placed`` messages from ordinary code, and says of each on standard output when it is acknowledged.

    python -m tests.simulation.publisher KEYS COUNT

Started again it goes on behind the last one of each key that the log holds.
"""

from __future__ import annotations

import asyncio
import sys

import msgspec

from skald.message import Record
from tests.simulation.pipeline import app
from tests.simulation.stage import Placed


async def main(keys: list[str], count: int) -> None:
    source = app.service("source")
    async with app.connect("source"):
        records: list[Record] = []
        while found := await source.store.log.read(records[-1].position + 1 if records else 1, 1_000):
            records += found
        done = dict.fromkeys(keys, 0)
        for record in records:
            done[record.key] = max(done[record.key], msgspec.json.decode(record.payload or b"")["n"] + 1)
        for n in range(count):
            if wanted := [Placed(key, n) for key in keys if done[key] <= n]:
                await source.publish(*wanted)
                print(n, flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1].split(","), int(sys.argv[2])))
