"""The processes that run the library."""

from __future__ import annotations

from benchmarks.harness.child import Channel
from benchmarks.sagas.order import application, fulfil, fulfil_in_vain
from benchmarks.workflows.load import serve
from benchmarks.workflows.order import order, place_order
from skald import SagaCompensated


async def run(channel: Channel, url: str) -> None:
    """Starts and runs sagas, and workflows that do the same, as it is told."""
    app = application(url)
    await app.migrate()
    async with app.run():
        await serve(
            channel,
            {
                "workflow": lambda n: place_order.run(order(n), id=f"workflow-{n:08}"),
                "saga": lambda n: fulfil.run(order(n), id=f"saga-{n:08}"),
                "failing saga": _fail,
            },
        )


async def _fail(number: int) -> None:
    try:
        await fulfil_in_vain.run(order(number), id=f"failing-{number:08}")
    except SagaCompensated:
        return
    raise RuntimeError("it was to fail at its third step, and has completed")
