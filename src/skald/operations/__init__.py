"""The use cases of an operator, for the command line and every other face. Each takes the application and plain values.

They open the databases that they need, answer with structs, and close them again; the services may run meanwhile, in
this process or elsewhere. What they cannot do safely they refuse (``OperationRefused``) and say what to do first.
"""

from skald.operations.access import NotFound, OperationRefused, UnknownName, chosen, scrubbed, unknown
from skald.operations.doctor import Health, examine
from skald.operations.events import EventDetail, EventView, Reading, Since, show_event, tail_events
from skald.operations.graph import Edge, Graph, Node, draw_graph
from skald.operations.lanes import Relaned, relane_subscriptions
from skald.operations.migrations import Migrated, PendingFile, migrate, plan_migrations
from skald.operations.parked import (
    Discarded,
    ParkedDetail,
    ParkedList,
    ParkedMessage,
    Selection,
    discard,
    list_parked,
    show_parked,
)
from skald.operations.redriving import Redriven, redrive
from skald.operations.subscriptions import (
    LaneView,
    Reset,
    SubscriptionView,
    Target,
    list_subscriptions,
    reset_subscription,
)

__all__ = [
    "Discarded",
    "Edge",
    "EventDetail",
    "EventView",
    "Graph",
    "Health",
    "LaneView",
    "Migrated",
    "Node",
    "NotFound",
    "OperationRefused",
    "ParkedDetail",
    "ParkedList",
    "ParkedMessage",
    "PendingFile",
    "Reading",
    "Redriven",
    "Relaned",
    "Reset",
    "Selection",
    "Since",
    "SubscriptionView",
    "Target",
    "UnknownName",
    "chosen",
    "discard",
    "draw_graph",
    "examine",
    "list_parked",
    "list_subscriptions",
    "migrate",
    "plan_migrations",
    "redrive",
    "relane_subscriptions",
    "reset_subscription",
    "scrubbed",
    "show_event",
    "show_parked",
    "tail_events",
    "unknown",
]
