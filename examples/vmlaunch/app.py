"""The service that launches machines: ``skald run examples.vmlaunch.app:app --migrate``."""

from __future__ import annotations

from pathlib import Path

from examples.vmlaunch.launch import launch
from skald import App, Service

vmlaunch = Service("vmlaunch", workflows=[launch], migrations=Path(__file__).with_name("migrations"))
app = App(vmlaunch)
