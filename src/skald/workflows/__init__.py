"""Durable workflows: asyncio that survives a crash."""
