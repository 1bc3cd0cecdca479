"""Adapters of the store contract, one folder each; ``skald.app`` picks one by the scheme of the URL."""
