"""Sagas beside workflows that do the same and undo nothing."""
