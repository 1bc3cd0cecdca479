"""``skald graph``"""

from __future__ import annotations

import sys

import cyclopts

from skald import operations
from skald.cli.application import AppName, Json, checked, load, named
from skald.cli.output import print_json

graph = cyclopts.App(name="graph", help="Draw who tells whom what, as a Mermaid flowchart; needs no database.")


@graph.default
def draw(app: AppName = None, /, *, json: Json = False) -> int:
    """Draw who tells whom what, as a Mermaid flowchart; needs no database."""
    found = operations.draw_graph(checked(load(named(app))))
    if json:
        print_json(found)
    else:
        sys.stdout.write(found.mermaid)
    return 0
