"""The map of an application is drawn from its handlers' annotations, and needs no database."""

from __future__ import annotations

from skald import App, Command, Event, Service, operations


class Placed(Event, key="id"):
    id: str


class Paid(Event, key="id"):
    id: str


class Odd(Event, key="id", name='odd "one" #1 <b>;\n'):
    id: str


class Forgotten(Event, key="id"):
    id: str


class Refund(Command, key="id"):
    id: str


def test_services_teams_events_and_commands_are_drawn() -> None:
    orders = Service("orders", team="shop", publishes=[Placed, Odd, Forgotten])
    payments = Service("payments", team='"money" team')
    end = Service("end", publishes=[Refund])

    @payments.on(Placed, Odd)
    async def charge(event: Placed | Odd) -> Paid | None: ...

    @payments.on(Refund)
    async def refund(command: Refund) -> None: ...

    @orders.on(Paid)
    async def note(event: Paid) -> Refund | None: ...

    @end.on(Paid)
    async def count(event: Paid) -> None: ...

    graph = operations.draw_graph(App(orders, payments, end))

    assert graph.mermaid.splitlines() == [
        "flowchart LR",
        '    subgraph team0["shop"]',
        '        service_orders["orders"]',
        "    end",
        '    subgraph team1["#quot;money#quot; team"]',
        '        service_payments["payments"]',
        "    end",
        '    service_end["end"]',
        '    service_end -.->|"Refund"| service_payments',
        '    service_orders -->|"Placed<br/>odd #quot;one#quot; #35;1 #lt;b#gt;#59; "| service_payments',
        '    service_orders -.->|"Refund"| service_payments',
        '    service_payments -->|"Paid"| service_end',
        '    service_payments -->|"Paid"| service_orders',
        "    %% nobody handles Forgotten",
    ]
    edge = next(e for e in graph.edges if e.type == "Placed")
    assert (edge.sender, edge.receiver, edge.kind, edge.handlers) == ("orders", "payments", "event", ["charge"])
    assert graph.unread == ["Forgotten"]
