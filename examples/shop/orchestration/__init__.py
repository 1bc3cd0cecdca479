"""The shop with a conductor: one saga in the orders service tells the others what to do, and they answer with the
events that they publish anyway. They know nothing of it.
"""
