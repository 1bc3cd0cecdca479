"""Skald: event-driven services that start on SQLite and grow to many machines on PostgreSQL."""

from skald.app import App
from skald.clock import Clock, ManualClock, SystemClock
from skald.message import Command, Envelope, Event, Notification, command, event, notification
from skald.messaging.blocking import BlockingTransaction
from skald.messaging.definition import Attempt
from skald.messaging.service import Service
from skald.messaging.transaction import Transaction
from skald.retry import NEVER, Backoff, Retry
from skald.runtime.service import RuntimeSettings
from skald.unit import NEW, Tag
from skald.workflows.definition import Handle, step, workflow

__all__ = [
    "NEVER",
    "NEW",
    "App",
    "Attempt",
    "Backoff",
    "BlockingTransaction",
    "Clock",
    "Command",
    "Envelope",
    "Event",
    "Handle",
    "ManualClock",
    "Notification",
    "Retry",
    "RuntimeSettings",
    "Service",
    "SystemClock",
    "Tag",
    "Transaction",
    "command",
    "event",
    "notification",
    "step",
    "workflow",
]
