"""Sagas: workflows whose finished steps are undone, last first, when they fail.

``skald.saga``, ``skald.compensation`` and ``skald.Saga`` declare them.
"""
