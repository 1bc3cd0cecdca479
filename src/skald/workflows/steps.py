"""Runs steps outside of the workflow's loop: async ones on the process's loop, sync ones in threads; with retries."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from skald import failpoints
from skald.errors import InvalidMessage, UnreadableMessage
from skald.messaging.definition import Attempt
from skald.messaging.invoke import HandlerCancelled, in_thread
from skald.messaging.outcome import describe
from skald.retry import rule_for
from skald.telemetry import StepRetried, emit
from skald.unit import EntryKind
from skald.workflows.context import current_attempt
from skald.workflows.definition import Call
from skald.workflows.instance import Instance
from skald.workflows.replay import encode_failure

THREADS = 64
"""Sync steps that run at once; a thread is made when it is first needed."""


class StepRunner:
    """Of one service."""

    def __init__(self, service: str) -> None:
        self._service = service
        # Not the loop's own executor: steps that hang must not keep it from everybody else.
        self._threads = ThreadPoolExecutor(THREADS, f"skald:{service}:steps")

    def close(self) -> None:
        """Lets no further sync step start; those that run are not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def perform(self, instance: Instance, call: Call) -> tuple[EntryKind, bytes]:
        """All attempts, up to a result or to the last failure."""
        step = call.step
        key = f"{instance.run}:{step.name}:{call.digest.hex()}:{call.occurrence}"
        number = 0
        while True:
            number += 1
            # What an earlier process may have done is not known either.
            current_attempt.set(Attempt(number, key, instance.resumed or number > 1))
            try:
                failpoints.hit("step.before")
                body = step.signature.result.encode(await self._attempt(call))
                failpoints.hit("step.after")
                return EntryKind.STEP_DONE, body
            except (InvalidMessage, UnreadableMessage) as error:
                # Its result cannot be stored, whatever one tries.
                return EntryKind.STEP_FAILED, encode_failure(error)
            except asyncio.CancelledError as cancelled:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                failure: Exception = HandlerCancelled()
                failure.__cause__ = cancelled
            except Exception as raised:
                failure = raised
            delay = rule_for(step.retry, failure).after(number)
            if delay is None:
                return EntryKind.STEP_FAILED, encode_failure(failure)
            names = (self._service, instance.workflow.name, instance.id, step.name)
            emit(StepRetried(*names, number, delay, describe(failure)))
            await asyncio.sleep(delay)

    async def _attempt(self, call: Call) -> Any:
        step = call.step
        args, kwargs = step.signature.decode(call.body)
        if step.timeout is None:
            return await self._call(step.function, step.is_async, args, kwargs)
        async with asyncio.timeout(step.timeout):
            return await self._call(step.function, step.is_async, args, kwargs)

    async def _call(self, function: Callable[..., Any], is_async: bool, args: list[Any], kwargs: dict[str, Any]) -> Any:
        if is_async:
            return await function(*args, **kwargs)
        return await in_thread(self._threads, function, *args, **kwargs)
