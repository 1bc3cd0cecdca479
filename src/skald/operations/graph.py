"""Who tells whom what: the services of an application as a Mermaid flowchart, from the handlers' annotations."""

from __future__ import annotations

import msgspec

from skald.app import App
from skald.message import Kind, message_type
from skald.messaging.calls import Handled


class Edge(msgspec.Struct, frozen=True):
    sender: str
    receiver: str
    type: str
    kind: Kind
    handlers: list[str]


class Node(msgspec.Struct, frozen=True):
    name: str
    team: str | None


class Graph(msgspec.Struct, frozen=True):
    """``unread``: events that no service handles."""

    services: list[Node]
    edges: list[Edge]
    unread: list[str]
    mermaid: str


def draw_graph(app: App) -> Graph:
    """Needs no database."""
    services = [Node(name, service.team) for name, service in app.services.items()]
    edges = _edges(app)
    read = {edge.type for edge in edges}
    # ``Handled`` is for workflows that call, and only if they do.
    read.add(message_type(Handled).name)
    unread = sorted(name for name in app.topology.owners if name not in read)
    return Graph(services, edges, unread, _mermaid(services, edges, unread))


def _edges(app: App) -> list[Edge]:
    kinds = {cls.__message__.name: cls.__message__.kind for cls in app.topology.topics}  # type: ignore[attr-defined]
    found = []
    for name, subscriptions in app.topology.subscriptions.items():
        for subscription in subscriptions:
            for type, handlers in subscription.handlers.items():
                found.append(Edge(subscription.origin, name, type, kinds[type], [h.name for h in handlers]))
    return sorted(found, key=lambda edge: (edge.sender, edge.receiver, edge.kind == "command", edge.type))


def _mermaid(services: list[Node], edges: list[Edge], unread: list[str]) -> str:
    lines = ["flowchart LR"]
    teams = dict.fromkeys(node.team for node in services if node.team)
    for number, team in enumerate(teams):
        lines.append(f'    subgraph team{number}["{_label(team)}"]')
        lines += [f"        {_node(node.name)}" for node in services if node.team == team]
        lines.append("    end")
    lines += [f"    {_node(node.name)}" for node in services if not node.team]
    pairs: dict[tuple[str, str, bool], list[str]] = {}
    for edge in edges:
        pairs.setdefault((edge.sender, edge.receiver, edge.kind == "command"), []).append(_label(edge.type))
    for (sender, receiver, is_command), types in pairs.items():
        arrow = "-.->" if is_command else "-->"
        lines.append(f'    {_id(sender)} {arrow}|"{"<br/>".join(types)}"| {_id(receiver)}')
    lines += [f"    %% nobody handles {_label(name)}" for name in unread]
    return "\n".join(lines) + "\n"


def _id(service: str) -> str:
    # A prefix, because a service may be called what Mermaid keeps for itself (end, graph, style).
    return f"service_{service}"


def _node(service: str) -> str:
    return f'{_id(service)}["{service}"]'


def _label(text: str) -> str:
    # Mermaid's own escapes: # and ; delimit them, quotes end the label, and labels may hold HTML.
    escapes = {"#": "#35;", '"': "#quot;", "<": "#lt;", ">": "#gt;", "&": "#amp;", ";": "#59;"}
    # A line break would end the statement, and other unprintable ones have no business here.
    return "".join(escapes.get(character, character if character.isprintable() else " ") for character in text)
