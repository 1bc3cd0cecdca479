"""The service that runs bookings: ``skald run examples.booking.app:app --migrate``."""

from __future__ import annotations

from pathlib import Path

from examples.booking.booking import book
from skald import App, Service

booking = Service("booking", workflows=[book], migrations=Path(__file__).with_name("migrations"))
app = App(booking)
