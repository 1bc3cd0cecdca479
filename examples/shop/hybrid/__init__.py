"""The shop in both styles at once: events between the domains, and a small saga inside each of payment, inventory and
shipping. No domain knows that another one has a saga.

A domain's saga is started by the event that the domain waits for, in the transaction that handles it, and publishes
what came of it: the event of the domain, with its last step, or the failure, when all it did is undone. What undoes a
domain after that is the choreography: a handler that compensates the one which started the saga.
"""
