"""The guest's side, as a program: asks how a booking is, or cancels it. It starts no process of the service.

python -m examples.booking.desk status b-1
python -m examples.booking.desk cancel b-1 "my train is on strike"
"""

from __future__ import annotations

import asyncio
import sys

from examples.booking.app import app
from examples.booking.booking import book, cancel, status
from skald.errors import UpdateFailed, WorkflowEnded, WorkflowUnknown


async def ask(what: str, id: str, reason: str = "no reason given") -> str:
    async with app.connect("booking"):
        handle = book.handle(id)
        try:
            if what == "cancel":
                cancellation = await handle.update(cancel, reason)
                return f"cancelled; {cancellation.percent} % of what was paid comes back"
            booking = await handle.query(status)
            return str(booking)
        except (UpdateFailed, WorkflowEnded, WorkflowUnknown) as refused:
            return str(refused)


if __name__ == "__main__":
    print(asyncio.run(ask(*sys.argv[1:])))
