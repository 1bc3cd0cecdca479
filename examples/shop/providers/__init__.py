"""The world outside: two fake providers, each a process with a ledger of its own, and the clients that call
them.
"""
