"""The service that arranges trips: ``skald run examples.travel.app:app --migrate``."""

from __future__ import annotations

from examples.travel.travel import travel
from skald import App, Service

travels = Service("travels", workflows=[travel])
app = App(travels)
