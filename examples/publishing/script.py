"""The synchronous way: a script opens a basket for each customer named, and waits for nobody.

python -m examples.publishing.script Ada Grace
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from uuid import uuid4

import skald.sync
from examples.publishing.baskets import BasketOpened, app


def open_baskets(customers: Sequence[str]) -> list[str]:
    """The ids of the baskets; when it returns they are durable, and so is what was published about them."""
    ids = [uuid4().hex for _ in customers]
    with skald.sync.connect(app, "baskets") as baskets:
        for basket_id, customer in zip(ids, customers, strict=True):
            with baskets.transaction() as tx:
                tx.execute("INSERT INTO baskets (id, customer) VALUES (:id, :name)", id=basket_id, name=customer)
                tx.publish(BasketOpened(basket_id, customer))
    return ids


if __name__ == "__main__":
    print("\n".join(open_baskets(sys.argv[1:])))
