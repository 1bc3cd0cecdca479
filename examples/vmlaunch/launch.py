"""The saga: ten steps in strict order, each of which may fail; what was taken by then is freed, last first.

The instance is a row of our own. It is written before anything else, and the compensation of that, which therefore runs
last, makes it FAILED and charges what was used.
"""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path

import msgspec

from examples.vmlaunch.cloud import Cloud, Refused
from skald import NEVER, FailedExecution, Retry, compensation, saga, step, workflows
from skald.retry import Policy

cloud = Cloud(Path(os.environ.get("VMLAUNCH_CLOUD", ".skald/vmlaunch-cloud.jsonl")))

PRICES = {
    "allocate_capacity": 50,
    "attach_interface": 5,
    "attach_storage": 20,
    "assign_address": 10,
    "boot": 15,
    "register_name": 3,
}
"""In cents, for a launch."""
MOST_CORES = 64

PATIENTLY: Policy = {Refused: NEVER, "*": Retry(immediate=1, delays=(1, 5, 30))}


class State(StrEnum):
    LAUNCHING = "LAUNCHING"
    RUNNING = "RUNNING"
    FAILED = "FAILED"


class Request(msgspec.Struct, frozen=True):
    id: str
    owner: str
    cores: int = 2
    disks: int = 1
    groups: tuple[str, ...] = ("default",)
    name: str | None = None
    """For the DNS."""


class Resource(msgspec.Struct, frozen=True):
    kind: str
    name: str


class Machine(msgspec.Struct, frozen=True):
    id: str
    address: str
    name: str | None


# --- what undoes steps ------------------------------------------------------------------------------------------------


@compensation(retry=Retry(delays=(1, 5, 30, 300)), timeout=10)
async def give_back(resource: Resource | None, key: str) -> None:
    """By the key of the step, because a step whose answer was lost has no resource to name."""
    await cloud.free(key)


@compensation(guarantee="exactly_once", transactional=True)
async def fail(request: Request, failed: FailedExecution) -> None:
    used = sum(PRICES.get(one.step, 0) for one in failed.executions if one.state == "done")
    await workflows.transaction().execute(
        "UPDATE instances SET state = :state, charge = :charge WHERE id = :id",
        id=request.id, state=State.FAILED.value, charge=used,
    )  # fmt: skip


# --- the steps --------------------------------------------------------------------------------------------------------


@step(transactional=True, compensate=fail)
async def record(request: Request) -> None:
    await workflows.transaction().execute(
        "INSERT INTO instances (id, owner, state, charge) VALUES (:id, :owner, :state, 0)",
        id=request.id, owner=request.owner, state=State.LAUNCHING.value,
    )  # fmt: skip


@step(retry=NEVER)
async def validate(request: Request) -> None:
    if not 1 <= request.cores <= MOST_CORES:
        raise ValueError(f"cores={request.cores}: from 1 to {MOST_CORES}")


async def _take(request: Request, kind: str) -> Resource:
    return Resource(kind, await cloud.take(workflows.attempt().key, request.id, kind))


@step(retry=PATIENTLY, timeout=10, compensate=give_back)
async def allocate_capacity(request: Request) -> Resource:
    return await _take(request, "capacity")


@step(retry=PATIENTLY, timeout=10, compensate=give_back)
async def attach_interface(request: Request) -> Resource:
    return await _take(request, "interface")


@step(retry=PATIENTLY, timeout=60, compensate=give_back)
async def attach_storage(request: Request) -> Resource:
    return await _take(request, "storage")


@step(retry=PATIENTLY, timeout=10, compensate=give_back)
async def apply_groups(request: Request, interface: Resource) -> Resource:
    return await _take(request, "groups")


@step(retry=PATIENTLY, timeout=10, compensate=give_back)
async def assign_address(request: Request, interface: Resource) -> Resource:
    return await _take(request, "address")


@step(retry=PATIENTLY, timeout=120, compensate=give_back)
async def boot(request: Request, capacity: Resource, storage: Resource) -> Resource:
    return await _take(request, "boot")


@step(retry=PATIENTLY, timeout=30)
async def check_health(request: Request, address: Resource) -> None:
    if "boot" not in cloud.held(request.id):
        raise Refused(f"nobody answers at {address.name}")


@step(retry=PATIENTLY, timeout=30, compensate=give_back)
async def register_name(request: Request, address: Resource) -> Resource:
    return await _take(request, "name")


@step(transactional=True)
async def notify(request: Request) -> None:
    """The instance runs, and its owner is told, or neither."""
    tx = workflows.transaction()
    price = sum(PRICES.values()) - (0 if request.name else PRICES["register_name"])
    await tx.execute(
        "UPDATE instances SET state = :state, charge = :charge WHERE id = :id",
        id=request.id, state=State.RUNNING.value, charge=price,
    )  # fmt: skip
    text = f"{request.owner}: {request.id} is running"
    await tx.execute("INSERT INTO notices (instance, text) VALUES (:id, :text)", id=request.id, text=text)


# --- the saga ---------------------------------------------------------------------------------------------------------


@saga(deadline=600)
async def launch(request: Request) -> Machine:
    await record(request)
    await validate(request)
    capacity = await allocate_capacity(request)
    interface = await attach_interface(request)
    storage = await attach_storage(request)
    await apply_groups(request, interface)
    address = await assign_address(request, interface)
    await boot(request, capacity, storage)
    await check_health(request, address)
    if request.name is not None:
        await register_name(request, address)
    await notify(request)
    return Machine(request.id, address.name, request.name)
