"""Skald: event-driven services that start on SQLite and grow to many machines on PostgreSQL."""

from skald.app import App
from skald.clock import Clock, ManualClock, SystemClock
from skald.errors import CallRejected, LockDeadlock, LockTaken, SagaCompensated
from skald.message import Command, Envelope, Event, Notification, command, event, notification
from skald.messaging.blocking import BlockingTransaction
from skald.messaging.compensation import CompensationFailed, Done, Unknown
from skald.messaging.definition import Attempt
from skald.messaging.processes import Process
from skald.messaging.service import Service
from skald.messaging.transaction import Transaction
from skald.retry import NEVER, Backoff, Retry
from skald.runtime.service import RuntimeSettings
from skald.sagas.definition import FailedExecution, compensation
from skald.sagas.graph import Saga
from skald.sagas.saga import saga
from skald.unit import NEW, Tag
from skald.workflows.asking import call
from skald.workflows.definition import step, workflow
from skald.workflows.locking import Lock, lock
from skald.workflows.starting import Handle

__all__ = [
    "NEVER",
    "NEW",
    "App",
    "Attempt",
    "Backoff",
    "BlockingTransaction",
    "CallRejected",
    "Clock",
    "Command",
    "CompensationFailed",
    "Done",
    "Envelope",
    "Event",
    "FailedExecution",
    "Handle",
    "Lock",
    "LockDeadlock",
    "LockTaken",
    "ManualClock",
    "Notification",
    "Process",
    "Retry",
    "RuntimeSettings",
    "Saga",
    "SagaCompensated",
    "Service",
    "SystemClock",
    "Tag",
    "Transaction",
    "Unknown",
    "call",
    "command",
    "compensation",
    "event",
    "lock",
    "notification",
    "saga",
    "step",
    "workflow",
]
