"""The service that welcomes users: ``skald run examples.onboarding.app:app --migrate``."""

from __future__ import annotations

from examples.onboarding.onboarding import onboard
from skald import App, Service

onboarding = Service("onboarding", workflows=[onboard])
app = App(onboarding)
