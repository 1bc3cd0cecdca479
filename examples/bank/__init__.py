"""Transfers between accounts, as a saga on ordinary tables: what was debited is credited, or given back."""
