"""Launching machines: each of the steps fails in turn, and what is stored says that nothing is left."""

from __future__ import annotations

import pytest

from examples.vmlaunch import launch as launching
from examples.vmlaunch.app import vmlaunch
from examples.vmlaunch.cloud import Cloud, Refused
from examples.vmlaunch.launch import PRICES, Machine, Request, launch
from skald import SagaCompensated
from skald.testing.sagas import SagaScenario, each_compensation, each_step
from skald.testing.workflows import Lab, crash_everywhere

REQUEST = Request("vm-1", "ada", name="ada.example.com")
LAUNCH = SagaScenario(launch, vmlaunch)
STEPS = [
    "record", "validate", "allocate_capacity", "attach_interface", "attach_storage", "apply_groups", "assign_address",
    "boot", "check_health", "register_name", "notify",
]  # fmt: skip
TAKING = {
    "allocate_capacity": "capacity", "attach_interface": "interface", "attach_storage": "storage",
    "apply_groups": "groups", "assign_address": "address", "boot": "boot", "register_name": "name",
}  # fmt: skip
INSTANCES, NOTICES = "SELECT id, state, charge FROM instances", "SELECT text FROM notices"


@pytest.fixture(autouse=True)
def cloud(monkeypatch: pytest.MonkeyPatch) -> Cloud:
    cloud = Cloud()
    monkeypatch.setattr(launching, "cloud", cloud)
    return cloud


@pytest.mark.parametrize("lost", [False, True], ids=["refused", "lost"])
def test_a_failure_at_any_step_frees_what_was_taken(cloud: Cloud, lost: bool) -> None:
    """``refused``: it was not done. ``lost``: it was, and nobody was told."""
    failing = []
    for failed in each_step(LAUNCH.when(REQUEST), lost=lost):
        charge = sum(PRICES.get(name, 0) for name in failed.done)
        instances = [("vm-1", "FAILED", charge)] if "record" in failed.done else []
        failed.then(failed=failed.failing, rows={INSTANCES: instances, NOTICES: []})
        taken = [TAKING[name] for name in (failed.steps if lost else failed.done) if name in TAKING]
        assert cloud.taken("vm-1") == taken
        assert cloud.freed("vm-1") == taken[::-1]
        assert cloud.held("vm-1") == []
        cloud.entries.clear()
        failing.append(failed.failing)
    assert failing == STEPS


def test_whatever_cannot_be_freed_waits_for_a_person_and_is_freed_then(cloud: Cloud) -> None:
    launching = LAUNCH.fail("notify").when(REQUEST)
    for failed in each_compensation(launching):
        failed.then(status="COMPENSATION_FAILED", asks=failed.failing)
        cloud.entries.clear()
        launching.fail_compensation(failed.failing).decide("retry", failed.failing).then(failed="notify")
        assert cloud.freed("vm-1") == list(TAKING.values())[::-1]
        cloud.entries.clear()


@pytest.mark.parametrize("name", ["ada.example.com", None])
def test_a_machine_is_launched_with_a_name_where_one_is_asked_for(cloud: Cloud, name: str | None) -> None:
    instance = ("vm-1", "RUNNING", 103 if name else 100)
    LAUNCH.when(Request("vm-1", "ada", name=name)).then(
        Machine("vm-1", "address-of-vm-1", name), rows={INSTANCES: [instance], NOTICES: ["ada: vm-1 is running"]}
    )
    assert cloud.held("vm-1") == [kind for kind in TAKING.values() if name or kind != "name"]


def test_what_makes_no_sense_takes_nothing(cloud: Cloud) -> None:
    LAUNCH.when(Request("vm-1", "ada", cores=1000)).then(
        error=ValueError("cores=1000: from 1 to 64"), rows={INSTANCES: [("vm-1", "FAILED", 0)]}
    )
    assert cloud.entries == []


async def test_who_comes_late_with_a_key_that_was_freed_is_refused(cloud: Cloud) -> None:
    await cloud.free("key")
    with pytest.raises(Refused, match="was given up"):
        await cloud.take("key", "vm-1", "address")
    assert cloud.held("vm-1") == []


async def test_a_crash_at_every_commit_of_a_launch_that_fails_late(cloud: Cloud) -> None:
    async def scenario(lab: Lab) -> tuple[str, str, int]:
        lab.mock(launching.register_name, Refused("the zone is closed"))
        with pytest.raises(SagaCompensated, match="register_name has failed"):
            await lab.result(await launch.start(REQUEST, id="vm-1"))
        assert cloud.held("vm-1") == []
        [found] = await vmlaunch.fetch(INSTANCES)
        cloud.entries.clear()
        return tuple(found.values())

    results = await crash_everywhere(scenario, vmlaunch)
    assert len(results) > 20
    assert all(result == ("vm-1", "FAILED", 100) for result in results)
